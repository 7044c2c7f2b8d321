"""What a guest's command reads and writes: our own streams, byte for byte."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from vmimagemanager.box import Box
    from vmimagemanager.guest.result import Result

Sink = Callable[[bytes], object]


class Streams:
    """Sinks for a command's output.

    Nothing is kept between guest and reader: what comes is written at once.  A reader that goes away ends the command
    with BrokenPipeError, as a local program would end.  With ``capture`` the output is left to the result, and with
    ``all_to_stderr`` standard output stays free for a document.
    """

    def __init__(self, *, capture: bool = False, all_to_stderr: bool = False) -> None:
        self.stdout: Sink | None = None if capture else _writer((sys.stderr if all_to_stderr else sys.stdout).buffer)
        self.stderr: Sink | None = None if capture else _writer(sys.stderr.buffer)

    def run(self, box: Box, words: Sequence[str], *, limit: timedelta | None, no_stdin: bool) -> Result:
        """Run a command in the box with our streams as its own, and return how it ended, whatever its status."""
        stdin = b"" if no_stdin else _given_input()
        return box.run(words, stdin=stdin, limit=limit, check=False, stdout=self.stdout, stderr=self.stderr)


def _writer(buffer: BinaryIO) -> Sink:
    def write(chunk: bytes) -> None:
        buffer.write(chunk)
        buffer.flush()

    return write


def _given_input() -> bytes | BinaryIO:
    # Unbuffered: a thread that waits in a buffered one keeps the interpreter from ending.
    try:
        descriptor = sys.stdin.fileno()
    except (AttributeError, OSError, ValueError):  # closed, or a test's
        return b""
    return os.fdopen(descriptor, "rb", buffering=0, closefd=False)
