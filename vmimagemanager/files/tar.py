"""Tar streams written member by member, and copied as they are; they are read by `tarstream`.

The formats are those of POSIX pax and of GNU tar.
"""

from __future__ import annotations

import stat
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

from vmimagemanager.errors import TransferError
from vmimagemanager.files.tarstream import BLOCK, Source

_CHUNK = 1 << 18
# Types of members that are neither files nor hard links, and what a mode (inode(7)) says of them.
KINDS = {
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}
TYPES = {kind: number for number, kind in KINDS.items()}
# What tarfile makes of the rest of a member's headers, and what is made anew when it is written again.
_MADE_ANEW = ("path", "linkpath", "size", "hdrcharset", "uid", "gid", "uname", "gname", "atime", "ctime")
_DAMAGED = (tarfile.TarError, ValueError, IndexError, OverflowError, KeyError, EOFError, RecursionError, TypeError)


def copied(source: Source, write: Callable[[bytes], object], size: int) -> None:
    """Copy a member's content; raise TransferError when there is less of it than ``size``."""
    left = size
    while left:
        with translated():
            chunk = source.read(min(_CHUNK, left))
        if not chunk:
            raise TransferError("The archive ends within a file.")
        write(chunk)
        left -= len(chunk)


def forget_members(archive: tarfile.TarFile) -> None:
    """Drop the members that a stream has brought so far, which it would keep to its end."""
    archive.members = []  # type: ignore[attr-defined]  # typeshed does not know it


def extents_of(member: tarfile.TarInfo) -> list[tuple[int, int]] | None:
    """Return the parts of a sparse member that are no holes, or None of one that is not sparse."""
    if not member.issparse():
        return None
    return [(extent[0], extent[1]) for extent in cast("list[tuple[int, int]]", member.sparse or [])]


def copy_whole(stream: Source, write: Callable[[bytes], object], last: bytes = b"") -> None:
    """Copy a tar as it is; raise TransferError when it does not end as one (``last`` is what was read of it before)."""
    while chunk := stream.read(_CHUNK):
        write(chunk)
        last = (last + chunk)[-BLOCK:]
    if len(last) < BLOCK or any(last):
        raise TransferError("The archive ends before its end.")


def attributes(member: tarfile.TarInfo) -> dict[str, str]:
    """Return those extended headers of a member that are not told by its other fields: xattrs, ACLs, exact times."""
    return {
        key: value
        for key, value in member.pax_headers.items()
        if key not in _MADE_ANEW and not key.startswith("GNU.sparse.")
    }


def head(member: tarfile.TarInfo) -> bytes:
    """Return the header blocks of a member whose ``pax_headers`` are `attributes`."""
    with translated():
        return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def write_file(
    write: Callable[[bytes], object], member: tarfile.TarInfo, content: Source, extents: list[tuple[int, int]] | None
) -> None:
    """Write a regular file of ``member.size`` bytes; with ``extents`` only these parts, as GNU tar's sparse format 1.0.

    https://www.gnu.org/software/tar/manual/html_section/Sparse-Formats.html
    """
    if extents is None:
        write(head(member))
        copied(content, write, member.size)
        write(bytes(-member.size % BLOCK))
        return
    if not extents or sum(extents[-1]) < member.size:  # what GNU tar knows the file's size by
        extents = [*extents, (member.size, 0)]
    numbers = [len(extents), *(number for extent in extents for number in extent)]
    table = "".join(f"{number}\n" for number in numbers).encode()
    table += bytes(-len(table) % BLOCK)
    size, held = member.size, sum(length for _, length in extents)
    sparse = {"major": "1", "minor": "0", "name": member.name, "realsize": str(size)}
    member.pax_headers = {**member.pax_headers, **{f"GNU.sparse.{key}": value for key, value in sparse.items()}}
    member.size = len(table) + held
    write(head(member))
    write(table)
    at = 0
    for offset, length in extents:
        copied(content, lambda _: None, offset - at)
        copied(content, write, length)
        at = offset + length
    copied(content, lambda _: None, size - at)
    write(bytes(-held % BLOCK))


END = bytes(2 * BLOCK)


@contextmanager
def translated() -> Iterator[None]:
    """Turn what Python's reader raises for damaged streams into TransferError."""
    try:
        yield
    except _DAMAGED as error:
        raise TransferError(f"The archive is damaged: {str(error) or type(error).__name__}.") from error


def shown(name: str) -> str:
    """Return a name as it can be printed, whatever bytes it has."""
    return name.encode("utf-8", "backslashreplace").decode()[:200]
