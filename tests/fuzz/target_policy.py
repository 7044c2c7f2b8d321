"""A policy that somebody wrote."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from vmimagemanager.trap import Finding, Policy, Rule, Severity
from vmimagemanager.trap.explain import Explanation, Reason

NAME = "policy"
FINDINGS = [
    Finding(
        rule=rule,
        item=f"{rule}:exim4",
        severity=Severity.ERROR,
        explanation=Explanation(reason=Reason.TRANSITIVE, chain=("dpkg:at", "dpkg:exim4")),
    )
    for rule in Rule
]


def read(content: bytes, folder: Path) -> None:
    path = folder / "trap.toml"
    path.write_bytes(content)
    policy = Policy.read(path)
    for today in (date(1, 1, 1), date(2026, 6, 1), date.max):
        for finding in policy.judged(FINDINGS, today):
            assert finding.item
            assert not (finding.excepted and finding.counts)
