"""The formats that a file system is archived in: each is made of a tar stream, and gives it back."""

from __future__ import annotations

import bz2
import gzip
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

import zstandard

from vmimagemanager.durable import translate_os_errors
from vmimagemanager.errors import ImageError, TransferError
from vmimagemanager.files import cpio, tar, tree

_GZIP_LEVEL = 6  # gzip's own default
_ZSTD_LEVEL = 3  # zstd's own default
Told = Callable[[int], None]


class Format(StrEnum):
    """How an archive of a file system is kept; ``rsync`` is a tree of files, the others are one file."""

    TAR_GZ = "tar.gz"
    TAR_ZST = "tar.zst"
    CPIO_BZ2 = "cpio.bz2"
    RSYNC = "rsync"


def keep(stream: BinaryIO, kind: Format, target: Path, told: Told) -> None:
    """Read a tar stream to its end, and keep it as the new file or folder ``target``.

    ``told`` hears of how many bytes were read so far.  Raises TransferError, SpaceError or StateError; what was written
    is left then.
    """
    counted = _Counted(stream, told)
    with translate_os_errors("write", target):
        if kind is Format.RSYNC:
            tree.from_tar(counted, target)  # type: ignore[arg-type]  # it only reads
            return
        with target.open("xb") as raw:
            target.chmod(0o600)
            match kind:
                case Format.TAR_ZST:
                    compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, threads=-1, write_checksum=True)
                    with compressor.stream_writer(raw, closefd=False) as packed:
                        tar.copy_whole(counted, packed.write)
                case Format.TAR_GZ:
                    with gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=_GZIP_LEVEL, mtime=0, filename="") as file:
                        tar.copy_whole(counted, file.write)
                case Format.CPIO_BZ2:
                    with bz2.BZ2File(raw, "wb") as file2:
                        cpio.from_tar(counted, file2.write)  # type: ignore[arg-type]  # typed as a buffer


def send(source: Path, kind: Format, stream: BinaryIO) -> None:
    """Write what `keep` kept as a tar stream; raise ImageError when it is damaged."""
    from vmimagemanager.files.pack import opened

    try:
        if kind is Format.RSYNC:
            tree.to_tar(source, stream.write)
            return
        with opened(source) as content:
            if kind is Format.CPIO_BZ2:
                cpio.to_tar(content, stream.write)
            else:
                tar.copy_whole(content, stream.write)
    except TransferError as error:
        raise ImageError(f"The archive '{source}' cannot be read: {error}", hint=error.hint) from error


def pack(target: Path, feed: Callable[[BinaryIO], object]) -> None:
    """Write the tar stream that ``feed`` writes to the new file ``target``, compressed by zstd, for its owner alone."""
    with translate_os_errors("write", target), target.open("xb") as raw:
        target.chmod(0o600)
        compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True)
        with compressor.stream_writer(raw, closefd=False) as packed:
            feed(packed)


class _Counted:
    def __init__(self, stream: BinaryIO, told: Told) -> None:
        self._stream = stream
        self._told = told
        self._count = 0

    def read(self, size: int) -> bytes:
        content = self._stream.read(size)
        self._count += len(content)
        self._told(self._count)
        return content
