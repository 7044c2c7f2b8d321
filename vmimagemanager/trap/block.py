"""The trap around a block of work: the guest before, the guest after, and what is to be said of the difference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vmimagemanager.errors import TrappedError
from vmimagemanager.guest.inventory import Inventory, take
from vmimagemanager.trap import declared as declarations
from vmimagemanager.trap.baseline import Baseline
from vmimagemanager.trap.explain import Need
from vmimagemanager.trap.policy import Policy
from vmimagemanager.trap.verdict import Verdict, compare


class Trap:
    """A trap that was set; its ``verdict`` is there once the block has ended."""

    def __init__(
        self,
        run: Callable[[str], bytes],
        *,
        baseline: Path,
        policy: Path | None = None,
        declared: tuple[Path, ...] = (),
        missing_is_empty: bool = False,
        before: Inventory | None = None,
    ) -> None:
        self._path = baseline
        self._policy_path = policy
        self._declared = declared
        self._run = run
        self._missing_is_empty = missing_is_empty
        self._baseline = Baseline()
        self._policy = Policy()
        self._needs: list[Need] | None = None
        self._before = before
        self._verdict: Verdict | None = None

    def begin(self, *, rebase: bool = False) -> None:
        """Read the files and take the first inventory, unless there is one; raise ConfigError or GuestError.

        A baseline of another base is refused, unless it is to be written anew.
        """
        if not (self._missing_is_empty and not self._path.exists()):
            self._baseline = Baseline.read(self._path)
        if self._policy_path is not None:
            self._policy = Policy.read(self._policy_path)
        if self._declared:
            self._needs = [need for path in self._declared for need in declarations.read(path)]
        if self._before is None:
            self._before = take(self._run)
        if not rebase:
            self._baseline.require(self._before, source=self._path)

    def end(self) -> None:
        """Take the second inventory and compare."""
        if self._before is None:
            raise ValueError("the trap was not begun")
        after = take(self._run, since=self._before.clock)
        self._verdict = compare(self._before, after, self._baseline, policy=self._policy, needs=self._needs)

    @property
    def verdict(self) -> Verdict:
        """What the block changed, and which of it the baseline does not accept."""
        if self._verdict is None:
            raise ValueError("the verdict is there once the block has ended")
        return self._verdict

    @property
    def baseline(self) -> Baseline:
        """The baseline as it was read."""
        return self._baseline

    def check(self) -> None:
        """Raise TrappedError that names what the baseline does not accept, if there is anything."""
        if self.verdict.trapped:
            items = ", ".join(dict.fromkeys(finding.item for finding in self.verdict.findings if finding.counts))
            raise TrappedError(f"The baseline '{self._path}' does not accept: {items}.")

    def accept(self, *, rebase: bool = False) -> Baseline:
        """Write the baseline so that it accepts what came in, with ``rebase`` nothing else; return it."""
        made = Baseline.of(self.verdict) if rebase else self._baseline.accepting(self.verdict)
        made.write(self._path)
        return made
