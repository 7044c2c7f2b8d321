"""The trap around a block of work: packages before, packages after, and what the baseline says of the difference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vmimagemanager.errors import TrappedError
from vmimagemanager.guest.inventory import Inventory, take
from vmimagemanager.trap.baseline import Baseline
from vmimagemanager.trap.verdict import Verdict, compare


class Trap:
    """A trap that was set; its ``verdict`` is there once the block has ended."""

    def __init__(self, path: Path, run: Callable[[str], bytes], *, missing_is_empty: bool = False) -> None:
        self._path = path
        self._run = run
        self._missing_is_empty = missing_is_empty
        self._baseline = Baseline()
        self._before: Inventory | None = None
        self._verdict: Verdict | None = None

    def begin(self) -> None:
        """Read the baseline and take the first inventory; raise ConfigError or GuestError."""
        if not (self._missing_is_empty and not self._path.exists()):
            self._baseline = Baseline.read(self._path)
        self._before = take(self._run)

    def end(self) -> None:
        """Take the second inventory and compare."""
        if self._before is None:
            raise ValueError("the trap was not begun")
        self._verdict = compare(self._before, take(self._run), self._baseline)

    @property
    def verdict(self) -> Verdict:
        """What the block changed, and which of it the baseline does not accept."""
        if self._verdict is None:
            raise ValueError("the verdict is there once the block has ended")
        return self._verdict

    def check(self) -> None:
        """Raise TrappedError that names what the baseline does not accept, if there is anything."""
        if self.verdict.trapped:
            items = ", ".join(package.item for package in self.verdict.unexpected)
            raise TrappedError(f"The baseline '{self._path}' does not accept: {items}.")

    def accept(self) -> None:
        """Write the baseline so that it accepts what this block brought in."""
        self._baseline.accepting(self.verdict).write(self._path)
