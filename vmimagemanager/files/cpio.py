"""Archives of cpio's portable format ("newc"), made of a tar stream and turned into one.

The format has no place for extended attributes, ACLs, holes and parts of seconds.  What a member has of these is said
by a member before it, whose name begins with `ATTRIBUTES` and whose content is JSON; other programs unpack that, too.
A content of 4 GiB or more cannot be told at all.

The format is that of cpio(5) of libarchive: a magic, 13 numbers of 8 hexadecimal digits, the name, the content, each
padded to four bytes.
"""

from __future__ import annotations

import io
import json
import os
import stat
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from vmimagemanager.errors import TransferError
from vmimagemanager.files import tar
from vmimagemanager.files.tarstream import TarStream

MAGIC = b"070701"
ATTRIBUTES = ".vmimagemanager-attributes/"
_TRAILER = "TRAILER!!!"
_MOST = 0xFFFFFFFF
_LONGEST_NAME = 1 << 16
_LONGEST_ATTRIBUTES = 4 << 20

Write = Callable[[bytes], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    number: int
    mode: int
    user: int
    group: int
    links: int
    time: int
    size: int
    device: tuple[int, int]
    name: str


def from_tar(stream: BinaryIO, write: Write) -> None:
    """Write a tar stream as cpio; raise TransferError for what cpio cannot hold."""
    numbers: dict[str, int] = {}
    reader = TarStream(stream, holes=True)
    for count, member in enumerate(reader, 1):
        _write_member(reader, member, count, numbers, write=write)
    write(_head(_Head(number=0, mode=0, user=0, group=0, links=1, time=0, size=0, device=(0, 0), name=_TRAILER)))


def to_tar(stream: BinaryIO, write: Write, *, begun: bool = False) -> None:
    """Write a cpio as a tar stream; ``begun`` says that the first magic was read.  Raises TransferError."""
    first: dict[int, str] = {}
    said: dict[str, object] = {}
    while (head := _read_head(stream, begun=begun)).name != _TRAILER:
        begun = False
        if head.name.startswith(ATTRIBUTES):
            said = _read_attributes(stream, head)
            continue
        _send_member(stream, head, said, first, write=write)
        said = {}
    write(tar.END)


def _write_member(
    reader: TarStream, member: tarfile.TarInfo, count: int, numbers: dict[str, int], *, write: Write
) -> None:
    number = numbers.get(member.linkname, count) if member.islnk() else count
    content: BinaryIO | None = None
    size = 0
    if member.issym():
        target = os.fsencode(member.linkname)
        content, size = io.BytesIO(target), len(target)
    elif member.isreg():
        size = member.size
    if size > _MOST:
        raise TransferError(
            f"'{tar.shown(member.name)}' has {size} bytes, and cpio holds no file of 4 GiB or more.",
            hint="Choose another format: tar.zst",
        )
    sparse = tar.extents_of(member)
    said: dict[str, object] = {}
    if member.islnk():
        said["link"] = _text(member.linkname)
    if sparse is not None:
        said["extents"] = [extent for extent in sparse if extent[1]]
    if kept := tar.attributes(member):
        said["attributes"] = {_text(key): _text(value) for key, value in kept.items()}
    if said:
        text = json.dumps(said).encode()
        write(
            _head(
                _Head(
                    number=0,
                    mode=stat.S_IFREG | 0o600,
                    user=0,
                    group=0,
                    links=1,
                    time=0,
                    size=len(text),
                    device=(0, 0),
                    name=f"{ATTRIBUTES}{count:08}",
                )
            )
        )
        write(text + bytes(-len(text) % 4))
    kind = tar.KINDS.get(member.type, stat.S_IFREG)
    device = (member.devmajor, member.devminor) if member.ischr() or member.isblk() else (0, 0)
    numbered = kind == stat.S_IFREG and (size > 0 or member.islnk())
    if kind == stat.S_IFREG and not member.islnk():
        numbers[member.name] = number
    write(
        _head(
            _Head(
                number=number,
                mode=kind | stat.S_IMODE(member.mode),
                user=member.uid,
                group=member.gid,
                links=2 if numbered else 1,
                time=min(max(int(member.mtime), 0), _MOST),
                size=size,
                device=device,
                name=member.name,
            )
        )
    )
    if size:
        tar.copied(content or reader.content(), write, size)
        write(bytes(-size % 4))


def _send_member(
    stream: BinaryIO, head: _Head, said: dict[str, object], first: dict[int, str], *, write: Write
) -> None:
    member = tarfile.TarInfo(head.name)
    member.mode, member.uid, member.gid, member.mtime = stat.S_IMODE(head.mode), head.user, head.group, head.time
    kept = said.get("attributes", {})
    assert isinstance(kept, dict)
    member.pax_headers = {_untext(key): _untext(value) for key, value in kept.items()}
    kind = stat.S_IFMT(head.mode)
    link = said.get("link")
    if kind == stat.S_IFLNK:
        member.type, member.linkname = tarfile.SYMTYPE, os.fsdecode(_exactly(stream, head.size))
        _exactly(stream, -head.size % 4)
    elif kind in tar.TYPES:
        member.type = tar.TYPES[kind]
        member.devmajor, member.devminor = head.device
    elif kind != stat.S_IFREG:
        raise TransferError(f"The archive is damaged: '{tar.shown(head.name)}' is of no kind.")
    elif link is not None or (head.links > 1 and head.size == 0 and head.number in first):
        member.type = tarfile.LNKTYPE
        member.linkname = _untext(str(link)) if link is not None else first[head.number]
    else:
        if head.links > 1:
            first.setdefault(head.number, head.name)
        member.size = head.size
        tar.write_file(write, member, stream, _extents(said, head.size))
        _exactly(stream, -head.size % 4)
        return
    write(tar.head(member))


def _extents(said: dict[str, object], size: int) -> list[tuple[int, int]] | None:
    extents = said.get("extents")
    if extents is None:
        return None
    try:
        found = [(int(offset), int(length)) for offset, length in extents]  # type: ignore[attr-defined]  # TypeError
    except (TypeError, ValueError) as error:
        raise TransferError("The archive is damaged: its holes make no sense.") from error
    at = 0
    for offset, length in found:
        if offset < at or length < 0 or offset + length > size:
            raise TransferError("The archive is damaged: its holes make no sense.")
        at = offset + length
    return found


def _head(head: _Head) -> bytes:
    name = os.fsencode(head.name) + b"\0"
    fields = (head.number, head.mode, head.user, head.group, head.links, head.time, head.size, 0, 0, *head.device)
    text = MAGIC + b"".join(b"%08X" % field for field in (*fields, len(name), 0)) + name
    return text + bytes(-len(text) % 4)


def _read_head(stream: BinaryIO, *, begun: bool) -> _Head:
    if not begun and _exactly(stream, len(MAGIC)) != MAGIC:
        raise TransferError("The archive is damaged: a member does not begin as one of cpio's 'newc' format does.")
    text = _exactly(stream, 13 * 8)
    try:
        fields = [int(text[at : at + 8], 16) for at in range(0, 13 * 8, 8)]
    except ValueError as error:
        raise TransferError("The archive is damaged: a member's head holds no numbers.") from error
    if not 1 < fields[11] <= _LONGEST_NAME:
        raise TransferError("The archive is damaged: a member has no name, or one that is too long.")
    name = _exactly(stream, fields[11])
    _exactly(stream, -(len(MAGIC) + len(text) + len(name)) % 4)
    return _Head(
        number=fields[0],
        mode=fields[1],
        user=fields[2],
        group=fields[3],
        links=fields[4],
        time=fields[5],
        size=fields[6],
        device=(fields[9], fields[10]),
        name=os.fsdecode(name.rstrip(b"\0")),
    )


def _read_attributes(stream: BinaryIO, head: _Head) -> dict[str, object]:
    if head.size > _LONGEST_ATTRIBUTES:
        raise TransferError("The archive is damaged: the attributes of a member are too long.")
    text = _exactly(stream, head.size)
    _exactly(stream, -head.size % 4)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TransferError("The archive is damaged: the attributes of a member make no sense.") from error
    if not isinstance(found, dict) or not isinstance(found.get("attributes", {}), dict):
        raise TransferError("The archive is damaged: the attributes of a member make no sense.")
    return found


def _exactly(stream: BinaryIO, count: int) -> bytes:
    content = b""
    while len(content) < count:
        chunk = stream.read(count - len(content))
        if not chunk:
            raise TransferError("The archive ends before its end.")
        content += chunk
    return content


def _text(value: str) -> str:
    """Return bytes, which Python hides in text, as text that JSON can hold: one character for each byte."""
    return value.encode("utf-8", "surrogateescape").decode("latin-1")


def _untext(value: object) -> str:
    try:
        return str(value).encode("latin-1").decode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise TransferError("The archive is damaged: the attributes of a member make no sense.") from error
