"""The exception tree: what can go wrong, its exit code, and what to do next.

The line that matters to a nightly job is drawn by the code: 111 to 125 say that the testbed failed, everything else
speaks of the thing under test.  Each family has one code; a subclass inherits its family's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar


class VmimError(Exception):
    """The root of all errors that this package raises on purpose.

    ``message`` is one whole sentence, ``hint`` names the next command to try (or is empty) and ``detail`` holds lines
    to quote below the message: the last console lines, a program's standard error.
    """

    exit_code: ClassVar[int] = 125
    family: ClassVar[str] = "internal"

    def __init__(self, message: str, *, hint: str = "", detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.detail = detail

    def __str__(self) -> str:
        return self.message


class UsageError(VmimError):
    """A name, an option or a value that nobody can act upon."""

    exit_code = 2
    family = "usage"


class ConfigError(UsageError):
    """A configuration file holds what is not understood; the message names file, key and what was expected."""


class HypervisorError(VmimError):
    """libvirt or QEMU refused, failed, or is not there."""

    exit_code = 111
    family = "hypervisor"


class HypervisorUnreachableError(HypervisorError):
    """No connection to libvirt could be opened, or the connection was lost."""


class ForeignDomainError(HypervisorError):
    """A domain that does not carry our metadata would have been touched."""


class DomainNotFoundError(HypervisorError):
    """libvirt knows no domain of this name."""


class ImageError(VmimError):
    """An image is missing, damaged, in use, or could not be built."""

    exit_code = 112
    family = "image"


class SnapshotError(VmimError):
    """A snapshot is missing, damaged, in use, or could not be taken or restored."""

    exit_code = 113
    family = "snapshot"


class GuestError(VmimError):
    """The system inside the box did not do what it was asked for."""

    exit_code = 114
    family = "guest"


class GuestUnreachableError(GuestError):
    """The guest does not answer on a channel: the agent, or SSH."""


class HostKeyError(GuestError):
    """The guest showed a host key that is not the one that the box is known by."""


class GuestPanicError(GuestError):
    """The guest's kernel panicked, or the guest stopped by itself while it was waited for."""


class LeaseError(VmimError):
    """Somebody else has the right to the box: the message names the holder."""

    exit_code = 115
    family = "lease"


class BoxHeldError(LeaseError):
    """The box is kept by a hold: a record with an owner, a reason and an end."""


class SpaceError(VmimError):
    """The disk or the memory of the host does not suffice."""

    exit_code = 116
    family = "space"


class ToolError(VmimError):
    """A program on the host is missing, failed, or was ended by a signal."""

    exit_code = 117
    family = "tool"

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        detail: str = "",
        argv: Sequence[str] = (),
        status: int | None = None,
    ) -> None:
        super().__init__(message, hint=hint, detail=detail)
        self.argv = tuple(argv)
        self.status = status


class HookError(VmimError):
    """A hook failed or exceeded its time limit; ``status`` is its own exit status, None when it was ended."""

    exit_code = 118
    family = "hook"

    def __init__(self, message: str, *, hint: str = "", detail: str = "", status: int | None = None) -> None:
        super().__init__(message, hint=hint, detail=detail)
        self.status = status


class DeadlineError(VmimError):
    """Something did not happen in time; ``waited_for`` names it and ``seconds`` says how long it was waited for."""

    exit_code = 119
    family = "deadline"

    def __init__(
        self, message: str, *, hint: str = "", detail: str = "", waited_for: str = "", seconds: float = 0.0
    ) -> None:
        super().__init__(message, hint=hint, detail=detail)
        self.waited_for = waited_for
        self.seconds = seconds


class BoxError(VmimError):
    """A box does not exist, exists already, or is in a state in which the verb makes no sense."""

    exit_code = 120
    family = "box"


class BoxNotFoundError(BoxError):
    """No box of this name is defined."""


class StateError(VmimError):
    """The state directory is damaged, belongs to another host or to another version, or may not be read."""

    exit_code = 121
    family = "state"


class TransferError(VmimError):
    """A file could not be copied into or out of the guest."""

    exit_code = 122
    family = "transfer"


class SeveralError(VmimError):
    """Several boxes failed, for different reasons; ``errors`` maps each box's name to its error."""

    exit_code = 123
    family = "several"

    def __init__(self, message: str, *, errors: dict[str, VmimError]) -> None:
        super().__init__(message, hint="", detail="")
        self.errors = errors


class HostError(VmimError):
    """This host is not fit for boxes: the doctor found a failure."""

    exit_code = 124
    family = "host"


TRAPPED = 100
TRAPPED_AND_FAILED = 101
INTERRUPTED = 130


class CommandFailedError(VmimError):
    """A command ran in the guest and ended with a status other than zero: the thing under test failed.

    On the command line its exit code is the guest's own, so ``exit_code`` here serves only where none is known.
    """

    exit_code = 1
    family = "command"

    def __init__(self, message: str, *, status: int, stdout: bytes = b"", stderr: bytes = b"") -> None:
        super().__init__(message, detail=stderr.decode("utf-8", "replace").rstrip())
        self.status = status
        self.stdout = stdout
        self.stderr = stderr


class TrappedError(VmimError):
    """The dependency trap found what the baseline does not accept."""

    exit_code = TRAPPED
    family = "trap"


def families() -> Iterator[type[VmimError]]:
    """Yield the classes that own an exit code, in the order of their codes."""
    classes: list[type[VmimError]] = [VmimError, *VmimError.__subclasses__()]
    owners = [cls for cls in classes if "exit_code" in vars(cls)]
    yield from sorted(owners, key=lambda cls: cls.exit_code)
