"""What comes out of a guest, laid into a folder of the host.

The guest is not trusted.  Names that are absolute, lead upwards, come twice or have no folder are refused, so are
devices and pipes, and hard links to anything but a file of the same stream.  Symbolic links are made last, so that
nothing is ever written through one; where they lead is the guest's affair.
"""

from __future__ import annotations

import os
import stat
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from vmimagemanager.errors import TransferError
from vmimagemanager.files import tar
from vmimagemanager.files.tarstream import Source, TarStream

_DEEPEST = 200  # folders: a guest could make believe that there is no end
_HOLE = 1 << 16
_PERMISSIONS = 0o777


class Unpacked:
    """What was laid down: the bytes of all files, and the names of the top level in their order."""

    def __init__(self) -> None:
        self.bytes = 0
        self.tops: list[str] = []


def unpack(stream: BinaryIO, folder: Path) -> Unpacked:
    """Lay a tar stream into the empty ``folder``, with permissions and times, without owners and setuid bits.

    Raises TransferError, or OSError; what was laid down is left then.
    """
    done = _Laying(folder)
    reader = TarStream(stream, holes=True)
    for member in reader:
        done.add(member, reader.content())
    done.finish()
    return done.unpacked


class _Laying:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kinds: dict[str, bytes] = {"": tarfile.DIRTYPE}
        self._folders: list[tuple[Path, int, float]] = []
        self._links: list[tuple[Path, str]] = []
        self.unpacked = Unpacked()

    def add(self, member: tarfile.TarInfo, content: Source) -> None:
        name = checked(member.name)
        if not name:  # the folder itself
            return
        parent, _, _ = name.rpartition("/")
        if name in self._kinds or self._kinds.get(parent) != tarfile.DIRTYPE:
            raise TransferError(f"The guest sent '{tar.shown(name)}' twice or without its folder, which is refused.")
        path = self._folder / name
        mode = stat.S_IMODE(member.mode) & _PERMISSIONS
        if member.isdir():
            path.mkdir(mode=0o700)
            self._folders.append((path, mode, member.mtime))
        elif member.issym():
            self._links.append((path, member.linkname))
        elif member.islnk():
            target = checked(member.linkname)
            if self._kinds.get(target) != tarfile.REGTYPE:
                raise TransferError(f"The guest sent a link from '{tar.shown(name)}' to outside, which is refused.")
            os.link(self._folder / target, path, follow_symlinks=False)
        elif member.isreg():
            self._write(path, member, mode, content)
            self.unpacked.bytes += member.size
        else:
            raise TransferError(f"'{tar.shown(name)}' in the guest is neither a file, a folder nor a symbolic link.")
        if "/" not in name:
            self.unpacked.tops.append(name)
        self._kinds[name] = tarfile.REGTYPE if member.islnk() or member.isreg() else member.type

    def finish(self) -> None:
        for path, target in self._links:
            path.symlink_to(target)
        for path, mode, time in reversed(self._folders):  # deepest first: a folder may forbid to write into it
            path.chmod(mode)
            _date(path, time)

    def _write(self, path: Path, member: tarfile.TarInfo, mode: int, content: Source) -> None:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb", buffering=0) as target:

            def write(chunk: bytes) -> None:
                for start in range(0, len(chunk), _HOLE):
                    part = chunk[start : start + _HOLE]
                    if any(part):
                        target.write(part)
                    else:
                        target.seek(len(part), os.SEEK_CUR)

            tar.copied(content, write, member.size)
            target.truncate(member.size)
            os.fchmod(descriptor, mode)
        _date(path, member.mtime)


def checked(name: str) -> str:
    """Return a member's name without what does not matter; raise TransferError for one that could lead outside."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name or (name == "" and not parts):
        raise TransferError(f"The guest named a file {tar.shown(name)!r}, which is refused.")
    if len(parts) > _DEEPEST:
        raise TransferError(f"'{tar.shown(name)[:80]}…' in the guest lies too deep.")
    return "/".join(parts)


def _date(path: Path, time: float) -> None:
    with suppress(OSError, OverflowError, ValueError):  # a time that this host cannot have
        os.utime(path, (time, time))
