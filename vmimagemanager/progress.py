"""How long work tells its caller where it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called with what is being done now, and how much of the whole is done (0 to 1, or None when nobody can say)."""

    def __call__(self, phase: str, fraction: float | None, /) -> None: ...


def silent(phase: str, fraction: float | None, /) -> None:
    """Tell nobody."""
