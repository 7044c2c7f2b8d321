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
from vmimagemanager.units import Size

Value = TypeVar("Value")

VERSION = 1
FILE = "manifest.toml"
ROLES = ("disk", "kernel", "initrd")
_NAME = re.compile(r"[a-z0-9][a-z0-9._+-]{0,62}", re.ASCII)
_ADDRESS = re.compile(r"(?P<name>[^:]*)(?::(?P<generation>[1-9][0-9]{0,8}))?", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{128}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One generation of a base image; its files are read-only and shared by all boxes that are made of it.

    ``digests`` holds the SHA-512 of each file by its role: disk, and kernel and initrd where the box is started with
    them directly; ``firmware`` is what the disk's own boot loader needs.  ``agent`` says that a QEMU guest agent is in
    it, ``user`` whom to log in as.  ``seed`` is ``nocloud`` for a system that a seed tells, at its first boot, who
    it is (see images/seed.py), or empty.  ``packages`` maps installed packages to versions, as far as known.
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

    @property
    def address(self) -> str:
        """The name with the generation, which means this very image for ever: ``debian-12:3``."""
        return f"{self.name}:{self.generation}"

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


def write(folder: Path, image: Image) -> None:
    """Write the manifest of ``image`` into ``folder``."""
    record = {
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
        "seed": image.seed or None,
        "digests": dict(image.digests),
        "packages": dict(image.packages),
    }
    records.write(folder / FILE, record, version=VERSION)


def read(folder: Path, blob: Callable[[str], Path]) -> Image:
    """Read the manifest in ``folder``; ``blob`` says where the file with a digest is.  Raises StateError."""
    path = folder / FILE
    record = records.read(path, version=VERSION)
    try:
        digests = _digests(record["digests"])
        return Image(
            name=_expect(record, "name", str),
            generation=_expect(record, "generation", int),
            created=_expect(record, "created", datetime),
            description=_expect(record, "description", str),
            architecture=_expect(record, "architecture", str),
            disk=blob(digests["disk"]),
            disk_format=_expect(record, "disk_format", str),
            disk_size=Size(_expect(record, "disk_size", int)),
            kernel=blob(digests["kernel"]) if "kernel" in digests else None,
            initrd=blob(digests["initrd"]) if "initrd" in digests else None,
            command_line=_expect(record, "command_line", str),
            firmware=str(record.get("firmware", "bios")),
            agent=_expect(record, "agent", bool),
            user=_expect(record, "user", str),
            seed=_one_of(str(record.get("seed", "")), seed.KINDS),
            digests=digests,
            packages={str(name): str(version) for name, version in dict(record["packages"]).items()},
        )
    except KeyError as error:
        raise StateError(f"The manifest '{path}' lacks the key {error}.") from error
    except (TypeError, ValueError) as error:
        raise StateError(f"The manifest '{path}' is damaged: {error}.") from error


def _expect(record: Mapping[str, Any], key: str, kind: type[Value]) -> Value:
    value = record[key]
    if not isinstance(value, kind):
        raise ValueError(f"'{key}' is not of type {kind.__name__}")
    return value


def _one_of(value: str, known: Collection[str]) -> str:
    if value not in known:
        raise ValueError(f"{value!r} is none of {', '.join(map(repr, known))}")
    return value


def _digests(found: Mapping[str, Any]) -> dict[str, str]:
    digests = {role: str(found[role]) for role in ROLES if role in found}
    for role, digest in digests.items():
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"the digest of the {role} is not a SHA-512 in hexadecimal")
    return digests
