"""A verdict of the trap in the formats of others: JUnit XML, SARIF 2.1.0, Markdown, CycloneDX 1.6 and SPDX 2.3.

What has no place in a name is a version: whoever compares runs would take an update for another case.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vmimagemanager.report import junit as xml
from vmimagemanager.report import sbom
from vmimagemanager.report.junit import Case
from vmimagemanager.report.trap import explained
from vmimagemanager.report.trap import line as finding_line
from vmimagemanager.trap import Finding, Rule, Severity, Verdict
from vmimagemanager.trap.finding import TITLES

# What GitHub takes as a comment.
MARKDOWN_MOST = 65_536
_LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "note", Severity.IGNORE: "none"}


def junit(verdict: Verdict, *, name: str) -> bytes:
    """Return JUnit XML of a verdict's `cases`."""
    return xml.document({f"trap {name}": cases(verdict)})


def cases(verdict: Verdict) -> Iterator[Case]:
    """Yield JUnit's cases of a verdict: one for each rule, which is always there, and one for each finding."""
    for rule in Rule:
        found = [finding for finding in verdict.findings if finding.rule is rule]
        counting = [finding for finding in found if finding.counts]
        yield Case(
            name=TITLES[rule],
            group="trap",
            failed=f"{len(counting)} of {len(found)}" if counting else "",
            kind=rule.value,
            text="\n".join(finding_line(finding).strip() for finding in counting),
        )
        for finding in found:
            yield Case(
                name=finding.item,
                group=f"trap.{rule}",
                failed=TITLES[rule] if finding.counts else "",
                skipped=finding.excepted,
                kind=rule.value,
                text=finding_line(finding).strip(),
            )


def sarif(verdict: Verdict, *, where: str) -> bytes:
    """Return SARIF 2.1.0 whose results point at ``where``, the file in which each is to be put right."""
    rules = list(Rule)
    run = {
        "tool": {
            "driver": {
                "name": "vmimagemanager trap",
                "informationUri": sbom.HOME,
                "rules": [{"id": rule.value, "shortDescription": {"text": TITLES[rule]}} for rule in rules],
            }
        },
        "results": [_result(finding, rules.index(finding.rule), where) for finding in verdict.findings],
    }
    schema = "https://json.schemastore.org/sarif-2.1.0.json"
    return _json({"$schema": schema, "version": "2.1.0", "runs": [run]})


def markdown(verdict: Verdict, *, name: str) -> bytes:
    """Return Markdown for a comment or a job's summary, in at most `MARKDOWN_MOST` characters."""
    counting = [finding for finding in verdict.findings if finding.counts]
    rest = [finding for finding in verdict.findings if not finding.counts]
    title = f"## Trapped in {cell(name)}: {len(counting)}" if counting else f"## Nothing was trapped in {cell(name)}"
    rows = [_row(finding) for finding in counting]
    rows += [_row(finding) for finding in rest]
    head = [title, "", "| severity | rule | item | detail | why |", "|---|---|---|---|---|"]
    room = MARKDOWN_MOST - sum(len(row) + 1 for row in head) - 100
    shown = []
    for row in rows:
        room -= len(row) + 1
        if room < 0:
            break
        shown.append(row)
    left = len(rows) - len(shown)
    more = ["", f"{left} more are not shown: the JSON document has them all."] if left else []
    return "\n".join([*(head if rows else head[:2]), *shown, *more, ""]).encode()


def cyclonedx(verdict: Verdict, *, name: str) -> bytes:
    """Return a CycloneDX 1.6 document of the packages that came in."""
    return _json(sbom.cyclonedx(verdict.after, name=name, packages=[*verdict.unexpected, *verdict.accepted]))


def spdx(verdict: Verdict, *, name: str) -> bytes:
    """Return an SPDX 2.3 document of the packages that came in."""
    return _json(sbom.spdx(verdict.after, name=name, packages=[*verdict.unexpected, *verdict.accepted]))


def made(form: str, verdict: Verdict, *, name: str, where: Path) -> bytes:
    """Return a verdict in one of `FORMS`."""
    if form == "sarif":
        return sarif(verdict, where=where.as_posix())
    return _MAKERS[form](verdict, name=name)


_MAKERS: Mapping[str, Callable[..., bytes]] = {
    "junit": junit,
    "markdown": markdown,
    "cyclonedx": cyclonedx,
    "spdx": spdx,
}
FORMS = ("junit", "sarif", "markdown", "cyclonedx", "spdx")


def _result(finding: Finding, index: int, where: str) -> dict[str, Any]:
    result: dict[str, Any] = {
        "ruleId": finding.rule.value,
        "ruleIndex": index,
        "level": _LEVELS[finding.severity],
        "message": {"text": finding_line(finding).strip()},
        "partialFingerprints": {"vmimagemanager/v1": finding.fingerprint},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": Path(where).as_uri() if where.startswith("/") else _uri(where)},
                    "region": {"startLine": 1},
                }
            }
        ],
    }
    if finding.accepted or finding.excepted:
        reason = finding.excepted or "The baseline accepts it."
        result["suppressions"] = [{"kind": "external", "justification": reason}]
    return result


def _uri(path: str) -> str:
    from urllib.parse import quote

    return quote(path)


def _row(finding: Finding) -> str:
    why = explained(finding.explanation) if finding.explanation else ""
    if finding.excepted:
        why = f"excepted: {finding.excepted}"
    elif finding.accepted:
        why = "accepted"
    item = f"`{_plain(finding.item)}`"
    cells = (finding.severity.value, finding.rule.value, item, cell(finding.detail), cell(why))
    return f"| {' | '.join(cells)} |"


def cell(text: str) -> str:
    """Return text for a cell of a table in Markdown: one line, without a link, an image or HTML of somebody else's."""
    return _plain(text).replace("[", "\\[").replace("<", "&lt;")


def _plain(text: str) -> str:
    """Return text on one line that ends neither a cell nor code."""
    plain = "".join(character if character.isprintable() else " " for character in text)
    return plain.replace("|", "\\|").replace("`", "'")


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=2).encode() + b"\n"
