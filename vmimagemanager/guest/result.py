"""What came of a command in the guest."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from vmimagemanager.errors import CommandFailedError


class Channel(StrEnum):
    SSH = "ssh"
    AGENT = "agent"


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
