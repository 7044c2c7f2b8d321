"""The baseline: what somebody accepted as new on a base, one item a line, sorted, without dates.

It is kept beside the sources that need it, read by people and by their version control, and written only by
this program: ``vmimagemanager trap NAME --baseline FILE --accept -- CMD``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from vmimagemanager import durable, records
from vmimagemanager.config import document, schema
from vmimagemanager.config.schema import Spot
from vmimagemanager.errors import ConfigError
from vmimagemanager.guest.inventory import Inventory, Kind
from vmimagemanager.names import printable

if TYPE_CHECKING:
    from vmimagemanager.trap.verdict import Verdict

FORMAT = 2
ACCEPT = "vmimagemanager trap NAME --baseline FILE --accept -- CMD"
_HINT = f"'{ACCEPT}' writes the file."
_HEADER = f"# What may be new.  Written by '{ACCEPT}'.\n\n"
_PACKAGE = re.compile(r"[a-z][a-z0-9-]*:[!-9;-~]+(:[!-9;-~]+)?")
_KINDS = (*Kind, "shadowed", "used")
_FACT = re.compile(rf"({'|'.join(_KINDS)}):[^\x00-\x1f\x7f]+")
_BASE = re.compile(r"[0-9a-f]{20}")


def fingerprint(base: Inventory) -> str:
    """Return what identifies a base: its packages and their versions."""
    rows = sorted(f"{package.item} {package.version}" for package in base.packages)
    return hashlib.sha256("\n".join(rows).encode("utf-8", "surrogatepass")).hexdigest()[:20]


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What is accepted: packages (``dpkg:hello``, or ``dpkg:libc6:i386`` for a foreign one) and facts (``user:at``).

    ``base`` is the fingerprint of the guest that it is new in (empty: of any), ``versions`` what the packages' were.
    """

    accepted: frozenset[str] = frozenset()
    base: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

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
        keys: schema.Keys = {"format": _format, "base": _base, "packages": _packages, "facts": _facts}
        values = document.parse(content, keys, document.spot(source, _HINT), source=source, version=FORMAT)
        packages = cast("dict[str, object]", values.get("packages", {}))
        facts = cast("frozenset[str]", values.get("facts", frozenset()))
        return cls(
            accepted=cast("frozenset[str]", packages.get("accepted", frozenset())) | facts,
            base=cast("str", values.get("base", "")),
            versions=cast("dict[str, str]", packages.get("versions", {})),
        )

    def require(self, base: Inventory, *, source: Path) -> None:
        """Raise ConfigError unless ``base`` is what this was accepted on: what is new depends on it."""
        if self.base and self.base != fingerprint(base):
            raise ConfigError(
                f"The baseline '{printable(source)}' was written for another base: the packages that the guest had "
                "before the command are not those of then.",
                hint="'--rebase' writes it anew for this base; look at the difference before you keep it.",
            )

    def accepting(self, verdict: Verdict) -> Baseline:
        """Return the baseline that also accepts what ``verdict`` found unexpected; nothing is taken out of it."""
        accepted = self.accepted | verdict.open_items
        return Baseline(accepted=accepted, base=verdict.base, versions=_versions(verdict, accepted, self.versions))

    @classmethod
    def of(cls, verdict: Verdict) -> Baseline:
        """Return the baseline that accepts all that ``verdict`` found, and nothing else."""
        accepted = verdict.open_items | verdict.accepted_items
        return cls(accepted=accepted, base=verdict.base, versions=_versions(verdict, accepted, {}))

    def text(self) -> str:
        """Return the baseline as its file holds it."""
        kinds = tuple(f"{kind}:" for kind in _KINDS)
        facts = sorted(item for item in self.accepted if item.startswith(kinds))
        packages: dict[str, object] = {"accepted": sorted(self.accepted.difference(facts))}
        if self.versions:
            packages["versions"] = dict(sorted(self.versions.items()))
        record: dict[str, object] = {"format": FORMAT, "base": self.base or None, "packages": packages}
        return _HEADER + records.dump({**record, "facts": {"accepted": facts} if facts else None})

    def write(self, path: Path) -> None:
        """Write the baseline file, whole or not at all; raise SpaceError or StateError."""
        durable.replace_file(path, self.text().encode())


def _versions(verdict: Verdict, accepted: frozenset[str], known: Mapping[str, str]) -> dict[str, str]:
    now = {package.item: package.version for package in (*verdict.unexpected, *verdict.accepted)}
    return {item: now.get(item, known.get(item, "")) for item in accepted if item in now or item in known}


def _format(value: object, spot: Spot) -> int:
    if isinstance(value, int) and value > FORMAT:
        raise ConfigError(
            f"{spot.prefix}'format' is {value}, and this program knows formats up to {FORMAT}.",
            hint="Use the newer version of vmimagemanager that wrote it.",
        )
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise spot.unexpected(value, f"the number {FORMAT}")
    return value


def _base(value: object, spot: Spot) -> str:
    if not isinstance(value, str) or not _BASE.fullmatch(value):
        raise spot.unexpected(value, "the 20 letters and digits that were written")
    return value


def _packages(value: object, spot: Spot) -> dict[str, object]:
    return schema.read_table(value, {"accepted": _items, "versions": _version_table}, spot)


def _facts(value: object, spot: Spot) -> frozenset[str]:
    table = schema.read_table(value, {"accepted": _fact_items}, spot)
    return cast("frozenset[str]", table.get("accepted", frozenset()))


def _items(value: object, spot: Spot) -> frozenset[str]:
    return _matching(
        value, spot, _PACKAGE, "'MANAGER:PACKAGE', such as 'dpkg:hello', with ':ARCHITECTURE' when it is foreign"
    )


def _fact_items(value: object, spot: Spot) -> frozenset[str]:
    return _matching(value, spot, _FACT, "'KIND:NAME', such as 'user:daemon' or 'setuid:/usr/bin/at'")


def _matching(value: object, spot: Spot, pattern: re.Pattern[str], expected: str) -> frozenset[str]:
    if not isinstance(value, list):
        raise spot.unexpected(value, f"a list of {expected}")
    for number, item in enumerate(value, 1):
        if not isinstance(item, str) or not pattern.fullmatch(item):
            raise spot.entry(number).unexpected(item, expected)
    return frozenset(value)


def _version_table(value: object, spot: Spot) -> dict[str, str]:
    return {item: schema.line(version, spot.child(item)) for item, version in schema.table(value, spot).items()}
