"""Recipes in files: what ``image build NAME --recipe FILE`` reads.  vmimagemanager(1) describes every key."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from vmimagemanager import records
from vmimagemanager.config import schema
from vmimagemanager.config.schema import Spot
from vmimagemanager.durable import translate_os_errors
from vmimagemanager.errors import ImageError, StateError
from vmimagemanager.images.catalogue import DISTRIBUTIONS, LaidIn, Recipe
from vmimagemanager.images.manifest import parse_name
from vmimagemanager.units import Size

HINT = "'man vmimagemanager' describes every key of a recipe."
SMALLEST, LARGEST = Size(1 << 30), Size(1 << 40)
_LARGEST_FILE = 64 << 20
_WORD = re.compile(r"[a-z0-9][a-z0-9.+-]*", re.ASCII)
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9.+-]*(?::[a-z0-9]+)?(?:[=/][A-Za-z0-9.+:~-]+)?", re.ASCII)
_MIRROR = re.compile(r"(?:https?|file|copy)://?[!-~]+|deb [ -~]+", re.ASCII)
_GUEST_PATH = re.compile(r"(?:/[^/\0]+)+")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}", re.ASCII)
_EARLIEST = datetime(1980, 1, 1, tzinfo=UTC)  # what a FAT file system can date


def read(path: Path, name: str) -> Recipe:
    """Read the recipe of an image ``name``.  Raises ImageError that names the file, the key and what was expected."""
    parse_name(name)
    with translate_os_errors("read", path):
        content = path.read_bytes()
    try:
        document = records.parse(content.decode(), source=str(path))
    except (UnicodeDecodeError, StateError) as error:
        raise ImageError(f"The recipe '{path}' is not TOML: {error}", hint=HINT) from error
    spot = Spot(prefix=f"{path}: ", folder=path.absolute().parent, error=ImageError, hint=HINT)
    values = schema.read_table(document, KEYS, spot)
    if "suite" not in values:
        raise spot.child("suite").unexpected("", "the name of a release, such as 'bookworm'")
    if values.get("uefi") and values.get("bios"):
        raise spot.child("bios").unexpected(True, "false beside 'uefi': a disk has one boot loader")
    values.setdefault("description", f"built by {path.name}")
    return Recipe(name=name, **cast("dict[str, Any]", values))  # each key has its own parser


def _matching(pattern: re.Pattern[str], expected: str) -> schema.Parser:
    def parse(value: object, spot: Spot) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise spot.unexpected(value, expected)
        return value

    return parse


def _list(entry: Callable[[object, Spot], object], expected: str) -> schema.Parser:
    def parse(value: object, spot: Spot) -> tuple[object, ...]:
        if not isinstance(value, list):
            raise spot.unexpected(value, expected)
        return tuple(entry(each, spot.entry(number)) for number, each in enumerate(value, 1))

    return parse


def _distribution(value: object, spot: Spot) -> str:
    if not isinstance(value, str) or value not in DISTRIBUTIONS:
        raise spot.unexpected(value, f"one of {', '.join(DISTRIBUTIONS)}")
    return value


def _script(value: object, spot: Spot) -> bytes:
    content = _content(value, spot)
    if not content.startswith(b"#!"):
        raise spot.unexpected(value, "the path of a script whose first line names its interpreter, such as #!/bin/sh")
    return content


def _content(value: object, spot: Spot) -> bytes:
    path = schema.path(value, spot)
    with translate_os_errors("read", path):
        if not path.is_file() or path.stat().st_size > _LARGEST_FILE:
            raise spot.unexpected(value, f"the path of a file of at most {Size(_LARGEST_FILE).human()}")
        return path.read_bytes()


def _laid_in(value: Mapping[str, object], spot: Spot) -> LaidIn:
    known = {"path": _guest_path, "source": _content, "content": _text, "mode": _mode}
    values = schema.read_table(value, known, spot)
    if "path" not in values or ("source" in values) == ("content" in values):
        raise spot.unexpected(value, "a table with 'path' and either 'source', a file, or 'content', its text")
    content = cast("bytes", values.get("source", values.get("content")))
    return LaidIn(path=cast("str", values["path"]), content=content, mode=cast("int", values.get("mode", 0o644)))


def _guest_path(value: object, spot: Spot) -> str:
    if not isinstance(value, str) or not _GUEST_PATH.fullmatch(value) or {".", ".."} & set(value.split("/")):
        raise spot.unexpected(value, "the absolute path of a file in the guest")
    return value


def _text(value: object, spot: Spot) -> bytes:
    if not isinstance(value, str):
        raise spot.unexpected(value, "text in quotes")
    return value.encode()


def _mode(value: object, spot: Spot) -> int:
    if not isinstance(value, str) or not re.fullmatch(r"0?[0-7]{3,4}", value):
        raise spot.unexpected(value, "an octal mode in quotes, such as '0755'")
    return int(value, 8)


def _epoch(value: object, spot: Spot) -> datetime:
    if not isinstance(value, datetime) or value.tzinfo is None or value < _EARLIEST:
        raise spot.unexpected(value, "a moment with a zone, since 1980, such as 2025-05-20T00:00:00Z")
    return value


KEYS: dict[str, schema.Parser] = {
    "suite": _matching(_WORD, "the name of a release, such as 'bookworm'"),
    "description": schema.line,
    "distribution": _distribution,
    "components": _list(_matching(_WORD, "a component of the archive, such as 'main'"), "a list of components"),
    "packages": _list(_matching(_PACKAGE, "the name of a package"), "a list of packages, such as ['gcc', 'make']"),
    "mirror": _matching(_MIRROR, "an address, such as http://archive.example/debian"),
    "size": schema.size(SMALLEST, LARGEST),
    "files": schema.tables(_laid_in, LaidIn),
    "hooks": _list(_script, "a list of paths of scripts"),
    "user": _matching(_USER, "the name of a user of the guest, such as 'root'"),
    "uefi": schema.switch,
    "bios": schema.switch,
    "cloud": schema.switch,
    "epoch": _epoch,
}
