"""Tars of others, read from their beginning to their end, and trusted in nothing.

tarfile alone is not used for them: it takes extended headers, long names and the maps of sparse files into memory at
any length that they claim, and a damaged header for the end.  The formats are those of POSIX.1-2001 (ustar, pax) and
GNU tar (long names, large numbers, sparse members of format 1.0).
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Iterator
from typing import Protocol

from vmimagemanager.errors import TransferError, VmimError

BLOCK = tarfile.BLOCKSIZE
XATTR = "SCHILY.xattr."
_SPARSE = "GNU.sparse."
_CHUNK = 1 << 18
_LONGEST = 1 << 20  # of the extended headers and long names of one member, and of those of all together, in bytes
_LARGEST = 1 << 62
_MOST_NUMBERS = (1 << 32) - 1  # of users, groups and devices
_MOST_EXTENTS = 1 << 20
_TIME = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,18})?")
_TYPES = {
    tarfile.REGTYPE: tarfile.REGTYPE,
    tarfile.AREGTYPE: tarfile.REGTYPE,
    tarfile.CONTTYPE: tarfile.REGTYPE,
    **{
        kind: kind
        for kind in (
            tarfile.DIRTYPE,
            tarfile.SYMTYPE,
            tarfile.LNKTYPE,
            tarfile.CHRTYPE,
            tarfile.BLKTYPE,
            tarfile.FIFOTYPE,
        )
    },
}

Refusal = Callable[[str], VmimError]


class Source(Protocol):
    """What can be read."""

    def read(self, size: int, /) -> bytes: ...


class Content:
    """What a member holds, read once, holes as zeros."""

    def __init__(self, read: Callable[[int], bytes], size: int, extents: list[tuple[int, int]]) -> None:
        self._read = read
        self._at = 0
        self._size = size
        self._extents = [extent for extent in reversed(extents) if extent[1]]

    def read(self, count: int, /) -> bytes:
        """Return up to ``count`` bytes, none at the end only."""
        offset, length = self._extents[-1] if self._extents else (self._size, 0)
        if self._at < offset:
            content = bytes(min(count, offset - self._at, _CHUNK))
        elif length:
            content = self._read(min(count, offset + length - self._at, _CHUNK))
        else:
            return b""
        self._at += len(content)
        if self._extents and self._at == offset + length:
            self._extents.pop()
        return content

    def __iter__(self) -> Iterator[bytes]:
        return iter(lambda: self.read(_CHUNK), b"")


class TarStream:
    """The members of a tar that is read once; `content` is that of the member that came last.

    A member is what its header and the extended ones say, undecodable bytes as surrogates; its type is one of those
    that POSIX knows, a regular file's always ``REGTYPE``.  Raises what ``refuse`` makes of a reason, TransferError
    unless told otherwise, for anything that is damaged, cut off or not understood.  Sparse members are refused, too,
    unless ``holes`` allows them: a file of no size at all can be one of exabytes.
    """

    def __init__(self, stream: Source, refuse: Refusal | None = None, *, holes: bool = False) -> None:
        self._stream = stream
        self._refuse: Refusal = refuse if refuse is not None else _damaged
        self._holes = holes
        self._left = 0
        self._padding = 0
        self._content = Content(self._stored, 0, [])

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        shared: dict[str, bytes] = {}
        own: dict[str, bytes] = {}
        room = shared_room = _LONGEST
        while (block := self._next_header()) is not None:
            header = self._parsed(block)
            match header.type:
                case tarfile.XGLTYPE:
                    shared |= self._records(self._extension(header, shared_room))
                    shared_room -= header.size
                case tarfile.XHDTYPE | tarfile.SOLARIS_XHDTYPE:
                    own |= self._records(self._extension(header, room))
                    room -= header.size
                case tarfile.GNUTYPE_LONGNAME | tarfile.GNUTYPE_LONGLINK:
                    key = "path" if header.type == tarfile.GNUTYPE_LONGNAME else "linkpath"
                    own[key] = self._extension(header, room).rstrip(b"\0")
                    room -= header.size
                case _:
                    yield self._member(header, {**shared, **own})
                    own, room = {}, _LONGEST
        if own:
            raise self._refuse("it ends with the header of a member that does not come")

    def content(self) -> Content:
        """Return the content of the last member."""
        return self._content

    def _next_header(self) -> bytes | None:
        while self._left:
            self._stored(min(self._left, _CHUNK))
        self._read(self._padding)
        self._padding = 0
        block = self._read(BLOCK)
        if any(block):
            return block
        while rest := self._stream.read(_CHUNK):  # to the very end: whoever writes it has to get rid of it
            if any(rest):
                raise self._refuse("something follows its end")
        return None

    def _expect(self, size: int) -> None:
        self._left, self._padding = size, -size % BLOCK

    def _parsed(self, block: bytes) -> tarfile.TarInfo:
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError) as error:
            raise self._refuse("a header is none") from error
        self._require_numbers(header)
        return header

    def _require_numbers(self, header: tarfile.TarInfo) -> None:
        numbers = (header.uid, header.gid, header.devmajor, header.devminor, header.mode)
        sound = all(0 <= number <= _MOST_NUMBERS for number in numbers) and 0 <= header.size < _LARGEST
        if not sound or not abs(header.mtime) < _LARGEST:
            raise self._refuse("a header has a number that cannot be")

    def _extension(self, header: tarfile.TarInfo, room: int) -> bytes:
        if header.size > room:
            raise self._refuse(f"an extended header has {header.size} bytes, and {room} are the most")
        self._expect(header.size)
        return self._stored(header.size)

    def _records(self, content: bytes) -> dict[str, bytes]:
        records = {}
        while content:
            digits, space, _ = content[:20].partition(b" ")
            if not space or not digits.isdigit():
                raise self._refuse("an extended header is none")
            record, content = content[: int(digits)], content[int(digits) :]
            key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
            if len(record) != int(digits) or not record.endswith(b"\n") or not equals or b"\0" in key:
                raise self._refuse("an extended header is none")
            records[key.decode("utf-8", "surrogateescape")] = value
        return records

    def _member(self, member: tarfile.TarInfo, records: dict[str, bytes]) -> tarfile.TarInfo:
        is_sparse = member.type == tarfile.GNUTYPE_SPARSE or any(key.startswith(_SPARSE) for key in records)
        if not is_sparse and member.type not in _TYPES:
            raise self._refuse(f"a member is of the unknown type {member.type!r}")
        if is_sparse:
            self._require_known_holes(member, records)
        member.type = _TYPES[member.type]
        told = {key: value.decode("utf-8", "surrogateescape") for key, value in records.items()}
        member.pax_headers = told
        # A name is whole in its record; that of a folder ends with a slash in some tars and not in others.
        member.name, member.linkname = told.get("path", member.name), told.get("linkpath", member.linkname)
        if is_sparse:
            member.name = told.get(f"{_SPARSE}name", member.name)
        if "\0" in member.name or "\0" in member.linkname:
            raise self._refuse("a name has a zero in it")
        for key in ("size", "uid", "gid"):
            setattr(member, key, self._number(records, key, getattr(member, key)))
        member.mtime = self._moment(told.get("mtime"), member.mtime)
        if member.type not in (tarfile.REGTYPE, tarfile.LNKTYPE):
            member.size = 0
        self._require_numbers(member)
        self._expect(member.size)
        extents = [(0, member.size)] if member.isreg() else []
        if is_sparse:
            member.size = self._number(records, f"{_SPARSE}realsize", 0)
            self._require_numbers(member)
            extents = self._map(member.size)
            member.sparse = extents  # type: ignore[assignment]  # typeshed believes it to be bytes
        self._content = Content(self._stored, member.size if member.isreg() else 0, extents)
        return member

    def _require_known_holes(self, member: tarfile.TarInfo, records: dict[str, bytes]) -> None:
        version = (records.get(f"{_SPARSE}major"), records.get(f"{_SPARSE}minor"))
        if not self._holes or version != (b"1", b"0") or _TYPES.get(member.type) != tarfile.REGTYPE:
            raise self._refuse("it has sparse members, which are not taken in: pack it without --sparse")

    def _map(self, size: int) -> list[tuple[int, int]]:
        """Read where the parts of a sparse file that are no holes lie, which its content begins with."""
        numbers = self._map_numbers()
        count = next(numbers)
        if count > _MOST_EXTENTS:
            raise self._refuse(f"a file has {count} holes")
        extents, at = [(next(numbers), next(numbers)) for _ in range(count)], 0
        for offset, length in extents:
            if offset < at or offset + length > size:
                raise self._refuse("the holes of a file make no sense")
            at = offset + length
        if sum(length for _, length in extents) != self._left:
            raise self._refuse("the holes of a file make no sense")
        return extents

    def _map_numbers(self) -> Iterator[int]:
        text = b""
        while self._left >= BLOCK:
            *lines, text = (text + self._stored(BLOCK)).split(b"\n")
            for line in lines:
                if not line.isdigit() or len(line) > 19:
                    raise self._refuse("the holes of a file make no sense")
                yield int(line)
        raise self._refuse("the holes of a file make no sense")

    def _number(self, records: dict[str, bytes], key: str, otherwise: int) -> int:
        text = records.get(key)
        if text is None:
            return otherwise
        if not text.isdigit() or len(text) > 19:
            raise self._refuse(f"a member has the {key} {text[:20]!r}")
        return int(text)

    def _moment(self, text: str | None, otherwise: float) -> float:
        if text is None:
            return otherwise
        if not _TIME.fullmatch(text):
            raise self._refuse(f"a member has the time {text[:20]!r}")
        return float(text)

    def _stored(self, count: int) -> bytes:
        content = self._read(count)
        self._left -= count
        return content

    def _read(self, count: int) -> bytes:
        content = b""
        while len(content) < count:
            piece = self._stream.read(count - len(content))
            if not piece:
                raise self._refuse("it ends too early")
            content = content + piece if content else piece
        return content


def _damaged(reason: str) -> VmimError:
    return TransferError(f"The archive is damaged, or no tar: {reason}.")
