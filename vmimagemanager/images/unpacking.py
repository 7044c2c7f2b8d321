"""Compressed files of others, unpacked as a stream that has an end: whoever reads never gets more than was allowed.

A file of a few kilobytes can unpack to terabytes, and a compressed stream can ask for a window of gigabytes: both are
bounded here, whatever the file says of itself.
"""

from __future__ import annotations

import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from vmimagemanager.durable import translate_os_errors
from vmimagemanager.errors import ImageError
from vmimagemanager.units import Size

_CHUNK = 1 << 18
_MEMORY = 1 << 28  # what a decompressor may use: xz -9 takes 65 MiB, zstd --long=27 takes 128 MiB
_WINDOW = 1 << 27
GZIP, XZ, ZSTD = b"\x1f\x8b", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"


class _Readable(Protocol):
    def read(self, count: int, /) -> bytes: ...


class Unpacked:
    """A stream of at most ``limit`` bytes; a longer or a damaged one raises ImageError that names ``source``."""

    def __init__(self, stream: _Readable, *, source: str, limit: Size) -> None:
        self._stream = stream
        self._left = limit.bytes
        self._limit = limit
        self.source = source

    def read(self, count: int) -> bytes:
        """Return ``count`` bytes, or fewer at the end of the stream only."""
        pieces = []
        while count and (piece := self._piece(min(count, _CHUNK))):
            count -= len(piece)
            self._left -= len(piece)
            if self._left < 0:
                raise ImageError(
                    f"'{self.source}' unpacks to more than {self._limit.human()}, which is more than it may.",
                    hint="It may be made to fill disks.  If it is not, give its disk another size: --disk-size",
                )
            pieces.append(piece)
        return b"".join(pieces)

    def refusal(self, reason: str) -> ImageError:
        """Return what is to be raised when this is no tar that can be taken in."""
        return ImageError(f"'{self.source}' is damaged, or no tar: {reason}.")

    def _piece(self, count: int) -> bytes:
        from zstandard import ZstdError

        try:
            return self._stream.read(count)
        except (EOFError, zlib.error, lzma.LZMAError, ZstdError, gzip.BadGzipFile, MemoryError) as error:
            raise ImageError(f"'{self.source}' is damaged, or too short: it cannot be unpacked.") from error


class _Xz:
    # lzma.LZMAFile cannot be told how much memory a file may ask for.
    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._decompressor = self._new()
        self._pending = b""

    def read(self, count: int) -> bytes:
        while True:
            if self._decompressor.eof:
                rest = (self._decompressor.unused_data + self._stream.read(_CHUNK)).lstrip(b"\0")  # its padding
                if not rest:
                    return b""
                self._decompressor, self._pending = self._new(), rest
            if self._decompressor.needs_input and not self._pending:
                self._pending = self._stream.read(_CHUNK)
                if not self._pending:
                    raise EOFError
            piece = self._decompressor.decompress(self._pending, count)
            self._pending = b""
            if piece:
                return piece

    def _new(self) -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_MEMORY)


class _Zstd:
    # The stream_reader of zstandard takes a frame that was cut off for its end.
    def __init__(self, stream: BinaryIO) -> None:
        import zstandard

        self._stream = stream
        self._new = zstandard.ZstdDecompressor(max_window_size=_WINDOW).decompressobj
        self._decompressor = self._new()
        self._pieces = self._all()
        self._rest = memoryview(b"")

    def read(self, count: int) -> bytes:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._rest = memoryview(piece)
        piece, self._rest = bytes(self._rest[:count]), self._rest[count:]
        return piece

    def _all(self) -> Iterator[bytes]:
        # 4 KiB can unpack to 128 MiB at once (blocks of 128 KiB that repeat a byte, 4 bytes each): small steps.
        decompressor, started = self._new(), False
        while chunk := self._stream.read(1 << 12):
            while chunk:
                started = True
                yield decompressor.decompress(chunk)
                chunk = decompressor.unused_data if decompressor.eof else b""
                if decompressor.eof:
                    decompressor, started = self._new(), False
        if started:
            raise EOFError


def compression(head: bytes) -> Callable[[BinaryIO], _Readable] | None:
    """Return what unpacks a file that begins with ``head``, or None when that is no compression that is known."""
    if head.startswith(GZIP):
        return lambda stream: gzip.GzipFile(fileobj=stream)
    if head.startswith(XZ):
        return _Xz
    if head.startswith(ZSTD):
        return _Zstd
    return None


@contextmanager
def unpacked(path: Path, *, source: str, limit: Size) -> Iterator[Unpacked]:
    """Open a file, compressed by gzip, xz, zstd or not at all, as a stream of at most ``limit`` bytes."""
    with translate_os_errors("read", path):
        stream = path.open("rb")
    with stream:
        unpack = compression(stream.read(8))
        stream.seek(0)
        yield Unpacked(unpack(stream) if unpack is not None else stream, source=source, limit=limit)
