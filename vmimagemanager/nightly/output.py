"""What a step prints, kept in a file whose size has an end: a program that never stops printing fills no disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from vmimagemanager.durable import translate_os_errors
from vmimagemanager.units import Size

MOST = Size(64 << 20)
_TAIL = 64 << 10


class Output:
    """A file that takes what a step prints; both of its streams are one here, in the order in which they came."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._room = MOST.bytes
        self._lock = Lock()  # each stream has a thread

    def write(self, chunk: bytes) -> None:
        """Keep what was printed, as long as there is room; raise SpaceError."""
        with self._lock, translate_os_errors("write", self._path):
            kept = chunk[: self._room]
            while kept:
                written = os.write(self._descriptor, kept)
                self._room -= written
                kept = kept[written:]
                if self._room == 0:
                    os.write(self._descriptor, f"\n[what came after {MOST.human()} was left out]\n".encode())


@contextmanager
def output(path: Path) -> Iterator[Output]:
    """Yield the output of a step, for the new file ``path``, which is not there when nothing was printed."""
    with translate_os_errors("write", path):
        descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o640)
    os.fchmod(descriptor, 0o640)  # whatever the umask: the folder says who may look
    try:
        yield Output(path, descriptor)
    finally:
        if os.fstat(descriptor).st_size == 0:
            path.unlink()
        os.close(descriptor)


def tail(path: Path) -> bytes:
    """Return the end of what a step has printed."""
    with translate_os_errors("read", path), path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - _TAIL))
        return stream.read()
