"""Against an earlier run: what is new today, outstanding since when, or fixed, and who changed something."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vmimagemanager.errors import ConfigError
from vmimagemanager.names import printable
from vmimagemanager.trap.finding import Finding, Label
from vmimagemanager.trap.verdict import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A finding of an earlier run."""

    rule: str
    item: str
    since: str


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """An earlier run: its findings by fingerprint, a digest of what was asked for, and the archive's release files."""

    findings: Mapping[str, Seen] = field(default_factory=dict)
    inputs: str = ""
    archive: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> History:
        """Read the JSON document of an earlier run; raise ConfigError when it is none."""
        try:
            document = json.loads(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"The earlier run '{printable(path)}' cannot be read: {error.strerror}.") from error
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"'{printable(path)}' is not JSON: {error}.", hint=_HINT) from error
        try:
            return cls.of(document)
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"'{printable(path)}' is not the document of a trap.", hint=_HINT) from error

    @classmethod
    def of(cls, document: dict[str, Any]) -> History:
        """Return what a document of a trap, or a record of `to_record`, tells; raise KeyError, TypeError for others."""
        document = document.get("verdict", document)  # what --result wrote holds it
        seen = {
            str(entry["fingerprint"]): Seen(rule=str(entry["rule"]), item=str(entry["item"]), since=str(entry["since"]))
            for entry in document["findings"]
            if entry["counts"]
        }
        archive = {str(name): str(when) for name, when in document["archive"].items()}
        return cls(findings=seen, inputs=str(document["inputs"]), archive=archive)

    def to_record(self) -> dict[str, Any]:
        """Return what `of` reads."""
        return {
            "inputs": self.inputs,
            "archive": dict(self.archive),
            "findings": [
                {"fingerprint": mark, "counts": True, "rule": seen.rule, "item": seen.item, "since": seen.since}
                for mark, seen in self.findings.items()
            ],
        }

    def labelled(
        self, findings: Iterable[Finding], *, inputs: str, archive: Mapping[str, str], today: str
    ) -> tuple[tuple[Finding, ...], tuple[Seen, ...]]:
        """Return the findings with their labels, and what was found then and is no more.

        What is new today came by us when only what we asked for has changed since, by the archive when only that has.
        """
        ours, theirs = inputs != self.inputs, dict(archive) != dict(self.archive)
        cause = {(True, False): "us", (False, True): "archive", (True, True): "us or the archive"}.get(
            (ours, theirs), ""
        )
        told = []
        for finding in findings:
            before = self.findings.get(finding.fingerprint)
            if not finding.counts:
                told.append(finding)
            elif before is not None:
                told.append(replace(finding, label=Label.OUTSTANDING, since=before.since))
            else:
                told.append(replace(finding, label=Label.NEW, since=today, cause=cause))
        still = {finding.fingerprint for finding in told if finding.counts}
        fixed = [seen for mark, seen in self.findings.items() if mark not in still]
        return tuple(told), tuple(sorted(fixed, key=lambda seen: (seen.rule, seen.item)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A verdict with what an earlier run makes of it.

    ``fixed`` was found then and is no more; ``inputs`` is the digest of what was asked for ``today``.
    """

    verdict: Verdict
    fixed: tuple[Seen, ...]
    inputs: str
    today: str

    @classmethod
    def of(cls, verdict: Verdict, earlier: History | None, words: Sequence[str], declared: Iterable[Path]) -> Told:
        """Compare a verdict with an earlier run of a command, if there was one."""
        today = datetime.now(UTC).date().isoformat()
        inputs = inputs_digest(words, declared)
        if earlier is None:
            return cls(verdict=verdict, fixed=(), inputs=inputs, today=today)
        labelled, fixed = earlier.labelled(verdict.findings, inputs=inputs, archive=verdict.after.archive, today=today)
        return cls(verdict=replace(verdict, findings=labelled), fixed=fixed, inputs=inputs, today=today)

    @property
    def history(self) -> History:
        """What a later run is compared with."""
        return History(
            findings={
                finding.fingerprint: Seen(rule=finding.rule.value, item=finding.item, since=finding.since or self.today)
                for finding in self.verdict.findings
                if finding.counts
            },
            inputs=self.inputs,
            archive=dict(self.verdict.after.archive),
        )


def inputs_digest(words: Sequence[str], files: Iterable[Path]) -> str:
    """Return a digest of what we asked for: a command, and the files that declare what is needed."""
    digest = hashlib.sha256("\0".join(words).encode("utf-8", "surrogateescape"))
    for path in files:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:20]


_HINT = "It is written by 'vmimagemanager trap --json' and '--result'."
