"""How a step and a run ended."""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum

from vmimagemanager.errors import INTERRUPTED, TRAPPED, TRAPPED_AND_FAILED, CommandFailedError, VmimError


class Outcome(StrEnum):
    """How a step or a run ended, or that it has not.

    An ``error`` is none of the thing under test: the testbed failed, or the job itself is wrong.  A ``damaged`` run's
    record cannot be read.
    """

    PASSED = "passed"
    TRAPPED = "trapped"
    FAILED = "failed"
    TRAPPED_AND_FAILED = "trapped and failed"
    ERROR = "error"
    INTERRUPTED = "interrupted"
    SKIPPED = "skipped"
    RUNNING = "running"
    DIED = "died"
    DAMAGED = "damaged"

    @property
    def exit_code(self) -> int:
        """The exit code of a run that ended so by itself; an error has its own."""
        return {
            Outcome.PASSED: 0,
            Outcome.FAILED: CommandFailedError.exit_code,
            Outcome.TRAPPED: TRAPPED,
            Outcome.TRAPPED_AND_FAILED: TRAPPED_AND_FAILED,
            Outcome.INTERRUPTED: INTERRUPTED,
        }.get(self, VmimError.exit_code)

    @classmethod
    def of(cls, *, failed: bool, trapped: bool) -> Outcome:
        """Return how something ended that came to its end."""
        if failed:
            return cls.TRAPPED_AND_FAILED if trapped else cls.FAILED
        return cls.TRAPPED if trapped else cls.PASSED

    @classmethod
    def of_all(cls, outcomes: Collection[Outcome]) -> Outcome:
        """Return how a run ended whose steps ended so."""
        return cls.of(
            failed=any(one in {cls.FAILED, cls.TRAPPED_AND_FAILED} for one in outcomes),
            trapped=any(one in {cls.TRAPPED, cls.TRAPPED_AND_FAILED} for one in outcomes),
        )
