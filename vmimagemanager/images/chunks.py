"""Blobs in pieces, for a shared store: what two blobs have in common travels and lies there once.

A blob is cut after a block of 64 KiB, the cluster of a qcow2, whose CRC-32 ends with two zero bits, and after 1 MiB at
the latest.  So where a cut is depends on the content alone, and a cluster that comes in between moves what follows it
without changing the pieces: an image that was built anew shares most of them with the one before.  A piece is known by
its BLAKE2b of 256 bits, and kept compressed by zstd.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vmimagemanager.durable import translate_os_errors
from vmimagemanager.errors import ImageError

BLOCK = 64 << 10
LONGEST = 16 * BLOCK
LARGEST_PACKED = LONGEST + (LONGEST >> 4)  # what cannot be compressed grows a little
_CUT = 0b11
_TITLE = "vmimagemanager chunks 1"
_LINE = re.compile(r"([0-9a-f]{64}) ([1-9][0-9]{0,6})", re.ASCII)
_DIGEST_SIZE = 32
_LARGEST_WINDOW = 1 << 23  # what a decompressor may be made to use, in bytes


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a blob: its digest in hexadecimal and its bytes."""

    digest: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """A blob's chunks in their order, and the SHA-512 of all of it."""

    chunks: tuple[Chunk, ...]
    sha512: str

    @property
    def size(self) -> int:
        return sum(chunk.size for chunk in self.chunks)

    def placed(self) -> Iterator[tuple[int, Chunk]]:
        """Yield each chunk with its offset."""
        at = 0
        for chunk in self.chunks:
            yield at, chunk
            at += chunk.size

    def text(self) -> str:
        """Return them as they are kept."""
        return "\n".join([_TITLE, *(f"{chunk.digest} {chunk.size}" for chunk in self.chunks), ""])


def parse(content: bytes, *, sha512: str, source: str) -> Pieces:
    """Read a list of chunks that somebody else wrote; raise ImageError that names ``source``."""
    title, *lines = content.decode("ascii", "replace").split("\n")
    found = [_LINE.fullmatch(line) for line in lines[:-1]]
    if title != _TITLE or lines[-1:] != [""] or None in found:
        raise ImageError(f"'{source}' is not a list of the pieces of a file.")
    chunks = tuple(Chunk(match[1], int(match[2])) for match in found if match is not None)
    if any(chunk.size > LONGEST for chunk in chunks):
        raise ImageError(f"'{source}' speaks of a piece that is larger than pieces are.")
    return Pieces(chunks=chunks, sha512=sha512)


def cut(path: Path) -> Pieces:
    """Cut a file into chunks, reading it once."""
    whole, chunks = hashlib.sha512(), []
    with translate_os_errors("read", path), path.open("rb") as stream:
        for piece in _pieces(stream):
            whole.update(piece)
            chunks.append(Chunk(digest_of(piece), len(piece)))
    return Pieces(chunks=tuple(chunks), sha512=whole.hexdigest())


def digest_of(piece: bytes) -> str:
    """Return what a piece is known by."""
    return hashlib.blake2b(piece, digest_size=_DIGEST_SIZE).hexdigest()


def pack(piece: bytes) -> bytes:
    """Compress a piece."""
    import zstandard

    return zstandard.ZstdCompressor(level=3).compress(piece)


def unpack(packed: bytes, chunk: Chunk) -> bytes:
    """Return the piece that ``chunk`` speaks of; raise ValueError for anything else, however much that unpacks to."""
    import zstandard

    reader = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).stream_reader(packed)
    piece = b""
    try:
        while len(piece) <= chunk.size and (more := reader.read(chunk.size + 1 - len(piece))):
            piece += more
    except zstandard.ZstdError as error:
        raise ValueError("it is not zstd") from error
    if len(piece) != chunk.size or digest_of(piece) != chunk.digest:
        raise ValueError("its content is not what its name says")
    return piece


def _pieces(stream: BinaryIO) -> Iterator[bytes]:
    piece = bytearray()
    while block := stream.read(BLOCK):
        piece += block
        if zlib.crc32(block) & _CUT == 0 or len(piece) >= LONGEST:
            yield bytes(piece)
            piece.clear()
    if piece:
        yield bytes(piece)
