"""Sizes and durations as people write them: ``512M``, ``2G``, ``90s``, ``1h30m``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta

_SIZE = re.compile(r"(?P<number>\d+)\s*(?P<unit>[KMGT]i?B?|B)?", re.IGNORECASE)
_SIZE_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True, slots=True, order=True)
class Size:
    """A number of bytes; the units are powers of 1024."""

    bytes: int

    @classmethod
    def parse(cls, text: str) -> Size:
        """Read a size such as ``512M`` or ``2GiB``; raise ValueError that says what was expected."""
        match = _SIZE.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"'{text}' is not a size: expected a whole number with a unit, such as 512M or 2G")
        return cls(int(match["number"]) * _SIZE_UNITS[(match["unit"] or "").lower()[:1]])

    @property
    def mebibytes(self) -> int:
        """The size in whole MiB, rounded up."""
        return -(-self.bytes >> 20) if self.bytes < 0 else (self.bytes + (1 << 20) - 1) >> 20

    def __str__(self) -> str:
        for unit in ("T", "G", "M", "K"):
            factor = _SIZE_UNITS[unit.lower()]
            if self.bytes >= factor and self.bytes % factor == 0:
                return f"{self.bytes // factor}{unit}"
        return str(self.bytes)

    def human(self) -> str:
        """Return the size for people, rounded: ``1.4 GiB``."""
        number = float(self.bytes)
        for unit in ("B", "KiB", "MiB", "GiB"):
            if number < 1024:
                return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
            number /= 1024
        return f"{number:.1f} TiB"


def parse_duration(text: str) -> timedelta:
    """Read a duration such as ``90s``, ``5m`` or ``1h30m``; raise ValueError that says what was expected."""
    compact = text.strip().lower().replace(" ", "")
    parts = _DURATION.findall(compact)
    if not parts or "".join(number + unit for number, unit in parts) != compact:
        raise ValueError(f"'{text}' is not a duration: expected a number with a unit, such as 90s, 5m or 1h30m")
    try:
        return sum((timedelta(seconds=float(number) * _DURATION_UNITS[unit]) for number, unit in parts), timedelta())
    except OverflowError as error:
        raise ValueError(f"'{text}' is too long a duration") from error


def format_duration(duration: timedelta) -> str:
    """Return a duration as people write it, exact to the millisecond: ``1h30m``, ``0.5s`` as ``500ms``."""
    milliseconds = round(duration.total_seconds() * 1000)
    parts = []
    for unit, length in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, milliseconds = divmod(milliseconds, length)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"
