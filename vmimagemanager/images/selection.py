"""Choosing images by their attributes: ``os=debian release>=12 packages~gcc``.

An expression is a list of conditions, all of which have to hold; it is empty for every image.  A condition is a key, a
comparison and a value, without blanks between them.  A value with blanks stands in quotes, ``"…"`` or ``'…'``.

``=`` and ``!=`` compare the whole text, ``~`` and ``!~`` look for a part of it; capitals do not matter.  ``<``, ``<=``,
``>`` and ``>=`` compare numbers, sizes, releases and times.  ``packages`` stands for all names of packages: a condition
holds when it holds for one of them, and with ``!=`` or ``!~`` when it holds for all.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from vmimagemanager.errors import UsageError
from vmimagemanager.images.manifest import Image
from vmimagemanager.names import quoted
from vmimagemanager.units import Size

_CONDITION = re.compile(
    r"(?P<key>[a-z-]+)(?P<comparison>!=|!~|<=|>=|=|~|<|>)"
    r"""(?P<value>"[^"]*"|'[^']*'|[^\s"']+)(?=\s|$)"""
)
_BLANKS = re.compile(r"\s*")
_ORDERED: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attribute:
    """How a key is read from an image, and how its values are put in an order: None when they have none."""

    texts: Callable[[Image], tuple[str, ...]]
    order: Callable[[str], Any] | None = None


def _version(text: str) -> tuple[tuple[int, int, str], ...]:
    """Return what orders releases: their numbers as numbers, their words after those."""
    parts = re.findall(r"\d+|[a-z]+", text.lower())
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts)


def _bytes(text: str) -> int:
    return Size.parse(text).bytes


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _is(flag: bool) -> str:
    return "yes" if flag else "no"


_ATTRIBUTES = {
    "name": _Attribute(texts=lambda image: (image.name,)),
    "generation": _Attribute(texts=lambda image: (str(image.generation),), order=int),
    "os": _Attribute(texts=lambda image: (image.os,)),
    "release": _Attribute(texts=lambda image: (image.release,), order=_version),
    "arch": _Attribute(texts=lambda image: (image.architecture,)),
    "description": _Attribute(texts=lambda image: (image.description,)),
    "source": _Attribute(texts=lambda image: (image.source,)),
    "stored-from": _Attribute(texts=lambda image: (image.stored_from,)),
    "firmware": _Attribute(texts=lambda image: (image.firmware,)),
    "user": _Attribute(texts=lambda image: (image.user,)),
    "agent": _Attribute(texts=lambda image: (_is(image.agent),)),
    "pinned": _Attribute(texts=lambda image: (_is(image.pinned),)),
    "created": _Attribute(texts=lambda image: (image.created.isoformat(),), order=_moment),
    "size": _Attribute(texts=lambda image: (str(image.disk_size),), order=_bytes),
    "packages": _Attribute(texts=lambda image: tuple(image.packages)),
}
KEYS = tuple(_ATTRIBUTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    key: str
    comparison: str
    value: str

    def holds(self, image: Image) -> bool:
        attribute = _ATTRIBUTES[self.key]
        found = [text.lower() for text in attribute.texts(image)]
        value = self.value.lower()
        if self.comparison in _ORDERED:
            assert attribute.order is not None
            compare = _ORDERED[self.comparison]
            return any(text and compare(attribute.order(text), attribute.order(self.value)) for text in found)
        inside = self.comparison.endswith("~")
        one_does = any(value in text if inside else value == text for text in found)
        return one_does != self.comparison.startswith("!")


@dataclass(frozen=True, slots=True)
class Selection:
    """An expression that was read."""

    conditions: tuple[Condition, ...]

    @classmethod
    def parse(cls, text: str) -> Selection:
        """Read an expression; raise UsageError that says what is wrong with it, and at which character."""
        found = []
        at = _end(_BLANKS, text, 0)
        while at < len(text):
            match = _CONDITION.match(text, at)
            if match is None:
                raise _wrong(text, at, "expected KEY, then one of = != ~ !~ < <= > >=, then a value")
            found.append(_checked(text, match))
            at = _end(_BLANKS, text, match.end())
        return cls(tuple(found))

    def holds(self, image: Image) -> bool:
        """Say whether all conditions hold for an image."""
        return all(condition.holds(image) for condition in self.conditions)


def _checked(text: str, match: re.Match[str]) -> Condition:
    key, comparison, value = match["key"], match["comparison"], match["value"]
    if value[0] in "\"'":
        value = value[1:-1]
    attribute = _ATTRIBUTES.get(key)
    if attribute is None:
        near = difflib.get_close_matches(key, KEYS, n=1)
        advice = f"did you mean '{near[0]}'?" if near else f"expected one of {', '.join(KEYS)}"
        raise _wrong(text, match.start("key"), f"there is no attribute '{key}', {advice}")
    if comparison in _ORDERED:
        if attribute.order is None:
            raise _wrong(text, match.start("comparison"), f"'{key}' has no order: expected = != ~ or !~")
        try:
            attribute.order(value)
        except ValueError:
            raise _wrong(text, match.start("value"), f"{quoted(value)} cannot be compared with '{key}'") from None
    return Condition(key=key, comparison=comparison, value=value)


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at


def _wrong(text: str, at: int, what: str) -> UsageError:
    return UsageError(
        f"{quoted(text)} does not choose images: at character {at + 1}, {what}.",
        hint="For instance: vmimagemanager image list --where 'os=debian release>=12 packages~gcc'",
    )
