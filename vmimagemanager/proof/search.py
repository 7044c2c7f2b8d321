"""Which of many are needed, found by few trials: each trial keeps some and leaves out the rest.

Pure: a trial is whatever it is handed.  The result is a smallest set that suffices: without any one of them, and the
others left out, the trial fails.  Where one of two suffices, one of them is found.  It is the prefix search of
QuickXplain (Junker, AAAI 2004): the last of the shortest prefix that suffices is needed, and so on before it; n
candidates of which k are needed take about k log n trials.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Needed(Generic[Item]):
    """One that is needed; the trial that kept all of ``without`` and not this one failed."""

    item: Item
    without: tuple[Item, ...]


def needed(
    candidates: Sequence[Item],
    suffices: Callable[[Sequence[tuple[Item, ...]]], Sequence[bool]],
    *,
    likely: int = 0,
    width: int = 1,
) -> tuple[Needed[Item], ...]:
    """Return those of ``candidates`` that are needed, given that all of them suffice.

    ``suffices`` tells of several sets, at most ``max(width, 2)``, whether each is enough; the first ``likely`` ones are
    guessed to be all that is needed.
    """
    found: list[Needed[Item]] = []
    rest = tuple(candidates)
    while True:
        kept = tuple(one.item for one in found)
        size = _shortest(rest, kept, suffices, likely=likely, width=width)
        if size == 0:
            return tuple(reversed(found))
        found.append(Needed(rest[size - 1], kept + rest[: size - 1]))
        rest = rest[: size - 1]


def _shortest(
    rest: tuple[Item, ...],
    kept: tuple[Item, ...],
    suffices: Callable[[Sequence[tuple[Item, ...]]], Sequence[bool]],
    *,
    likely: int,
    width: int,
) -> int:
    """Return the length of the shortest prefix of ``rest`` that suffices together with what is kept."""
    too_short, enough = -1, len(rest)  # the whole of it suffices
    guess = [likely] if 0 < likely < len(rest) else []
    points = [0, *guess] if kept or not guess or width > 1 else guess
    while too_short + 1 < enough:
        told = suffices([kept + rest[:point] for point in points])
        for point, one in zip(points, told, strict=True):
            if one:
                enough = min(enough, point)
        too_short = max([too_short, *(point for point, one in zip(points, told, strict=True) if point < enough)])
        points = _between(too_short, enough, width)
    return enough


def _between(low: int, high: int, width: int) -> list[int]:
    """Return up to ``width`` points that divide what lies between two evenly."""
    gap = high - low
    return sorted({low + gap * part // (width + 1) for part in range(1, width + 1)} - {low, high})
