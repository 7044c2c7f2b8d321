"""Chains of disks: what a qcow2 stands on, read from its header, without a program that would open it.

A stored generation is an overlay on its parent's blob, which it names by its digest alone: both lie in
``blobs/sha512``, on whichever host.  QEMU would follow any other name, too; so what a header names is checked before a
blob is used.  The format is QEMU's: docs/interop/qcow2.txt.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vmimagemanager.durable import translate_os_errors
from vmimagemanager.errors import ImageError
from vmimagemanager.images.manifest import is_digest

LONGEST = 8  # disks of one generation, the lowest included
_MAGIC = b"QFI\xfb"
_OUTSIDE_DATA = 1 << 2
_BACKING_FORMAT = 0xE2792ACA
_SHORT_HEADER = 72  # of version 2
_HEAD = 64 << 10
_MOST_LINKS = 1000
_HINT = "It cannot be used: fetch or build the image again, and remove this generation."


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What the header of a qcow2 says: the guest's bytes, what it stands on, or empty texts, and outside data."""

    size: int
    backing: str = ""
    backing_format: str = ""
    outside_data: bool = False


def head(path: Path) -> Head | None:
    """Read the header of a qcow2; None for a file that is not one.  Raises ImageError when it contradicts itself."""
    with translate_os_errors("read", path), path.open("rb") as stream:
        content = stream.read(_HEAD)
    if not content.startswith(_MAGIC):
        return None
    try:
        return _parsed(content)
    except (struct.error, ValueError) as error:
        raise ImageError(f"The header of the disk '{path}' is damaged.", hint=_HINT) from error


def walk(path: Path) -> Iterator[Path]:
    """Yield a disk of our own and all that it stands on, the top first; what is missing ends it.

    Raises ImageError for one that stands on itself.
    """
    for _ in range(_MOST_LINKS):
        yield path
        found = head(path) if path.is_file() else None
        if found is None or not found.backing:
            return
        path = path.parent / found.backing
        if found.backing_format == "raw":  # what a guest wrote to its beginning could look like a header
            yield path
            return
    raise ImageError(f"The disk '{path}' stands on itself.", hint=_HINT)


def parents(disk: Path, blob: Callable[[str], Path]) -> tuple[str, ...]:
    """Return the digests of what a qcow2 of the store, or on its way there, stands on, the nearest first.

    ``blob`` says where the file with a digest is.  Raises ImageError when the chain leaves the store, stands on itself,
    is longer than any of ours, or lacks a link.
    """
    found: list[str] = []
    path = disk
    while True:
        link = head(path)
        if link is not None and link.outside_data:
            raise ImageError(f"The disk '{path}' keeps its data in another file, which is not followed.", hint=_HINT)
        if link is None or not link.backing:
            return tuple(found)
        if not is_digest(link.backing) or link.backing_format != "qcow2":
            raise ImageError(
                f"The disk '{path}' stands on {link.backing[:200]!r}, which is no disk of the store.", hint=_HINT
            )
        if link.backing in {*found, disk.name}:
            raise ImageError(f"The disk '{disk}' stands on itself.", hint=_HINT)
        found.append(link.backing)
        if len(found) > LONGEST:
            raise ImageError(f"The disk '{disk}' stands on more than {LONGEST} others.", hint=_HINT)
        path = blob(link.backing)
        if not path.is_file():
            raise ImageError(f"The blob '{path}' is missing, and '{disk}' stands on it.", hint=_HINT)


def _parsed(content: bytes) -> Head:
    version, backing_offset, backing_size = struct.unpack_from(">IQI", content, 4)
    (size,) = struct.unpack_from(">Q", content, 24)
    features, length = 0, _SHORT_HEADER
    if version >= 3:
        (features,) = struct.unpack_from(">Q", content, 72)
        (length,) = struct.unpack_from(">I", content, 100)
    if version not in {2, 3} or length > len(content):
        raise ValueError("its version or the length of its header")
    name, backing_format = "", ""
    if backing_offset:
        encoded = content[backing_offset : backing_offset + backing_size]
        if backing_size > 1023 or len(encoded) != backing_size:
            raise ValueError("the name of its backing file")
        name = encoded.decode("utf-8", "surrogateescape")
        backing_format = _backing_format(content, length, backing_offset)
    return Head(size=size, backing=name, backing_format=backing_format, outside_data=bool(features & _OUTSIDE_DATA))


def _backing_format(content: bytes, at: int, end: int) -> str:
    while at + 8 <= min(end, len(content)):
        kind, length = struct.unpack_from(">II", content, at)
        if kind == 0:
            break
        if kind == _BACKING_FORMAT:
            return content[at + 8 : at + 8 + length].decode("ascii", "replace")
        at += 8 + length + -length % 8
    return ""
