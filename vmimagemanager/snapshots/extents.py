"""A sparse file as a stream of its data, so that its holes are neither read nor stored, and are holes again afterwards.

For each extent that holds data: its offset and its length, two 64-bit numbers, the most significant byte first, and its
bytes; in the end the size of the file, and a length of 0.  Blocks of zeros are holes, too: a guest's RAM has reserved
blocks that nobody has written to, and the file system may not know that any more.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

_HEAD = struct.Struct(">QQ")
_CHUNK = 1 << 20
_BLOCK = 1 << 16
_ZEROS = bytes(_BLOCK)


def encode(path: Path) -> Iterator[bytes]:
    """Yield the stream of a file that nobody writes to, in pieces of a megabyte at most."""
    with path.open("rb") as stream:
        descriptor = stream.fileno()
        for start, piece in _extents(descriptor):
            yield _HEAD.pack(start, len(piece))
            yield piece
        yield _HEAD.pack(os.fstat(descriptor).st_size, 0)


def decode(read: Callable[[int], bytes], descriptor: int, *, size: int) -> None:
    """Make an empty file what a stream says; ``read`` returns as many bytes as it is asked for.

    Raises ValueError when the stream is not that of a file of ``size``; nothing is written beyond it.
    """
    at = 0
    while True:
        start, length = _HEAD.unpack(read(_HEAD.size))
        if length == 0:
            break
        if start < at or start + length > size:
            raise ValueError("its extents are not in order, or larger than the file")
        at = start + length
        for place in range(start, at, _CHUNK):
            os.pwrite(descriptor, read(min(_CHUNK, at - place)), place)
    if start != size:
        raise ValueError(f"it is of a file of {start} bytes, where {size} are expected")
    os.truncate(descriptor, size)


def _extents(descriptor: int) -> Iterator[tuple[int, bytes]]:
    """Yield the offsets and the contents of what is not zero, a megabyte at most each."""
    for begin, end in _data(descriptor):
        for at in range(begin, end, _CHUNK):
            piece = os.pread(descriptor, min(_CHUNK, end - at), at)
            first = None
            for block in range(0, len(piece) + 1, _BLOCK):
                content = piece[block : block + _BLOCK]
                is_zero = content == _ZEROS[: len(content)]
                if is_zero and first is not None:
                    yield at + first, piece[first:block]
                    first = None
                elif not is_zero and first is None:
                    first = block
            if first is not None:
                yield at + first, piece[first:]


def _data(descriptor: int) -> Iterator[tuple[int, int]]:
    at = 0
    while True:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no more data
                return
            raise
        at = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, at
