"""The trap around a block of work: the guest before, the guest after, and what is to be said of the difference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from vmimagemanager.errors import TrappedError, UsageError, VmimError
from vmimagemanager.guest.inventory import Inventory, Package, take
from vmimagemanager.trap import declared as declarations
from vmimagemanager.trap import spec
from vmimagemanager.trap.baseline import Baseline
from vmimagemanager.trap.explain import Need
from vmimagemanager.trap.policy import Policy
from vmimagemanager.trap.used import Usage, spare
from vmimagemanager.trap.verdict import Verdict, compare


class Tracer(Protocol):
    """Finds out which files of the guest are used from `begin`, which returns the programs that run, to `end`."""

    def begin(self) -> frozenset[bytes]: ...
    def end(self) -> Mapping[bytes, frozenset[bytes]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a trap goes by: the baseline's file (None: nothing may be new), the policy's, and those that declare needs.

    ``missing_is_empty`` takes a baseline file that does not exist for one that accepts nothing; ``clean`` says that
    nothing at all may be left behind.
    """

    baseline: Path | None
    policy: Path | None = None
    declared: tuple[Path, ...] = ()
    missing_is_empty: bool = False
    clean: bool = False


class Trap:
    """A trap that was set; its ``verdict`` is there once the block has ended.

    A ``tracer`` also finds out what the block uses, of which ``idle``, a command that does nothing, is subtracted.
    """

    def __init__(
        self,
        run: Callable[[str], bytes],
        settings: Settings,
        *,
        tracer: Tracer | None = None,
        idle: Callable[[], object] = lambda: None,
        before: Inventory | None = None,
    ) -> None:
        if tracer is not None and not settings.declared:
            raise UsageError(
                "What is used cannot be compared with what is declared: nothing is declared.",
                hint="Name a file that says what is needed, such as debian/control: --declared FILE",
            )
        self._settings = settings
        self._run = run
        self._tracer = tracer
        self._do_nothing = idle
        self._idle: frozenset[bytes] = frozenset()
        self._usage: Usage | None = None
        self._baseline = Baseline()
        self._policy = Policy()
        self._needs: list[Need] | None = None
        self._before = before
        self._after: Inventory | None = None
        self._verdict: Verdict | None = None

    def begin(self, *, rebase: bool = False) -> None:
        """Read the files and take the first inventory, unless there is one; raise ConfigError or GuestError.

        A baseline of another base is refused, unless it is to be written anew.
        """
        settings = self._settings
        path = settings.baseline
        if path is not None and not (settings.missing_is_empty and not path.exists()):
            self._baseline = Baseline.read(path)
        if settings.policy is not None:
            self._policy = Policy.read(settings.policy)
        if settings.clean:
            self._policy = self._policy.for_nothing_left()
        if settings.declared:
            self._needs = [need for path in settings.declared for need in self._declared(path)]
        if self._tracer is not None:
            programs = self._tracer.begin()
            self._do_nothing()
            self._idle = programs.union(self._tracer.end())
        if self._before is None:
            self._before = take(self._run)
        if path is not None and not rebase:
            self._baseline.require(self._before, source=path)
        if self._tracer is not None:
            self._tracer.begin()

    def end(self) -> None:
        """Find out what was used, take the second inventory, and compare."""
        if self._before is None:
            raise ValueError("the trap was not begun")
        if self._tracer is not None:
            self._usage = Usage(files=self._tracer.end(), idle=self._idle)
        self._after = take(self._run, since=self._before.clock)
        self._judge(self._before, self._after)

    def proven(self, needed: Mapping[str, str], cleared: frozenset[str]) -> None:
        """Let the verdict say what a proof came to: which items are needed, and why, and which are not."""
        if self._usage is None or self._before is None or self._after is None:
            raise ValueError("nothing was traced")
        self._usage = replace(self._usage, needed=needed, cleared=cleared)
        self._judge(self._before, self._after)

    def _declared(self, path: Path) -> list[Need]:
        return spec.read(path, self._run) if path.suffix == spec.SUFFIX else declarations.read(path)

    def _judge(self, before: Inventory, after: Inventory) -> None:
        self._verdict = compare(
            before, after, self._baseline, policy=self._policy, needs=self._needs, usage=self._usage
        )

    def abandon(self) -> None:
        """Leave the guest as it would be without the trap, after a block that failed."""
        if self._tracer is not None and self._usage is None:
            with suppress(VmimError):
                self._tracer.end()

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
            path = self._settings.baseline
            raise TrappedError(
                f"Left behind: {items}." if path is None else f"The baseline '{path}' does not accept: {items}."
            )

    def accept(self, *, rebase: bool = False) -> Baseline:
        """Write the baseline so that it accepts what came in, with ``rebase`` nothing else; return it."""
        if self._settings.baseline is None:
            raise UsageError("There is no baseline to write.")
        made = Baseline.of(self.verdict) if rebase else self._baseline.accepting(self.verdict)
        made.write(self._settings.baseline)
        return made

    @property
    def suspects(self) -> tuple[tuple[Package, ...], tuple[Package, ...]]:
        """The packages of the base that nothing declared needs, nor the guest by itself: those that were used, others.

        Raises UsageError unless it was traced what is used.
        """
        if self._usage is None:
            raise UsageError("What can be left out of the guest is known only when it was traced what is used.")
        verdict = self.verdict
        found = spare(verdict.before, verdict.after, self._needs or (), self._usage)
        items = {verdict.after.owners.get(path) for path in self._usage.files}
        return (
            tuple(package for package in found if package.item in items),
            tuple(package for package in found if package.item not in items),
        )
