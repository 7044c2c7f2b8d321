"""Against an earlier run: what is new today, outstanding since when, or fixed, and who changed something."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vmimagemanager.errors import ConfigError
from vmimagemanager.names import printable
from vmimagemanager.trap.finding import Finding, Label


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
            return cls._of(document)
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"'{printable(path)}' is not the document of a trap.", hint=_HINT) from error

    @classmethod
    def _of(cls, document: dict[str, Any]) -> History:
        document = document.get("verdict", document)  # what --result wrote holds it
        seen = {
            str(entry["fingerprint"]): Seen(rule=str(entry["rule"]), item=str(entry["item"]), since=str(entry["since"]))
            for entry in document["findings"]
            if entry["counts"]
        }
        archive = {str(name): str(when) for name, when in document["archive"].items()}
        return cls(findings=seen, inputs=str(document["inputs"]), archive=archive)

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


def inputs_digest(words: Sequence[str], files: Iterable[Path]) -> str:
    """Return a digest of what we asked for: a command, and the files that declare what is needed."""
    digest = hashlib.sha256("\0".join(words).encode("utf-8", "surrogateescape"))
    for path in files:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:20]


_HINT = "It is written by 'vmimagemanager trap --json' and '--result'."
