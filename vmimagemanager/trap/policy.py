"""The policy: how bad each thing is, and what is excepted, by whom, why and until when.  People write it."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from enum import StrEnum
from pathlib import Path
from typing import cast

from vmimagemanager.config import document, schema
from vmimagemanager.config.schema import Spot
from vmimagemanager.errors import ConfigError
from vmimagemanager.names import printable
from vmimagemanager.trap.finding import DEFAULTS, LEFTOVERS, Finding, Rule, Severity

FORMAT = 1
_HINT = "'man vmimagemanager-trap' describes every key."


class Versions(StrEnum):
    """What the versions that a baseline holds are good for."""

    IGNORE = "ignore"
    RECORD = "record"
    EXACT = "exact"


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """An exception: items that match ``match`` (with '*' and '?'), found by ``rule`` or by any, brought by ``via``."""

    match: str
    reason: str
    owner: str
    rule: Rule | None = None
    expires: date | None = None
    via: str = ""

    def covers(self, finding: Finding) -> bool:
        """Say whether a finding is what this is about, whatever the date."""
        if self.rule is not None and finding.rule is not self.rule:
            return False
        way = finding.explanation.chain[:-1] if finding.explanation else ()
        if self.via and not any(fnmatch.fnmatchcase(item, self.via) for item in way):
            return False
        return fnmatch.fnmatchcase(finding.item, self.match)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Severities by rule, and exceptions; ``clean`` says that what is gone counts as much as what is new."""

    severities: Mapping[Rule, Severity] = field(default_factory=lambda: dict(DEFAULTS))
    versions: Versions = Versions.RECORD
    ignore: tuple[str, ...] = ()
    exceptions: tuple[Allowance, ...] = ()
    clean: bool = False

    @classmethod
    def read(cls, path: Path) -> Policy:
        """Read a policy file; raise ConfigError that names file, key and what was expected."""
        try:
            return cls.parse(path.read_bytes(), source=path)
        except OSError as error:
            raise ConfigError(
                f"The policy '{printable(path)}' cannot be read: {error.strerror}.", hint=_HINT
            ) from error

    @classmethod
    def parse(cls, content: bytes, *, source: Path) -> Policy:
        """Read a policy's text."""
        spot = document.spot(source, _HINT)
        values = document.parse(content, KEYS, spot, source=source, version=FORMAT)
        severities = {**DEFAULTS, **cast("dict[Rule, Severity]", values.get("severity", {}))}
        exceptions = cast("tuple[Allowance, ...]", values.get("exception", ()))
        for number, allowance in enumerate(exceptions, 1):
            _require_end(allowance, severities, spot.child("exception").entry(number))
        return cls(
            severities=severities,
            versions=cast("Versions", values.get("versions", Versions.RECORD)),
            ignore=cast("tuple[str, ...]", values.get("ignore", ())),
            exceptions=exceptions,
        )

    def for_nothing_left(self) -> Policy:
        """Return the policy by which whatever differs is an error, but for what this one ignores or excepts."""
        severities = {
            rule: Severity.ERROR if rule in LEFTOVERS and severity is not Severity.IGNORE else severity
            for rule, severity in self.severities.items()
        }
        return replace(self, severities=severities, clean=True)

    def judged(self, findings: Sequence[Finding], today: date) -> list[Finding]:
        """Return what is not ignored, with the exceptions that hold, and what is to be said of the exceptions.

        An exception holds to the end of the day that it expires.
        """
        kept = [
            finding
            for finding in findings
            if finding.severity is not Severity.IGNORE
            and not any(fnmatch.fnmatchcase(finding.item, pattern) for pattern in self.ignore)
        ]
        used: set[int] = set()
        judged = [self._excepted(finding, today, used) for finding in kept]
        for number, allowance in enumerate(self.exceptions):
            if allowance.expires is not None and allowance.expires < today:
                judged += self._about(Rule.EXPIRED, allowance, f"{allowance.owner}, {allowance.expires}")
            elif number not in used:
                judged += self._about(Rule.UNUSED, allowance, allowance.owner)
        return judged

    def _excepted(self, finding: Finding, today: date, used: set[int]) -> Finding:
        for number, allowance in enumerate(self.exceptions):
            if allowance.covers(finding):
                used.add(number)
                if not finding.accepted and (allowance.expires is None or today <= allowance.expires):
                    return replace(finding, excepted=f"{allowance.reason} ({allowance.owner})")
        return finding

    def _about(self, rule: Rule, allowance: Allowance, detail: str) -> list[Finding]:
        severity = self.severities[rule]
        if severity is Severity.IGNORE:
            return []
        return [Finding(rule=rule, item=f"exception:{allowance.match}", severity=severity, detail=detail)]


def _require_end(allowance: Allowance, severities: Mapping[Rule, Severity], spot: Spot) -> None:
    rules = [allowance.rule] if allowance.rule is not None else list(Rule)
    if allowance.expires is None and any(severities[rule] is Severity.ERROR for rule in rules):
        raise ConfigError(
            f"{spot.prefix}'{spot.key}' has no 'expires': expected a date such as 2026-12-31, as it excepts errors.",
            hint=_HINT,
        )


def _severities(value: object, spot: Spot) -> dict[Rule, Severity]:
    read = schema.choice(Severity)
    found = schema.read_table(value, {rule.value: read for rule in Rule}, spot)
    return {Rule(rule): Severity(str(severity)) for rule, severity in found.items()}


def _patterns(value: object, spot: Spot) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise spot.unexpected(value, "a list of patterns such as 'file:/var/lib/*'")
    return tuple(_pattern(entry, spot.entry(number)) for number, entry in enumerate(value, 1))


def _pattern(value: object, spot: Spot) -> str:
    if not isinstance(value, str) or ":" not in value or not value.isprintable():
        raise spot.unexpected(value, "a pattern of items such as 'dpkg:exim4-*' or 'unit:*.timer'")
    return value


def _date(value: object, spot: Spot) -> date:
    if not isinstance(value, date) or isinstance(value, datetime):
        raise spot.unexpected(value, "a date without quotes, such as 2026-12-31")
    return value


def _words(value: object, spot: Spot) -> str:
    text = schema.line(value, spot)
    if not text.strip():
        raise spot.unexpected(value, "some words")
    return text


def _allowance(value: Mapping[str, object], spot: Spot) -> Allowance:
    found = schema.read_table(value, EXCEPTION_KEYS, spot)
    for key in ("match", "reason", "owner"):
        if key not in found:
            raise ConfigError(f"{spot.prefix}'{spot.key}' has no '{key}'.", hint=_HINT)
    return Allowance(**found)  # type: ignore[arg-type]  # each was read by its own reader


EXCEPTION_KEYS: schema.Keys = {
    "match": _pattern,
    "rule": schema.choice(Rule),
    "via": _pattern,
    "reason": _words,
    "owner": _words,
    "expires": _date,
}
KEYS: schema.Keys = {
    "format": document.is_format(FORMAT),
    "versions": schema.choice(Versions),
    "ignore": _patterns,
    "severity": _severities,
    "exception": schema.tables(_allowance, Allowance),
}
