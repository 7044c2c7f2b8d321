"""Disk images of others: which format one is, how large its guest sees it, and whether it names files of the host.

qemu-img follows what an image names: a qcow2's backing and data file (which may be any address that QEMU knows, such as
``json:{…}``), a vmdk's extents and parent.  It is let near an image only when its header was read here.  Layouts:
QEMU's docs/interop/qcow2.rst, VMware's "Virtual Disk Format 5.0", Microsoft's [MS-VHDX], VirtualBox's VDICore.h.
"""

from __future__ import annotations

import os
import re
import struct
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vmimagemanager.durable import translate_os_errors
from vmimagemanager.errors import ImageError
from vmimagemanager.units import Size

# The largest ext4 of 4 KiB blocks and 32 bit block numbers.  Every overlay's table, every conversion and every check
# grows with what the guest sees, written or not: a disk of a pebibyte would cost each box 16 MiB and minutes.
LARGEST = Size(16 << 40)

_SECTOR = 512
_LONGEST_TEXT = 1 << 20
_QCOW2_DATA_FILE = 1 << 2
_VHDX_TABLES = (192 << 10, 256 << 10)
_VHDX_METADATA = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le
_VHDX_PARAMETERS = uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b").bytes_le
_VHDX_SIZE = uuid.UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8").bytes_le
_VHDX_PARENT = uuid.UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c").bytes_le
_VHDX_HAS_PARENT = 1 << 1
_VMDK_COMPRESSED = 1 << 16
_MOST_TABLES = 1 << 22
_VDI_KINDS = {1: "grows", 2: "is allocated"}
_VMDK_KINDS = ("monolithicSparse", "streamOptimized")


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A format: its name for qemu-img, what it begins with and where, and what reads a header and returns its size."""

    name: str
    magic: bytes
    at: int
    size: Callable[[BinaryIO, str], int]


def detect(path: Path) -> str | None:
    """Return the format that a disk image begins like, or None: a raw one cannot be told from anything else."""
    with translate_os_errors("read", path), path.open("rb") as stream:
        head = stream.read(_SECTOR)
    return next(
        (each.name for each in FORMATS if head.startswith(each.magic, each.at)),
        "vmdk" if head.startswith((b"COWD", b"# Disk DescriptorFile")) else None,
    )


def virtual_size(path: Path, disk_format: str, *, named: str) -> Size:
    """Return how large the guest sees an image that is of ``disk_format``, or raw; ``named`` is for messages.

    Raises ImageError for one that is of another format, that names another file, or that is larger than `LARGEST`.
    """
    with translate_os_errors("read", path), path.open("rb") as stream:
        if disk_format == "raw":
            size = path.stat().st_size
        else:
            found = next(each for each in FORMATS if each.name == disk_format)
            try:
                size = found.size(stream, named)
            except struct.error as error:
                raise ImageError(f"'{named}' is no {disk_format} image: it is too short.") from error
    if size > LARGEST.bytes:
        raise ImageError(
            f"The disk in '{named}' is {Size(size).human()} large, and disks of up to {LARGEST.human()} are taken in."
        )
    if size == 0:
        raise ImageError(f"The disk in '{named}' has no size: it is empty, or damaged.")
    return Size(size)


def _qcow2(stream: BinaryIO, named: str) -> int:
    magic, version, backing, _, _, size, crypt = struct.unpack(">4sIQIIQI", stream.read(36))
    if magic != b"QFI\xfb" or version not in (2, 3):
        raise ImageError(f"'{named}' is not a qcow2 image.")
    if backing:
        raise _stands_on(named, "has a backing file")
    if crypt:
        raise ImageError(f"The disk in '{named}' is encrypted.", hint="Decrypt it first with qemu-img.")
    stream.seek(72)
    if version == 3 and struct.unpack(">Q", stream.read(8))[0] & _QCOW2_DATA_FILE:
        raise _stands_on(named, "keeps its data in another file")
    return int(size)


def _vmdk(stream: BinaryIO, named: str) -> int:
    magic, _, flags, capacity, grain, at, length = struct.unpack("<4sIIQQQQ", stream.read(44))
    if magic != b"KDMV":
        raise _stands_on(named, "is a list of other files, or of an old kind")
    # With a capacity of 0, qemu-img takes the descriptor for that of a disk whose data is in the files that it names.
    if capacity == 0 or at == 0 or length == 0 or length * _SECTOR > _LONGEST_TEXT:
        raise _stands_on(named, "is a list of other files, or damaged")
    _seek(stream, named, at * _SECTOR)
    descriptor = stream.read(length * _SECTOR)
    # qemu-img looks for a parent behind the header, wherever the header says that the descriptor is.
    stream.seek(_SECTOR)
    where_qemu_looks = stream.read(20 * _SECTOR)
    if b"parentFileNameHint" in descriptor + where_qemu_looks:
        raise _stands_on(named, "stands on another file")
    text = descriptor.split(b"\0", 1)[0].decode("utf-8", "replace")
    kind = re.search(r'^\s*createType\s*=\s*"([^"]*)"', text, re.MULTILINE)
    extents = re.findall(r"^\s*(?:RW|RDONLY|NOACCESS)\s+(\d+)\s+(\S+)", text, re.MULTILINE)
    if kind is None or kind[1] not in _VMDK_KINDS or [kind for _, kind in extents] != ["SPARSE"]:
        raise _stands_on(named, "is not one file that holds all of its data")
    if not flags & _VMDK_COMPRESSED and capacity * _SECTOR <= LARGEST.bytes:
        _refuse_short_vmdk(stream, capacity, grain, named)
    return int(capacity) * _SECTOR


def _refuse_short_vmdk(stream: BinaryIO, capacity: int, grain: int, named: str) -> None:
    """Raise ImageError when data of the guest is behind the end of the file, where qemu-img would find zeros."""
    stream.seek(44)
    entries, _, directory = struct.unpack("<IQQ", stream.read(20))
    if not 0 < entries <= 512 or not 0 < grain <= 1 << 17 or capacity > grain * entries * _MOST_TABLES:
        raise ImageError(f"'{named}' is a damaged vmdk image: its tables cannot be that large.")
    count = -(-capacity // (grain * entries))
    _seek(stream, named, directory * _SECTOR)
    last = 0
    for table in struct.unpack(f"<{count}I", stream.read(4 * count)):
        if table:
            stream.seek(table * _SECTOR)
            last = max(last, *struct.unpack(f"<{entries}I", stream.read(4 * entries)))
    # 1 says that all is zero, and 0 that nothing was written.
    if last > 1 and (last + grain) * _SECTOR > stream.seek(0, os.SEEK_END):
        raise _short(named)


def _vdi(stream: BinaryIO, named: str) -> int:
    head = stream.read(0x1C8)
    (kind,) = struct.unpack_from("<I", head, 0x4C)
    (size,) = struct.unpack_from("<Q", head, 0x170)
    parents = head[0x1A8:0x1C8]  # the UUIDs of what it links to and of its parent
    if struct.unpack_from("<I", head, 0x40) != (0xBEDA107F,) or len(parents) != 32:
        raise ImageError(f"'{named}' is not a vdi image.")
    if kind not in _VDI_KINDS or any(parents):
        raise _stands_on(named, "stands on another file")
    (data,) = struct.unpack_from("<I", head, 0x158)
    block, _, _, allocated = struct.unpack_from("<4I", head, 0x178)
    if data + block * allocated > stream.seek(0, os.SEEK_END):  # qemu-img would find zeros behind the end
        raise _short(named)
    return int(size)


def _vhdx(stream: BinaryIO, named: str) -> int:
    sizes = set()
    for items in _vhdx_metadata(stream, named):
        if _VHDX_PARENT in items or _VHDX_PARAMETERS not in items or _VHDX_SIZE not in items:
            raise _stands_on(named, "stands on another file, or does not say how large it is")
        _, flags = struct.unpack_from("<II", items[_VHDX_PARAMETERS])
        if flags & _VHDX_HAS_PARENT:
            raise _stands_on(named, "stands on another file")
        sizes |= set(struct.unpack_from("<Q", items[_VHDX_SIZE]))
    if len(sizes) != 1:
        raise ImageError(f"'{named}' is a damaged vhdx image: it says {len(sizes)} sizes.")
    return int(sizes.pop())


def _vhdx_metadata(stream: BinaryIO, named: str) -> Iterator[dict[bytes, bytes]]:
    """Yield the items of the metadata that either copy of the table of regions leads to."""
    for table in _VHDX_TABLES:
        stream.seek(table)
        regions = stream.read(64 << 10)
        if regions[:4] != b"regi":
            continue
        (count,) = struct.unpack_from("<I", regions, 8)
        for number in range(min(count, 2047)):
            guid, offset, length, _ = struct.unpack_from("<16sQII", regions, 16 + 32 * number)
            if guid == _VHDX_METADATA and length:
                yield _vhdx_items(stream, named, offset)


def _vhdx_items(stream: BinaryIO, named: str, offset: int) -> dict[bytes, bytes]:
    _seek(stream, named, offset)
    table = stream.read(64 << 10)
    if table[:8] != b"metadata":
        raise ImageError(f"'{named}' is a damaged vhdx image: it has no metadata.")
    found = {}
    (count,) = struct.unpack_from("<H", table, 10)
    for number in range(min(count, 2047)):
        guid, at, _, _ = struct.unpack_from("<16sIII", table, 32 + 32 * number)
        _seek(stream, named, offset + at)
        found[guid] = stream.read(16)
    return found


def _seek(stream: BinaryIO, named: str, offset: int) -> None:
    if offset >= stream.seek(0, os.SEEK_END):
        raise ImageError(f"'{named}' is damaged: it points behind its own end.")
    stream.seek(offset)


def _short(named: str) -> ImageError:
    return ImageError(f"'{named}' is damaged: it is shorter than the data that it has to hold.")


def _stands_on(named: str, what: str) -> ImageError:
    return ImageError(
        f"The image '{named}' {what}; other files are not followed.",
        hint=f"Make it stand alone first, where you trust it: qemu-img convert -O qcow2 '{named}' OUTPUT",
    )


FORMATS = (
    Format(name="qcow2", magic=b"QFI\xfb", at=0, size=_qcow2),
    Format(name="vmdk", magic=b"KDMV", at=0, size=_vmdk),
    Format(name="vhdx", magic=b"vhdxfile", at=0, size=_vhdx),
    Format(name="vdi", magic=b"\x7f\x10\xda\xbe", at=0x40, size=_vdi),
)
NAMES = (*(each.name for each in FORMATS), "raw")
