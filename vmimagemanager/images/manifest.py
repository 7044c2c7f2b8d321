"""What the store knows of an image: the manifest of one generation."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from vmimagemanager import records
from vmimagemanager.errors import StateError, UsageError
from vmimagemanager.images import seed
from vmimagemanager.names import quoted
from vmimagemanager.units import Size

Value = TypeVar("Value")

VERSION = 1
FILE = "manifest.toml"
ROLES = ("disk", "kernel", "initrd")
_NAME = re.compile(r"[a-z0-9][a-z0-9._+-]{0,62}", re.ASCII)
_ADDRESS = re.compile(r"(?P<name>[^:]*)(?::(?P<generation>[1-9][0-9]{0,8}))?", re.ASCII)
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{128}", re.ASCII)
_MOST_PARENTS = 64
_LONGEST_LINE = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One generation of a base image; its files are read-only and shared by all boxes that are made of it.

    ``digests`` holds the SHA-512 of each file by its role: disk, and kernel and initrd where the box is started with
    them directly; ``firmware`` is what the disk's own boot loader needs.  ``agent`` says that a QEMU guest agent is in
    it, ``user`` whom to log in as.  ``seed`` is ``nocloud`` for a system that a seed tells, at its first boot, who
    it is (see images/seed.py), or empty.  ``packages`` maps installed packages to versions, as far as known.

    A stored disk can be an overlay: ``parents`` are the digests of the disks below it, the nearest first.  ``sizes``
    holds the bytes of each file, those of the parents included, by its digest.  ``os`` and ``release`` say what system
    it is ("debian", "12"), ``source`` what it was made of, and ``stored_from`` which box or snapshot was stored, each
    empty when that is not known.  A ``pinned`` one is not removed.
    """

    name: str
    generation: int
    created: datetime
    description: str = ""
    architecture: str = "x86_64"
    disk: Path
    disk_format: str = "qcow2"
    disk_size: Size
    kernel: Path | None = None
    initrd: Path | None = None
    command_line: str = ""
    firmware: str = "bios"
    agent: bool = False
    user: str = "root"
    seed: str = ""
    digests: Mapping[str, str] = field(hash=False)
    packages: Mapping[str, str] = field(default_factory=dict, hash=False, repr=False)
    parents: tuple[str, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict, hash=False, repr=False)
    os: str = ""
    release: str = ""
    source: str = ""
    stored_from: str = ""
    pinned: bool = field(default=False, compare=False)

    @property
    def address(self) -> str:
        """The name with the generation, which means this very image for ever: ``debian-12:3``."""
        return f"{self.name}:{self.generation}"

    @property
    def needed(self) -> frozenset[str]:
        """The digests of all files that it cannot do without, those that its disk stands on included."""
        return frozenset((*self.digests.values(), *self.parents))

    @property
    def files(self) -> dict[str, Path]:
        """The files by their roles."""
        by_role = {"disk": self.disk, "kernel": self.kernel, "initrd": self.initrd}
        return {role: path for role, path in by_role.items() if path is not None}


def parse_name(text: str) -> str:
    """Return an image's name as it is; raise UsageError when it could not be one (it becomes a folder's name)."""
    if not _NAME.fullmatch(text):
        raise UsageError(
            f"{text!r} is not the name of an image: expected at most 63 lower-case letters, digits, '.', '_', '+' "
            "and '-', beginning with a letter or a digit."
        )
    return text


def parse_address(text: str) -> tuple[str, int | None]:
    """Split ``debian-12:3`` into name and generation, which is None when it is not given; raise UsageError."""
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is not an image: expected a name, or name and generation such as 'debian-12:3'.")
    generation = match["generation"]
    return parse_name(match["name"]), int(generation) if generation else None


def is_name(text: str) -> bool:
    """Say whether ``text`` could name an image."""
    return _NAME.fullmatch(text) is not None


def is_digest(text: str) -> bool:
    """Say whether ``text`` could name a blob."""
    return _DIGEST.fullmatch(text) is not None


def write(folder: Path, image: Image) -> None:
    """Write the manifest of ``image`` into ``folder``."""
    records.write(folder / FILE, to_record(image), version=VERSION)


def to_record(image: Image) -> records.Record:
    """Return what a manifest says of ``image``; what is not known is left out."""
    return {
        "name": image.name,
        "generation": image.generation,
        "created": image.created,
        "description": image.description,
        "architecture": image.architecture,
        "disk_format": image.disk_format,
        "disk_size": image.disk_size.bytes,
        "command_line": image.command_line,
        "firmware": image.firmware,
        "agent": image.agent,
        "user": image.user,
        "os": image.os or None,
        "release": image.release or None,
        "source": image.source or None,
        "stored_from": image.stored_from or None,
        "parents": list(image.parents) or None,
        "seed": image.seed or None,
        "digests": dict(image.digests),
        "sizes": dict(image.sizes) or None,
        "packages": dict(image.packages),
    }


def read(folder: Path, blob: Callable[[str], Path]) -> Image:
    """Read the manifest in ``folder``; ``blob`` says where the file with a digest is.  Raises StateError."""
    path = folder / FILE
    return from_record(records.read(path, version=VERSION), blob, source=str(path))


def from_record(record: Mapping[str, Any], blob: Callable[[str], Path], *, source: str) -> Image:
    """Return the image that a manifest describes, whoever wrote it; raise StateError that names ``source``.

    Whatever it says is of the right type and could be true; nothing is looked at beside it.
    """
    try:
        digests = _digests(_expect(record, "digests", dict))
        return Image(
            name=_checked(_NAME, record, "name"),
            generation=_at_least(1, _expect(record, "generation", int), "generation"),
            created=_moment(record),
            description=_expect(record, "description", str),
            architecture=_expect(record, "architecture", str),
            disk=blob(digests["disk"]),
            disk_format=_one_of(("qcow2", "raw"), record, "disk_format"),
            disk_size=Size(_at_least(0, _expect(record, "disk_size", int), "disk_size")),
            kernel=blob(digests["kernel"]) if "kernel" in digests else None,
            initrd=blob(digests["initrd"]) if "initrd" in digests else None,
            command_line=_line(record, "command_line"),
            firmware=_one_of(("bios", "uefi"), {"firmware": "bios", **record}, "firmware"),
            agent=_expect(record, "agent", bool),
            user=_checked(_USER, record, "user"),
            seed=_one_of(seed.KINDS, {"seed": "", **record}, "seed"),
            digests=digests,
            packages=_texts(_expect(record, "packages", dict)),
            parents=_parents(record),
            sizes=_sizes(record),
            os=_line({"os": "", **record}, "os"),
            release=_line({"release": "", **record}, "release"),
            source=_line({"source": "", **record}, "source"),
            stored_from=_line({"stored_from": "", **record}, "stored_from"),
        )
    except KeyError as error:
        raise StateError(f"The manifest '{source}' lacks the key {error}.") from error
    except (TypeError, ValueError) as error:
        raise StateError(f"The manifest '{source}' is damaged: {error}.") from error


def _expect(record: Mapping[str, Any], key: str, kind: type[Value]) -> Value:
    value = record[key]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"'{key}' is not of type {kind.__name__}")
    return value


def _line(record: Mapping[str, Any], key: str) -> str:
    text = _expect(record, key, str)
    if not text.isprintable() or len(text) > _LONGEST_LINE:
        raise ValueError(f"'{key}' is not one line of text")
    return text


def _checked(pattern: re.Pattern[str], record: Mapping[str, Any], key: str) -> str:
    text = _expect(record, key, str)
    if not pattern.fullmatch(text):
        raise ValueError(f"{quoted(text)} cannot be a {key}")
    return text


def _one_of(known: Collection[str], record: Mapping[str, Any], key: str) -> str:
    text = _expect(record, key, str)
    if text not in known:
        raise ValueError(f"'{key}' is {quoted(text)}: expected {' or '.join(known)}")
    return text


def _at_least(least: int, number: int, key: str) -> int:
    if not least <= number < 1 << 63:
        raise ValueError(f"'{key}' is {quoted(str(number))}")
    return number


def _moment(record: Mapping[str, Any]) -> datetime:
    moment = _expect(record, "created", datetime)
    if moment.tzinfo is None:
        raise ValueError("'created' has no time zone")
    return moment


def _texts(found: Mapping[Any, Any]) -> dict[str, str]:
    if not all(isinstance(version, str) for version in found.values()):
        raise ValueError("'packages' is not a table of texts")
    return dict(found)


def _digest(found: object, what: str) -> str:
    if not isinstance(found, str) or not is_digest(found):
        raise ValueError(f"the digest of {what} is not a SHA-512 in hexadecimal")
    return found


def _digests(found: Mapping[str, Any]) -> dict[str, str]:
    return {role: _digest(found[role], f"the {role}") for role in ROLES if role in found}


def _parents(record: Mapping[str, Any]) -> tuple[str, ...]:
    found = _expect({"parents": [], **record}, "parents", list)
    parents = tuple(_digest(one, "a parent") for one in found)
    if len(set(parents)) != len(parents) or len(parents) > _MOST_PARENTS:
        raise ValueError("'parents' names one twice, or too many")
    return parents


def _sizes(record: Mapping[str, Any]) -> dict[str, int]:
    found = _expect({"sizes": {}, **record}, "sizes", dict)
    return {_digest(digest, "a size"): _at_least(0, _expect(found, digest, int), "sizes") for digest in found}
