"""The document of an earlier run of the trap."""

from __future__ import annotations

import json
from pathlib import Path

from vmimagemanager.report.trap import document
from vmimagemanager.trap import Finding, History, Rule, Severity, Verdict

NAME = "earlier-run"
FINDINGS = [Finding(rule=rule, item="dpkg:hello", severity=Severity.ERROR) for rule in Rule]


def read(content: bytes, folder: Path) -> None:
    path = folder / "earlier.json"
    path.write_bytes(content)
    history = History.read(path)
    labelled, fixed = history.labelled(FINDINGS, inputs="", archive={}, today="2026-06-01")
    # What it makes of a run is again the document of one.
    verdict = Verdict(unexpected=(), accepted=(), gone=(), changed=(), stale=(), findings=labelled)
    path.write_text(json.dumps(document(verdict, inputs="", today="2026-06-01", fixed=fixed)))
    assert {seen.rule for seen in History.read(path).findings.values()} == set(Rule)
