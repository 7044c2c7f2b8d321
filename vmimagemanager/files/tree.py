"""A tree of plain files that holds what only root could have made, for ordinary users, too.

Content, names, times, hard links and holes are as they were.  Owner, permissions and kind are in the extended attribute
``user.rsync.%stat``, and other extended attributes are below ``user.rsync.``: as rsync(1) keeps them on a receiver with
``--fake-super``, and finds them again.  So devices and pipes are empty files there, and symbolic links are files that
hold their target.  ACLs, which rsync keeps in a form of its own, are below ``user.vmimagemanager.``.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from vmimagemanager.durable import translate_os_errors
from vmimagemanager.errors import TransferError
from vmimagemanager.files import tar
from vmimagemanager.files.tarstream import XATTR, TarStream
from vmimagemanager.files.unpack import checked

STAT = "user.rsync.%stat"
_XATTR, _OURS = "user.rsync.", "user.vmimagemanager."

Write = Callable[[bytes], object]


def from_tar(stream: BinaryIO, folder: Path) -> None:
    """Lay a tar stream into the new folder; raise TransferError, or OSError where it has no extended attributes."""
    folder.mkdir(mode=0o700)
    times: list[tuple[Path, tarfile.TarInfo]] = []
    reader = TarStream(stream, holes=True)
    for member in reader:
        path = folder / name if (name := checked(member.name)) else folder
        if member.islnk():
            os.link(folder / checked(member.linkname), path, follow_symlinks=False)
            continue
        if member.isdir():
            path.mkdir(mode=0o700, exist_ok=path == folder)
            times.append((path, member))
        else:
            _write(path, member, reader)
        _note(path, member)
        _date(path, member)
    for path, member in reversed(times):
        _date(path, member)


def to_tar(folder: Path, write: Write) -> None:
    """Write the folder as a tar stream; raise TransferError when its attributes are not those that `from_tar` gave."""
    first: dict[int, str] = {}
    for path, name in _found(folder):
        member = _member(path, f"./{name}" if name else "./")
        status = path.lstat()
        if status.st_nlink > 1 and not path.is_dir():
            if status.st_ino in first:
                member.type, member.linkname, member.size = tarfile.LNKTYPE, first[status.st_ino], 0
                member.pax_headers = {}
                write(tar.head(member))
                continue
            first[status.st_ino] = member.name
        if member.isreg():
            with path.open("rb") as content:
                member.size = status.st_size
                tar.write_file(write, member, content, _extents(content, status))
        else:
            write(tar.head(member))
    write(tar.END)


def digest(folder: Path) -> str:
    """Return the SHA-512, in hexadecimal, of all that is in a tree: names, attributes, times, content."""
    whole = hashlib.sha512()
    first: dict[int, str] = {}
    for path, name in _found(folder):
        status = path.lstat()
        link = first.setdefault(status.st_ino, name)
        for word in (os.fsencode(name), os.fsencode(link), b"%d %d" % (status.st_mode, status.st_mtime_ns)):
            whole.update(b"%d:" % len(word) + word)
        for key in sorted(_attributes(path)):
            value = os.getxattr(path, key, follow_symlinks=False)
            whole.update(b"%d:" % len(key) + os.fsencode(key) + b"%d:" % len(value) + value)
        if stat.S_ISREG(status.st_mode) and link == name:
            with translate_os_errors("read", path), path.open("rb") as stream:
                whole.update(hashlib.file_digest(stream, "sha512").digest())
    return whole.hexdigest()


def _write(path: Path, member: tarfile.TarInfo, reader: TarStream) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb", buffering=0) as target:
        if member.issym():
            target.write(os.fsencode(member.linkname))
        elif member.isreg():
            content = reader.content()
            at = 0
            extents = tar.extents_of(member)
            for offset, length in [(0, member.size)] if extents is None else extents:
                tar.copied(content, lambda _: None, offset - at)
                target.seek(offset)
                tar.copied(content, target.write, length)
                at = offset + length
            target.truncate(member.size)
        os.fchmod(descriptor, 0o600 | (stat.S_IMODE(member.mode) & 0o777 if member.isreg() else 0))


def _note(path: Path, member: tarfile.TarInfo) -> None:
    device = (member.devmajor, member.devminor) if member.ischr() or member.isblk() else (0, 0)
    mode = tar.KINDS.get(member.type, stat.S_IFREG) | stat.S_IMODE(member.mode)
    text = f"{mode:o} {device[0]},{device[1]} {member.uid}:{member.gid}"
    os.setxattr(path, STAT, text.encode())
    for key, value in tar.attributes(member).items():
        if key == "mtime":
            continue
        kept = f"{_XATTR}{key.removeprefix(XATTR)}" if key.startswith(XATTR) else f"{_OURS}{key}"
        os.setxattr(path, kept.encode("utf-8", "surrogateescape"), value.encode("utf-8", "surrogateescape"))


def _date(path: Path, member: tarfile.TarInfo) -> None:
    whole, _, part = str(member.pax_headers.get("mtime", int(member.mtime))).partition(".")
    try:
        time = int(whole) * 10**9 + (-1 if whole.startswith("-") else 1) * int(f"{part:0<9}"[:9])
        os.utime(path, ns=(time, time))
    except (ValueError, OverflowError) as error:
        raise TransferError(f"'{tar.shown(member.name)}' has a time that this host cannot have.") from error


def _found(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield a folder and what is in it, by names, each folder directly before what is in it."""
    waiting = [(folder, "")]
    while waiting:
        path, name = waiting.pop()
        yield path, name
        if path.is_dir() and not path.is_symlink():
            names = sorted(os.listdir(path), reverse=True)  # noqa: PTH208 - names, not paths
            waiting += [(path / one, f"{name}/{one}" if name else one) for one in names]


def _member(path: Path, name: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    status = path.lstat()
    try:
        mode_text, device, owner = os.getxattr(path, STAT, follow_symlinks=False).decode("ascii").split()
        mode = int(mode_text, 8)
        member.devmajor, member.devminor = (int(number) for number in device.split(","))
        member.uid, member.gid = (int(number) for number in owner.split(":"))
    except (OSError, ValueError) as error:
        raise TransferError(f"The tree is damaged: '{path}' has not the attribute '{STAT}'.") from error
    kind = stat.S_IFMT(mode)
    member.type = tar.TYPES.get(kind, tarfile.REGTYPE)
    member.mode = stat.S_IMODE(mode)
    if member.isdir() != stat.S_ISDIR(status.st_mode) or not (member.isdir() or stat.S_ISREG(status.st_mode)):
        raise TransferError(f"The tree is damaged: '{path}' is not what its attribute '{STAT}' says.")
    if kind == stat.S_IFLNK:
        member.linkname = os.fsdecode(path.read_bytes())
    member.mtime = status.st_mtime_ns // 10**9
    headers = {}
    if status.st_mtime_ns % 10**9:
        time = abs(status.st_mtime_ns)
        headers["mtime"] = f"{'-' if status.st_mtime_ns < 0 else ''}{time // 10**9}.{time % 10**9:09}"
    for key in _attributes(path):
        if key.startswith(_OURS):
            name_of_it = key.removeprefix(_OURS)
        elif key.startswith(_XATTR) and key != STAT:
            name_of_it = XATTR + key.removeprefix(_XATTR)
        else:
            continue
        value = os.getxattr(path, key, follow_symlinks=False).decode("utf-8", "surrogateescape")
        headers.setdefault(name_of_it, value)
    member.pax_headers = headers
    return member


def _attributes(path: Path) -> list[str]:
    return [key for key in os.listxattr(path, follow_symlinks=False) if key.startswith("user.")]


def _extents(content: BinaryIO, status: os.stat_result) -> list[tuple[int, int]] | None:
    """Return the parts of a file that are no holes, when it has some."""
    if status.st_blocks * 512 >= status.st_size:
        return None
    found, at, descriptor = [], 0, content.fileno()
    while at < status.st_size:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError:  # only a hole is left
            break
        at = os.lseek(descriptor, start, os.SEEK_HOLE)
        found.append((start, at - start))
    os.lseek(descriptor, 0, os.SEEK_SET)
    return None if found == [(0, status.st_size)] else found
