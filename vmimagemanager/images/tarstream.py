"""Tars of others, read from their beginning to their end, and trusted in nothing.

tarfile is not used for them: it takes extended headers, long names and the maps of sparse files into memory at any
length that they claim.  The formats are those of POSIX.1-2001 (ustar, pax) and GNU tar (long names, large numbers);
sparse members are refused.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from vmimagemanager.errors import ImageError
from vmimagemanager.images.unpacking import Unpacked

BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1 << 20
_LONGEST = 1 << 20  # of an extended header or a long name, in bytes
_LARGEST_NUMBER = 1 << 62
_CAPABILITY = "SCHILY.xattr.security.capability"


class Kind(StrEnum):
    """What a member is."""

    FILE = "file"
    FOLDER = "folder"
    SYMLINK = "symbolic link"
    LINK = "hard link"
    CHARACTER = "character device"
    BLOCK = "block device"
    FIFO = "FIFO"


_KINDS = {
    tarfile.REGTYPE: Kind.FILE,
    tarfile.AREGTYPE: Kind.FILE,
    tarfile.CONTTYPE: Kind.FILE,
    tarfile.DIRTYPE: Kind.FOLDER,
    tarfile.SYMTYPE: Kind.SYMLINK,
    tarfile.LNKTYPE: Kind.LINK,
    tarfile.CHRTYPE: Kind.CHARACTER,
    tarfile.BLKTYPE: Kind.BLOCK,
    tarfile.FIFOTYPE: Kind.FIFO,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """What a header says; names are as they are written, undecodable bytes as surrogates, ``mtime`` in seconds."""

    name: str
    kind: Kind
    size: int
    mode: int
    uid: int
    gid: int
    mtime: int
    target: str
    capability: bytes | None


class TarStream:
    """A tar that is read once; `content` gives that of the member that came last.

    Raises ImageError that names the source for anything that is damaged, cut off, or not understood.
    """

    def __init__(self, stream: Unpacked) -> None:
        self._stream = stream
        self._left = 0
        self._padding = 0

    def __iter__(self) -> Iterator[Member]:
        shared: dict[str, bytes] = {}
        own: dict[str, bytes] = {}
        while (block := self._next_header()) is not None:
            header = self._parsed(block)
            match header.type:
                case tarfile.XGLTYPE:
                    shared |= self._records(self._extension(header))
                case tarfile.XHDTYPE | tarfile.SOLARIS_XHDTYPE:
                    own |= self._records(self._extension(header))
                case tarfile.GNUTYPE_LONGNAME:
                    own["path"] = self._extension(header).rstrip(b"\0")
                case tarfile.GNUTYPE_LONGLINK:
                    own["linkpath"] = self._extension(header).rstrip(b"\0")
                case _:
                    member = self._member(header, {**shared, **own})
                    own = {}
                    self._expect(member.size)
                    yield member
        if own:
            raise self._damaged("it ends with the header of a member that does not come")

    def content(self) -> Iterator[bytes]:
        """Yield the content of the last member, once."""
        while self._left:
            piece = self._read(min(_CHUNK, self._left))
            self._left -= len(piece)
            yield piece

    def _next_header(self) -> bytes | None:
        for _ in self.content():
            pass
        self._read(self._padding)
        self._padding = 0
        block = self._read(BLOCK)
        if any(block):
            return block
        while rest := self._stream.read(_CHUNK):  # to the very end, so that what unpacks it has seen its checksum
            if any(rest):
                raise self._damaged("something follows its end")
        return None

    def _expect(self, size: int) -> None:
        self._left, self._padding = size, -size % BLOCK

    def _parsed(self, block: bytes) -> tarfile.TarInfo:
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError) as error:
            raise self._damaged("a header is none") from error
        numbers = (header.size, header.uid, header.gid, header.mode)
        if not all(0 <= number < _LARGEST_NUMBER for number in numbers):
            raise self._damaged("a header has a number that cannot be")
        return header

    def _extension(self, header: tarfile.TarInfo) -> bytes:
        if header.size > _LONGEST:
            raise self._damaged(f"an extended header has {header.size} bytes")
        self._expect(header.size)
        return b"".join(self.content())

    def _records(self, content: bytes) -> dict[str, bytes]:
        records = {}
        while content:
            digits, space, _ = content[:20].partition(b" ")
            if not space or not digits.isdigit():
                raise self._damaged("an extended header is none")
            record, content = content[: int(digits)], content[int(digits) :]
            key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
            if len(record) != int(digits) or not record.endswith(b"\n") or not equals:
                raise self._damaged("an extended header is none")
            records[key.decode("utf-8", "surrogateescape")] = value
        return records

    def _member(self, header: tarfile.TarInfo, records: Mapping[str, bytes]) -> Member:
        if header.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse.") for key in records):
            raise ImageError(
                f"'{self._stream.source}' has sparse members, which are not taken in.",
                hint="Pack it without them: tar without --sparse.",
            )
        kind = _KINDS.get(header.type)
        if kind is None:
            raise self._damaged(f"a member is of the unknown type {header.type!r}")
        size = self._number(records, "size", header.size)
        # A name is whole in its record; that of a folder ends with a slash in some tars and not in others.
        name, target = (
            records[key].decode("utf-8", "surrogateescape") if key in records else old
            for key, old in (("path", header.name), ("linkpath", header.linkname))
        )
        if "\0" in name or "\0" in target:
            raise self._damaged("a name has a zero in it")
        return Member(
            name=name,
            kind=kind,
            size=size if kind in (Kind.FILE, Kind.LINK) else 0,
            mode=header.mode & 0o7777,
            uid=self._number(records, "uid", header.uid),
            gid=self._number(records, "gid", header.gid),
            mtime=self._moment(records, header),
            target=target,
            capability=records.get(_CAPABILITY),
        )

    def _number(self, records: Mapping[str, bytes], key: str, otherwise: int) -> int:
        text = records.get(key)
        if text is None:
            return otherwise
        if not text.isdigit() or len(text) > 18:
            raise self._damaged(f"a member has the {key} {text[:20]!r}")
        return int(text)

    def _moment(self, records: Mapping[str, bytes], header: tarfile.TarInfo) -> int:
        whole = records.get("mtime", b"").partition(b".")[0]
        moment = int(whole) if whole.isdigit() and len(whole) <= 18 else int(header.mtime)
        return min(max(moment, 0), (1 << 33) - 1)  # what GNU tar can write without an extension

    def _read(self, count: int) -> bytes:
        content = self._stream.read(count)
        if len(content) != count:
            raise self._damaged("it ends too early")
        return content

    def _damaged(self, reason: str) -> ImageError:
        return ImageError(f"'{self._stream.source}' is damaged, or no tar: {reason}.")
