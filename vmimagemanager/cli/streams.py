"""The guest's standard streams, tied to ours byte by byte."""

from __future__ import annotations

import _thread
import os
import sys
from collections.abc import Callable
from types import TracebackType
from typing import BinaryIO

Sink = Callable[[bytes], object]


class Streams:
    """Sinks for a command's output; a context manager around the command.

    Nothing is kept between guest and reader: what comes is written at once.  A reader that goes away ends the command
    with BrokenPipeError, as a local program would end.  With ``capture`` the output is left to the result, and with
    ``all_to_stderr`` standard output stays free for a document.
    """

    def __init__(self, *, capture: bool = False, all_to_stderr: bool = False) -> None:
        self._broken = False
        self.stdout: Sink | None = (
            None if capture else self._writer((sys.stderr if all_to_stderr else sys.stdout).buffer)
        )
        self.stderr: Sink | None = None if capture else self._writer(sys.stderr.buffer)

    def __enter__(self) -> Streams:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._broken:
            raise BrokenPipeError from error

    def _writer(self, buffer: BinaryIO) -> Sink:
        def write(chunk: bytes) -> None:
            try:
                buffer.write(chunk)
                buffer.flush()
            except BrokenPipeError:
                # This runs in a thread of the connection, which would read on for ever: end the command itself.
                if not self._broken:
                    self._broken = True
                    _thread.interrupt_main()
                raise

        return write


def given_input() -> bytes | BinaryIO:
    """Return standard input, unbuffered: a thread that waits in a buffered one keeps the interpreter from ending."""
    try:
        descriptor = sys.stdin.fileno()
    except (AttributeError, OSError, ValueError):  # closed, or a test's
        return b""
    return os.fdopen(descriptor, "rb", buffering=0, closefd=False)
