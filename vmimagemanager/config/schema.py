"""How the values of a configuration file are read: one function for each kind of value.

Each takes the raw TOML value (or one that was read already, as options are) and the spot where it stands, and returns
the value or raises the spot's error, which names file, key and what was expected.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from vmimagemanager import names
from vmimagemanager.errors import ConfigError, VmimError
from vmimagemanager.names import quoted
from vmimagemanager.units import Size, format_duration, parse_duration

Choice = TypeVar("Choice", bound=StrEnum)
Entry = TypeVar("Entry")

HINT = "'man vmimagemanager.toml' describes every key."
LONGEST = timedelta(days=30)
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}")
_URI = re.compile(r"[a-z][a-z0-9+.-]*:[!-~]+", re.IGNORECASE)
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """Where a value stands: what its errors begin with, its key, and where relative paths start: here, or a folder."""

    prefix: str
    key: str = ""
    folder: Path = Path()
    error: type[VmimError] = ConfigError
    hint: str = HINT

    def child(self, key: str) -> Spot:
        """Return the spot of ``key`` in the table that stands here."""
        written = key if _BARE_KEY.fullmatch(key) else f'"{quoted(key)[1:-1]}"'
        return replace(self, key=f"{self.key}.{written}" if self.key else written)

    def entry(self, number: int) -> Spot:
        """Return the spot of one entry, counted from 1, of the list that stands here."""
        return replace(self, key=f"{self.key}[{number}]")

    def unexpected(self, value: object, expected: str) -> VmimError:
        """Return the error for a value of the wrong type, unit or range."""
        return self.error(f"{self.prefix}'{self.key}' is {_shown(value)}: expected {expected}.", hint=self.hint)

    def unknown(self, known: Collection[str], elsewhere: str = "") -> VmimError:
        """Return the error for a key that does not exist here; ``elsewhere`` is a place where it does."""
        own = self.key.rsplit(".", 1)[-1]
        nearest = elsewhere or next(iter(difflib.get_close_matches(own.replace("_", "-"), known, n=1, cutoff=0.5)), "")
        ending = f"; the nearest is '{nearest}'" if nearest else ""
        return self.error(
            f"{self.prefix}'{self.key}' is not a known key: expected one of {', '.join(known)}{ending}.", hint=self.hint
        )


Parser = Callable[[object, Spot], object]
Keys = Mapping[str, Parser]


def read_table(
    value: object, keys: Keys, spot: Spot, *, elsewhere: Mapping[str, str] | None = None
) -> dict[str, object]:
    """Read a table whose keys are all optional; ``elsewhere`` says where keys that do not belong here would."""
    values = {}
    for key, raw in table(value, spot).items():
        if key not in keys:
            raise spot.child(key).unknown(list(keys), (elsewhere or {}).get(key, ""))
        values[key] = keys[key](raw, spot.child(key))
    return values


def table(value: object, spot: Spot) -> Mapping[str, object]:
    """Read a table without looking into it."""
    if not isinstance(value, Mapping):
        raise spot.unexpected(value, "a table")
    return value


def line(value: object, spot: Spot) -> str:
    """Read one line of text."""
    if not isinstance(value, str) or not value.isprintable():
        raise spot.unexpected(value, "one line of text in quotes, without control characters")
    return value


def integer(least: int, most: int) -> Parser:
    """Return the parser of a whole number from ``least`` to ``most``."""

    def parse(value: object, spot: Spot) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise spot.unexpected(value, f"a whole number from {least} to {most}")
        return value

    return parse


def size(least: Size, most: Size) -> Parser:
    """Return the parser of a size from ``least`` to ``most``."""
    return lambda value, spot: _size(value, spot, least=least, most=most)


def sizes(least: Size, most: Size) -> Parser:
    """Return the parser of a list of sizes from ``least`` to ``most``."""

    def parse(value: object, spot: Spot) -> tuple[Size, ...]:
        if not isinstance(value, list | tuple):
            raise spot.unexpected(value, "a list of sizes in quotes, such as ['2G', '512M']")
        return tuple(_size(entry, spot.entry(number), least=least, most=most) for number, entry in enumerate(value, 1))

    return parse


def switch(value: object, spot: Spot) -> bool:
    """Read true or false."""
    if not isinstance(value, bool):
        raise spot.unexpected(value, "true or false, without quotes")
    return value


def duration(value: object, spot: Spot) -> timedelta:
    """Read a duration that is longer than nothing."""
    return _duration(value, spot, least=timedelta(milliseconds=1))


def duration_or_zero(value: object, spot: Spot) -> timedelta:
    """Read a duration that may be nothing: do not wait."""
    return _duration(value, spot, least=timedelta(0))


def path(value: object, spot: Spot) -> Path:
    """Read a path: ``~`` is the caller's home, and a relative one starts at the spot's folder.  It need not exist."""
    expected = "the path of a file or folder in quotes"
    text = str(value) if isinstance(value, Path) else value
    if not isinstance(text, str) or not text or not text.isprintable():
        raise spot.unexpected(value, expected)
    try:
        return (spot.folder / Path(text).expanduser()).absolute()
    except (RuntimeError, FileNotFoundError) as error:  # no such home folder; the current folder was removed
        raise spot.unexpected(value, f"{expected} that starts at a folder that exists") from error


def image(value: object, spot: Spot) -> str:
    """Read the name of an image, or of one of its generations: ``debian-12:3``."""
    name, colon, generation = value.partition(":") if isinstance(value, str) else ("", "", "")
    if not isinstance(value, str) or not names.is_name(name) or (colon and not generation.isdecimal()):
        raise spot.unexpected(value, f"the name of an image, such as 'debian-12' or 'debian-12:3': {names.RULE}")
    return value


def user(value: object, spot: Spot) -> str:
    """Read the name of a user of the guest."""
    if not isinstance(value, str) or not _USER.fullmatch(value):
        raise spot.unexpected(value, "the name of a user of the guest, such as 'root'")
    return value


def network(value: object, spot: Spot) -> str:
    """Read what a box's network card is connected to."""
    kind, colon, name = value.partition(":") if isinstance(value, str) else ("", "", "")
    named = kind == "libvirt" and name and name.isprintable() and name == name.strip() and "/" not in name
    if not isinstance(value, str) or not (named or (kind in ("user", "none") and not colon)):
        raise spot.unexpected(value, "'user', 'none', or 'libvirt:NAME' with the name of a libvirt network")
    return value


def uri(value: object, spot: Spot) -> str:
    """Read a libvirt URI."""
    if not isinstance(value, str) or not _URI.fullmatch(value):
        raise spot.unexpected(value, "a libvirt URI, such as 'qemu:///session' or 'qemu:///system'")
    return value


def choice(choices: type[Choice]) -> Parser:
    """Return the parser of one of ``choices``."""

    def parse(value: object, spot: Spot) -> Choice:
        if not isinstance(value, str) or value not in list(choices):
            raise spot.unexpected(value, f"one of {listed(choices)}")
        return choices(value)

    return parse


def choices(choices: type[Choice]) -> Parser:
    """Return the parser of a list of some of ``choices``, at least one, whose order does not matter."""
    one = choice(choices)

    def parse(value: object, spot: Spot) -> tuple[Choice, ...]:
        if not isinstance(value, list | tuple) or not value:
            raise spot.unexpected(value, f"a list of one or more of {listed(choices)}")
        chosen = {one(entry, spot.entry(number)) for number, entry in enumerate(value, 1)}
        return tuple(member for member in choices if member in chosen)

    return parse


def argv(value: object, spot: Spot) -> tuple[str, ...]:
    """Read a command: a list of words, the program first."""
    words = value if isinstance(value, list | tuple) else []
    if not words or not words[0] or not all(isinstance(word, str) and "\0" not in word for word in words):
        raise spot.unexpected(
            value, "a list of words in quotes, the program first, such as ['systemctl', 'start', 'web']"
        )
    return tuple(words)


def inserts(value: object, spot: Spot) -> tuple[str, ...]:
    """Read a list of names of inserts, whose order matters."""
    entries = value if isinstance(value, list | tuple) else ["/"]
    if not all(isinstance(entry, str) and names.is_name(entry) for entry in entries):
        raise spot.unexpected(value, f"a list of names in quotes, such as ['certificates', 'keys']: {names.RULE}")
    return tuple(entries)


def tables(read: Callable[[Mapping[str, object], Spot], Entry], kind: type[Entry]) -> Parser:
    """Return the parser of an array of tables, each of which ``read`` turns into a ``kind``."""

    def parse(value: object, spot: Spot) -> tuple[Entry, ...]:
        if not isinstance(value, list | tuple):
            raise spot.unexpected(value, f"tables, each of which begins with [[{spot.key}]]")
        entries = []
        for number, entry in enumerate(value, 1):
            here = spot.entry(number)
            entries.append(entry if isinstance(entry, kind) else read(table(entry, here), here))
        return tuple(entries)

    return parse


def listed(choices: type[StrEnum]) -> str:
    """Return the choices for a message: 'auto', 'kvm', 'tcg'."""
    return ", ".join(f"'{member}'" for member in choices)


def _size(value: object, spot: Spot, *, least: Size, most: Size) -> Size:
    found = value
    if isinstance(value, str):
        try:
            found = Size.parse(value)
        except ValueError:
            found = None
    if not isinstance(found, Size) or not least <= found <= most:
        raise spot.unexpected(value, f"a size in quotes with a unit, such as '512M' or '2G', from {least} to {most}")
    return found


def _duration(value: object, spot: Spot, *, least: timedelta) -> timedelta:
    found = value
    if isinstance(value, str):
        try:
            found = parse_duration(value)
        except (ValueError, OverflowError):
            found = None
    if isinstance(found, timedelta) and least <= found <= LONGEST:
        return timedelta(milliseconds=round(found / timedelta(milliseconds=1)))
    span = f"from {format_duration(least)} to {format_duration(LONGEST)}"
    raise spot.unexpected(value, f"a duration in quotes with a unit, such as '90s', '5m' or '1h30m', {span}")


def _shown(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return quoted(value)
        case Mapping():
            return "a table"
        case list() | tuple():
            return f"the list {quoted(str(list(value)))[1:-1]}" if value else "an empty list"
        case _:
            return quoted(str(value))[1:-1]
