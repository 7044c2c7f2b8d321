"""What goes into a guest: folders and files of the host as a tar stream, and archives as they are."""

from __future__ import annotations

import bz2
import gzip
import lzma
import stat
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

import zstandard

from vmimagemanager.errors import TransferError
from vmimagemanager.files import cpio, tar
from vmimagemanager.files.tarstream import BLOCK

_KINDS, _PACKINGS = ("tar", "cpio"), ("", ".gz", ".bz2", ".xz", ".zst")
SUFFIXES = (*(f".{kind}{packing}" for kind in _KINDS for packing in _PACKINGS), ".tgz", ".tbz2", ".txz", ".tzst")
Feed = Callable[[BinaryIO], object]
_LARGEST_WINDOW = 1 << 27  # what a decompressor may be made to use, in bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Laying:
    """What writes a tar stream, and the folder of a guest that it is to be laid over."""

    feed: Feed
    folder: PurePosixPath


def laying(source: Path, folder: PurePosixPath) -> Laying:
    """Return how a source of the user's is laid: an archive as it is, a folder's content, or a file by its name.

    Raises TransferError when there is none.
    """
    if not source.exists():
        raise TransferError(f"There is no file or folder '{source}' on the host.")
    if is_archive(source):
        return Laying(feed=lambda stream: send_archive(source, stream), folder=folder)
    name = "." if source.is_dir() else source.name
    return Laying(feed=lambda stream: pack(source, stream, name), folder=folder)


def is_archive(path: Path) -> bool:
    """Tell whether a file's name says that it is an archive."""
    return path.is_file() and path.name.lower().endswith(SUFFIXES)


def pack(source: Path, stream: BinaryIO, name: str) -> int:
    """Write a file, or a folder with all that is in it, as ``name``; return the bytes of its files.

    Everything belongs to the user who unpacks it.  A folder of the name ``.`` brings its content only.  Raises
    TransferError for what is neither a file, a folder nor a symbolic link, and OSError.
    """
    written = 0
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.GNU_FORMAT, errors="surrogateescape") as archive:
        for path, member_name in _found(source, name):
            if member_name == ".":
                continue
            member = _described(archive, path, member_name)
            if member.isreg():
                with path.open("rb") as content:
                    _add(archive, member, content)
                written += member.size
            else:
                archive.addfile(member)
            tar.forget_members(archive)
    return written


def send_archive(source: Path, stream: BinaryIO) -> None:
    """Write an archive of the user's as a tar stream: a tar as it is, a cpio as a tar of the same.

    Raises TransferError for what is neither, and OSError.
    """
    with opened(source) as content:
        first = content.read(len(cpio.MAGIC))
        if first == cpio.MAGIC:
            cpio.to_tar(content, stream.write, begun=True)
            return
        block = first + _exactly(content, BLOCK - len(first))
        if any(block):
            with tar.translated():
                tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        stream.write(block)
        tar.copy_whole(content, stream.write, block)


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Yield what a file holds, decompressed by what it begins with: gzip, bzip2, xz, zstd, or nothing of these."""
    with path.open("rb") as raw:
        magic = raw.read(6)
        raw.seek(0)
        try:
            yield _decompressed(magic, raw)
        except (EOFError, lzma.LZMAError, zlib.error, zstandard.ZstdError, gzip.BadGzipFile) as error:
            raise TransferError(f"The archive '{path}' is damaged: {error}.") from error


def _decompressed(magic: bytes, raw: BinaryIO) -> BinaryIO:
    if magic.startswith(b"\x1f\x8b"):
        return cast("BinaryIO", gzip.GzipFile(fileobj=raw))
    if magic.startswith(b"BZh"):
        return cast("BinaryIO", bz2.BZ2File(raw))
    if magic.startswith(b"\xfd7zXZ"):
        return cast("BinaryIO", lzma.LZMAFile(raw))
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        decompressor = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
        return cast("BinaryIO", decompressor.stream_reader(raw, read_across_frames=True))
    return raw


def _found(source: Path, name: str) -> Iterator[tuple[Path, str]]:
    yield source, name
    if source.is_dir() and not source.is_symlink():
        for entry in sorted(source.iterdir()):
            yield from _found(entry, f"{name}/{entry.name}")


def _described(archive: tarfile.TarFile, path: Path, name: str) -> tarfile.TarInfo:
    mode = path.lstat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
        raise TransferError(f"'{path}' is neither a file, a folder nor a symbolic link.")
    member = archive.gettarinfo(path, name)
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def _add(archive: tarfile.TarFile, member: tarfile.TarInfo, content: BinaryIO) -> None:
    try:
        archive.addfile(member, content)
    except OSError as error:
        if "unexpected end of data" in str(error):
            raise TransferError(f"'{member.name}' became shorter while it was read.") from error
        raise


def _exactly(stream: BinaryIO, count: int) -> bytes:
    content = b""
    while len(content) < count and (chunk := stream.read(count - len(content))):
        content += chunk
    return content
