"""What came of a command in the guest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from vmimagemanager.config import Channel
from vmimagemanager.deadline import Deadline
from vmimagemanager.errors import CommandFailedError


class Runner(Protocol):
    """Something that runs programs in a guest: its agent, or an SSH connection."""

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        limit: timedelta | Deadline,
        check: Callable[[], None] = lambda: None,
    ) -> Result:
        """Run a program to its end; ``check`` raises when there is no more hope."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a command ended: its exit status, all that it wrote, the seconds it took, and the channel that was used.

    A command that a signal ended has status 255, as with ssh(1).
    """

    command: str
    status: int
    stdout: bytes
    stderr: bytes
    seconds: float
    channel: Channel

    @property
    def text(self) -> str:
        """Standard output as text; bytes that are not UTF-8 are replaced."""
        return self.stdout.decode("utf-8", "replace")

    def check(self) -> Result:
        """Return itself, or raise CommandFailedError when the status is not 0."""
        if self.status != 0:
            raise CommandFailedError(
                f"The command '{self.command}' ended in the guest with status {self.status}.",
                status=self.status,
                stdout=self.stdout,
                stderr=self.stderr,
            )
        return self
