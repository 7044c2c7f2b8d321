"""The baseline: the new packages that somebody accepted, one item a line, sorted, without dates or versions.

It is kept beside the sources that need the packages, read by people and by their version control, and written only by
this program: ``vmimagemanager trap NAME --baseline FILE --accept -- CMD``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vmimagemanager import durable, records
from vmimagemanager.config import schema
from vmimagemanager.config.schema import Spot
from vmimagemanager.errors import ConfigError, StateError
from vmimagemanager.names import printable

if TYPE_CHECKING:
    from vmimagemanager.trap.verdict import Verdict

FORMAT = 1
ACCEPT = "vmimagemanager trap NAME --baseline FILE --accept -- CMD"
_HINT = f"'{ACCEPT}' writes the file."
_HEADER = f"# Packages that may be new.  Written by '{ACCEPT}'.\n\n"
_ITEM = re.compile(r"[a-z][a-z0-9-]*:[!-9;-~]+(:[!-9;-~]+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """The items that are accepted: ``dpkg:hello``, or ``dpkg:libc6:i386`` for a foreign architecture."""

    accepted: frozenset[str] = frozenset()

    @classmethod
    def read(cls, path: Path) -> Baseline:
        """Read a baseline file.

        Raises ConfigError, which says how to make one when it does not exist: taking a mistyped name for an empty
        baseline would be as wrong as taking it for one that accepts everything.
        """
        try:
            return cls.parse(path.read_bytes(), source=path)
        except FileNotFoundError as error:
            raise ConfigError(
                f"The baseline '{printable(path)}' does not exist.", hint=f"'{ACCEPT}' makes it."
            ) from error
        except OSError as error:
            raise ConfigError(f"The baseline '{printable(path)}' cannot be read: {error.strerror}.") from error

    @classmethod
    def parse(cls, content: bytes, *, source: Path) -> Baseline:
        """Read a baseline's text; raise ConfigError that names ``source``, the key and what was expected."""
        spot = Spot(prefix=f"In '{printable(source)}', ", hint=_HINT)
        try:
            table = records.parse(content.decode(), source=printable(source))
        except UnicodeDecodeError as error:
            raise ConfigError(f"'{printable(source)}' is not TOML: it is not UTF-8 text.", hint=_HINT) from error
        except StateError as error:
            raise ConfigError(error.message, hint=_HINT) from error
        values = schema.read_table(table, {"format": _format, "packages": _packages}, spot)
        if "format" not in values:
            raise ConfigError(f"{spot.prefix}'format' is missing: expected 'format = {FORMAT}'.", hint=_HINT)
        packages = values.get("packages", frozenset())
        assert isinstance(packages, frozenset)
        return cls(accepted=packages)

    def accepting(self, verdict: Verdict) -> Baseline:
        """Return the baseline that also accepts what ``verdict`` found unexpected; nothing is taken out of it."""
        return replace(self, accepted=self.accepted | {package.item for package in verdict.unexpected})

    def text(self) -> str:
        """Return the baseline as its file holds it."""
        return _HEADER + records.dump({"format": FORMAT, "packages": {"accepted": sorted(self.accepted)}})

    def write(self, path: Path) -> None:
        """Write the baseline file, whole or not at all; raise SpaceError or StateError."""
        durable.replace_file(path, self.text().encode())


def _format(value: object, spot: Spot) -> int:
    if isinstance(value, int) and value > FORMAT:
        raise ConfigError(
            f"{spot.prefix}'format' is {value}, and this program knows formats up to {FORMAT}.",
            hint="Use the newer version of vmimagemanager that wrote it.",
        )
    if value != FORMAT:
        raise spot.unexpected(value, f"the number {FORMAT}")
    return FORMAT


def _packages(value: object, spot: Spot) -> frozenset[str]:
    table = schema.read_table(value, {"accepted": _items}, spot)
    accepted = table.get("accepted", frozenset())
    assert isinstance(accepted, frozenset)
    return accepted


def _items(value: object, spot: Spot) -> frozenset[str]:
    expected = "'MANAGER:PACKAGE', such as 'dpkg:hello', with ':ARCHITECTURE' when it is foreign"
    if not isinstance(value, list):
        raise spot.unexpected(value, f"a list of {expected}")
    for number, item in enumerate(value, 1):
        if not isinstance(item, str) or not _ITEM.fullmatch(item):
            raise spot.entry(number).unexpected(item, expected)
    return frozenset(value)
