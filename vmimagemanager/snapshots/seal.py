"""What a snapshot's files were when it was taken: one that was truncated or altered is noticed before a guest runs.

Small files (a device state, definitions, firmware variables) are known by the digest of their content.  Large ones
(RAM) are known by size and time of last modification, because reading them costs more than a restore: nobody writes to
them, and whatever truncates or writes a file changes that time.  What is not noticed is a large file that was altered
by somebody who put its time back, or by a disk that lies.  The inode's own time and number are left out: removing
another name of the file changes the one, and moving the state directory to another disk the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vmimagemanager.durable import fsync_path, translate_os_errors
from vmimagemanager.images.blobs import digest_of
from vmimagemanager.state import SnapshotFolder

_SMALL = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """Size in bytes, time of last modification in nanoseconds, and the SHA-512 of a small file."""

    size: int
    mtime_ns: int
    sha512: str = ""


def seal(folder: SnapshotFolder) -> dict[str, Seal]:
    """Return the seals of a snapshot's files by their names, but for its manifest; the files are flushed first."""
    return {str(path.relative_to(folder.path)): _seal(path) for path in _files(folder)}


def broken(folder: SnapshotFolder, seals: Mapping[str, Seal]) -> tuple[str, ...]:
    """Return, as whole sentences, what happened to a snapshot's files since they were sealed; nothing when all is well.

    Reads a megabyte or so, whatever the guest's memory is.
    """
    found = []
    for name, expected in seals.items():
        path = folder.path / name
        if not path.is_file():
            found.append(f"'{path}' is missing.")
            continue
        with translate_os_errors("look at", path):
            status = path.stat()
        if status.st_size != expected.size:
            found.append(f"'{path}' has {status.st_size} bytes, and had {expected.size}.")
        elif expected.sha512:
            if digest_of(path) != expected.sha512:
                found.append(f"The content of '{path}' was altered.")
        elif status.st_mtime_ns != expected.mtime_ns:
            found.append(f"'{path}' was written to.")
    return tuple(found)


def _files(folder: SnapshotFolder) -> list[Path]:
    with translate_os_errors("read", folder.path):
        return sorted(path for path in folder.path.rglob("*") if path.is_file() and path != folder.manifest)


def _seal(path: Path) -> Seal:
    fsync_path(path)  # some file systems set the time of a file that was mapped when it is flushed
    with translate_os_errors("look at", path):
        status = path.stat()
    digest = digest_of(path) if status.st_size <= _SMALL else ""
    return Seal(size=status.st_size, mtime_ns=status.st_mtime_ns, sha512=digest)
