"""A verdict of the trap, as text and as JSON."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from vmimagemanager.guest.inventory import Package
from vmimagemanager.proof import Proof
from vmimagemanager.report.inventory import package_document
from vmimagemanager.trap import Change, Explanation, Finding, Reason, Rule, Severity, Verdict
from vmimagemanager.trap.history import Seen

FORMAT = 1
_REASONS = {
    Reason.DECLARED: "declared",
    Reason.REQUESTED: "installed on request",
    Reason.TRANSITIVE: "needed",
    Reason.RECOMMENDED: "recommended",
    Reason.UPDATE: "needed by an update",
    Reason.UNDECLARED: "undeclared",
}
_KNOWN = (Rule.GONE, Rule.VERSION)  # they have sections of their own


def lines(verdict: Verdict, *, accept: str = "", fixed: Sequence[Seen] = ()) -> list[str]:
    """Return a verdict in whole sentences; ``accept`` is the command that accepts what is unexpected."""
    counting = [finding for finding in verdict.findings if finding.counts]
    shown = []
    if counting:
        what = "of what was left behind" if verdict.clean else _against(counting)
        shown += [f"Trapped: {_count(counting, 'finding')} {what}.", *map(line, counting)]
        if accept and any(finding.rule is not Rule.UNDECLARED for finding in counting):
            shown.append(f"To accept {'it' if len(counting) == 1 else 'them'}: {accept}")
    else:
        why = "nothing was left behind" if verdict.clean else "nothing is new that the baseline does not accept"
        shown.append(f"Nothing was trapped: {why}.")
    for title, found in _others(verdict).items():
        shown += [f"{title}: {_count(found, 'finding')}.", *map(line, found)] if found else []
    if verdict.accepted:
        shown += [f"Accepted by the baseline: {_count(verdict.accepted, 'package')}.", *_listed(verdict.accepted)]
    if verdict.gone:
        shown += [f"No longer installed: {_count(verdict.gone, 'package')}.", *_listed(verdict.gone)]
    if verdict.changed:
        shown += [f"In another version: {_count(verdict.changed, 'package')}.", *map(_change, verdict.changed)]
    if verdict.stale:
        shown += ["In the baseline, but not new this time:", *(f"  {item}" for item in verdict.stale)]
    if fixed:
        shown += ["Fixed since the earlier run:", *(f"  {seen.item} ({seen.rule})" for seen in fixed)]
    return shown


def line(finding: Finding) -> str:
    """Return one finding on one line: what, why, since when."""
    parts = [f"  {finding.item} {finding.detail}".rstrip()]
    why = explained(finding.explanation) if finding.explanation else ""
    parts += [why] if why.startswith(finding.rule) else [finding.rule.value, why]
    if finding.excepted:
        parts.append(f"excepted: {finding.excepted}")
    if finding.label:
        cause = f", by {finding.cause}" if finding.cause else ""
        parts.append(f"{finding.label} since {finding.since}{cause}")
    return ", ".join(part for part in parts if part)


def explained(explanation: Explanation) -> str:
    """Return why a package is there, with the whole way to it."""
    text = _REASONS[explanation.reason]
    if not explanation.is_root:
        text += f": {' → '.join(explanation.chain)}"
        if len(explanation.clause) > 1:
            text += f" ({' | '.join(explanation.clause)})"
    if explanation.brings:
        text += f", brings {', '.join(explanation.brings)}"
    return text


def document(verdict: Verdict, *, inputs: str = "", today: str = "", fixed: Sequence[Seen] = ()) -> dict[str, Any]:
    """Return a verdict for JSON; ``item`` is how a baseline names a thing, and stays the same in every version."""
    return {
        "format": FORMAT,
        "kind": "trap",
        "trapped": verdict.trapped,
        "clean": verdict.clean,
        "date": today,
        "inputs": inputs,
        "base": verdict.base,
        "archive": dict(sorted(verdict.after.archive.items())),
        "findings": [finding_document(finding, today) for finding in verdict.findings],
        "fixed": [{"rule": seen.rule, "item": seen.item, "since": seen.since} for seen in fixed],
        "unexpected": [package_document(package) for package in verdict.unexpected],
        "accepted": [package_document(package) for package in verdict.accepted],
        "gone": [package_document(package) for package in verdict.gone],
        "changed": [
            {
                "item": change.package.item,
                "manager": change.package.manager,
                "name": change.package.name,
                "architecture": change.package.architecture,
                "before": list(change.before),
                "after": list(change.after),
            }
            for change in verdict.changed
        ],
        "stale": list(verdict.stale),
        "unknown": _unknown(verdict),
    }


def proof_lines(proof: Proof) -> list[str]:
    """Return what a proof came to, and how much it is worth."""
    runs = _count(range(proof.trials), "run")
    known = f", {proof.remembered} known already" if proof.remembered else ""
    told = f"{_count(proof.needed, 'package')} needed and not declared, {len(proof.cleared)} not needed"
    return [
        f"Proven in {runs} on clones of '{proof.snapshot}'{known}: {told}.",
        *(f"  {item}: {why}" for item, why in sorted(proof.needed.items())),
        f"Compared: {proof.oracle}.",
    ]


def proof_document(proof: Proof) -> dict[str, Any]:
    """Return a proof for JSON."""
    return {
        "snapshot": proof.snapshot,
        "needed": dict(sorted(proof.needed.items())),
        "cleared": sorted(proof.cleared),
        "compared": list(proof.compared),
        "unstable": list(proof.unstable),
        "trials": proof.trials,
        "remembered": proof.remembered,
    }


def finding_document(finding: Finding, today: str = "") -> dict[str, Any]:
    """Return a finding for JSON."""
    told = finding.explanation
    return {
        "fingerprint": finding.fingerprint,
        "rule": finding.rule.value,
        "item": finding.item,
        "severity": finding.severity.value,
        "counts": finding.counts,
        "detail": finding.detail,
        "accepted": finding.accepted,
        "excepted": finding.excepted,
        "reason": told.reason.value if told else "",
        "chain": list(told.chain) if told else [],
        "clause": list(told.clause) if told else [],
        "brings": list(told.brings) if told else [],
        "label": finding.label.value if finding.label else "",
        "since": finding.since or today,
        "cause": finding.cause,
    }


def _against(counting: Sequence[Finding]) -> str:
    """Return against what findings are: the baseline, what is declared, or both."""
    undeclared = [finding.rule is Rule.UNDECLARED for finding in counting]
    if all(undeclared):
        return "that is not declared" if len(counting) == 1 else "that are not declared"
    return (
        "not declared, or that the baseline does not accept" if any(undeclared) else "that the baseline does not accept"
    )


def _unknown(verdict: Verdict) -> dict[str, str]:
    both: Mapping[Any, str] = {**verdict.before.unknown, **verdict.after.unknown}
    return {kind.value: reason for kind, reason in sorted(both.items())}


def _others(verdict: Verdict) -> dict[str, list[Finding]]:
    """Return what does not spring the trap, and was not told elsewhere."""
    rest = [finding for finding in verdict.findings if not finding.counts and finding.rule not in _KNOWN]
    return {
        "Excepted by the policy": [finding for finding in rest if finding.excepted],
        "Warnings": [one for one in rest if one.severity is Severity.WARNING and not one.excepted and not one.accepted],
    }


def _count(entries: Collection[object], noun: str) -> str:
    return f"1 {noun}" if len(entries) == 1 else f"{len(entries)} {noun}s"


def _listed(packages: Iterable[Package]) -> list[str]:
    return [f"  {package.item} {package.version}" for package in packages]


def _change(change: Change) -> str:
    return f"  {change.package.item} {' and '.join(change.before)} → {' and '.join(change.after)}"
