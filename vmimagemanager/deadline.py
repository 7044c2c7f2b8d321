"""Waiting: always for a named condition, always with an end.

This is the only module that sleeps.  All limits scale with one factor, ``VMIM_TIMEOUT_FACTOR``; under emulation it is
raised by `set_emulation_factor`, because a guest under TCG is an order of magnitude slower.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

from vmimagemanager.errors import ConfigError, DeadlineError

Value = TypeVar("Value")

EMULATION_FACTOR = 5.0
_emulation = 1.0


def set_emulation_factor(emulated: bool) -> None:
    """Scale every later limit for a guest that runs under emulation, or no longer."""
    global _emulation
    _emulation = EMULATION_FACTOR if emulated else 1.0


def emulation_factor() -> float:
    """Return how much slower guests are than the processor: 5 under emulation, else 1."""
    return _emulation


def timeout_factor() -> float:
    """Return what every limit is multiplied with: ``VMIM_TIMEOUT_FACTOR``, else 5 under emulation, else 1."""
    text = os.environ.get("VMIM_TIMEOUT_FACTOR")
    if text is None:
        return _emulation
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not 0 < factor < 1000:
        raise ConfigError(
            f"The environment variable VMIM_TIMEOUT_FACTOR is '{text}': expected a number above 0 and below 1000."
        )
    return factor


class Deadline:
    """A moment after which waiting ends, counted on the monotonic clock."""

    def __init__(self, limit: timedelta, *, scaled: bool = True) -> None:
        self.limit = limit * timeout_factor() if scaled else limit
        self._start = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the deadline was set."""
        return time.monotonic() - self._start

    @property
    def remaining(self) -> float:
        """Seconds that are left, never negative."""
        return max(0.0, self.limit.total_seconds() - self.elapsed)

    @property
    def expired(self) -> bool:
        return self.remaining == 0.0

    def wait_for(
        self,
        condition: str,
        probe: Callable[[], Value | None],
        *,
        every: float = 0.05,
        hint: str = "",
        detail: Callable[[], str] | None = None,
    ) -> Value:
        """Call ``probe`` until it returns something other than None or False, and return that.

        ``condition`` completes "waited for …" in the DeadlineError that is raised when the time is up; ``detail`` is
        asked then for lines to quote.  ``probe`` is called at least once, and once more at the very end.
        """
        while True:
            last_chance = self.expired
            value = probe()
            if value is not None and value is not False:
                return value
            if last_chance:
                raise self.error(condition, hint=hint, detail=detail() if detail else "")
            time.sleep(min(every, self.remaining))

    def error(self, condition: str, *, hint: str = "", detail: str = "") -> DeadlineError:
        """Return the error that says that ``condition`` did not come about in time."""
        return DeadlineError(
            f"Waited {self.elapsed:.1f} s for {condition}, which did not happen.",
            hint=hint,
            detail=detail,
            waited_for=condition,
            seconds=self.elapsed,
        )


def pause(seconds: float) -> None:
    """Sleep for a fixed time that a protocol asks for (never to wait for a condition)."""
    time.sleep(seconds)


class Stopwatch:
    """Named phases and their durations in seconds, in the order in which they were passed."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()
        self.phases: dict[str, float] = {}

    def lap(self, phase: str) -> float:
        """End the phase that ran since the last lap, name it, and return its seconds."""
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        self.phases[phase] = self.phases.get(phase, 0.0) + seconds
        return seconds

    @property
    def total(self) -> float:
        """Seconds since the stopwatch was started."""
        return time.monotonic() - self._start
