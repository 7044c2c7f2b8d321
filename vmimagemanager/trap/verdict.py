"""What the trap says about two inventories of one guest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime

from vmimagemanager.guest.inventory import Inventory, Package
from vmimagemanager.trap import facts, used
from vmimagemanager.trap.baseline import Baseline, fingerprint
from vmimagemanager.trap.explain import Explanation, Need, Reason, explain, orphans
from vmimagemanager.trap.finding import Finding, Rule, Severity
from vmimagemanager.trap.policy import Policy, Versions
from vmimagemanager.trap.used import Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A package that was there before and after, in other versions."""

    package: Package
    before: tuple[str, ...]
    after: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The packages that are new, and accepted or not; what else differs; and every finding, with its severity.

    ``stale`` are the items of the baseline that nothing new matched: left over, or accepted for another command.  All
    are sorted by manager, name and architecture.  ``base`` is the fingerprint of the guest before, and ``clean`` says
    that nothing was to be left behind.
    """

    unexpected: tuple[Package, ...]
    accepted: tuple[Package, ...]
    gone: tuple[Package, ...]
    changed: tuple[Change, ...]
    stale: tuple[str, ...]
    findings: tuple[Finding, ...] = ()
    base: str = field(default="", compare=False)
    clean: bool = False
    before: Inventory = field(default=Inventory(frozenset()), repr=False, compare=False)
    after: Inventory = field(default=Inventory(frozenset()), repr=False, compare=False)

    @property
    def trapped(self) -> bool:
        """Whether there is an error that neither the baseline accepts nor the policy excepts."""
        return any(finding.counts for finding in self.findings)

    @property
    def open_items(self) -> frozenset[str]:
        """What a baseline has to accept so that nothing is trapped, or warned of, but what is undeclared."""
        return frozenset(
            finding.item
            for finding in self.findings
            if finding.rule in _ACCEPTABLE and not finding.accepted and not finding.excepted
            if finding.rule is Rule.NEW or finding.severity is not Severity.INFO
        )

    @property
    def accepted_items(self) -> frozenset[str]:
        """What the baseline accepted of what is new."""
        return frozenset(finding.item for finding in self.findings if finding.rule in _ACCEPTABLE and finding.accepted)


def compare(
    before: Inventory,
    after: Inventory,
    baseline: Baseline,
    *,
    policy: Policy | None = None,
    needs: Sequence[Need] | None = None,
    usage: Usage | None = None,
    today: date | None = None,
) -> Verdict:
    """Return what differs between two inventories of one guest, judged by a baseline and a policy.

    ``needs`` is what is declared; without it nothing is reported as undeclared, nor what was used (``usage``).
    """
    policy = Policy() if policy is None else policy
    new = [package for package in (after - before).packages if not package.owner]
    gone = _sorted(package for package in (before - after).packages if not package.owner)
    changed = _changes(before, after)
    explanations = explain(before, after, new, needs)
    found = [
        *_about_new(new, explanations, baseline, policy),
        *_about_versions(changed, new, baseline, policy),
        *(
            Finding(rule=Rule.GONE, item=one.item, severity=policy.severities[Rule.GONE], detail=one.version)
            for one in gone
        ),
        *(_about_orphans(before, after, policy) if gone or changed else ()),
        *facts.findings(before, after, baseline.accepted, policy),
    ]
    if needs is not None:
        found += _about_undeclared(new, explanations, policy)
        if usage is not None:
            found += used.findings(before, after, needs, usage, accepted=baseline.accepted, policy=policy)
    findings = policy.judged(_merged(found), today or datetime.now(UTC).date())
    excepted = {finding.item for finding in findings if finding.rule is Rule.NEW and finding.excepted}
    seen = {finding.item for finding in findings if finding.accepted}
    if usage is None:
        seen |= {item for item in baseline.accepted if item.startswith(used.PREFIX)}
    return Verdict(
        unexpected=_sorted(one for one in new if one.item not in baseline.accepted and one.item not in excepted),
        accepted=_sorted(one for one in new if one.item in baseline.accepted),
        gone=gone,
        changed=changed,
        stale=tuple(sorted(baseline.accepted - seen - {package.item for package in new})),
        findings=tuple(sorted(findings, key=lambda finding: (finding.rule, finding.item, finding.detail))),
        base=fingerprint(before),
        clean=policy.clean,
        before=before,
        after=after,
    )


_ACCEPTABLE = frozenset(Rule) - {
    Rule.UNDECLARED,
    Rule.GONE,
    Rule.VERSION,
    Rule.ORPHANED,
    Rule.EXPIRED,
    Rule.UNUSED,
}


def _merged(findings: Iterable[Finding]) -> list[Finding]:
    """Tell an item once, in however many versions and places a rule has found it."""
    found: dict[tuple[Rule, str], Finding] = {}
    for finding in sorted(findings, key=lambda finding: finding.detail):
        known = found.get((finding.rule, finding.item))
        several = known is not None and known.detail != finding.detail
        found[finding.rule, finding.item] = (
            replace(known, detail=f"{known.detail} and {finding.detail}") if known is not None and several else finding
        )
    return list(found.values())


def _about_new(
    new: Iterable[Package], explanations: dict[Package, Explanation], baseline: Baseline, policy: Policy
) -> Iterable[Finding]:
    for package in new:
        yield Finding(
            rule=Rule.NEW,
            item=package.item,
            severity=policy.severities[Rule.NEW],
            detail=package.version,
            explanation=explanations[package],
            accepted=package.item in baseline.accepted,
        )


def _about_undeclared(
    new: Iterable[Package], explanations: dict[Package, Explanation], policy: Policy
) -> Iterable[Finding]:
    for package in new:
        told = explanations[package]
        if told.reason is Reason.UNDECLARED and told.is_root:
            severity = policy.severities[Rule.UNDECLARED]
            yield Finding(
                rule=Rule.UNDECLARED, item=package.item, severity=severity, detail=package.version, explanation=told
            )


def _about_versions(
    changed: Iterable[Change], new: Iterable[Package], baseline: Baseline, policy: Policy
) -> Iterable[Finding]:
    """Tell what was updated, and what is accepted but has another version than the baseline recorded."""
    severity = policy.severities[Rule.VERSION]
    for change in changed:
        detail = f"{' and '.join(change.before)} → {' and '.join(change.after)}"
        yield Finding(rule=Rule.VERSION, item=change.package.item, severity=severity, detail=detail)
    if policy.versions is Versions.IGNORE:
        return
    exact = policy.versions is Versions.EXACT
    for package in new:
        recorded = baseline.versions.get(package.item, package.version)
        if package.item in baseline.accepted and recorded != package.version:
            yield Finding(
                rule=Rule.VERSION,
                item=package.item,
                severity=policy.severities[Rule.NEW] if exact else severity,
                detail=f"{recorded} in the baseline, {package.version} now",
            )


def _about_orphans(before: Inventory, after: Inventory, policy: Policy) -> Iterable[Finding]:
    earlier = {package.item for package in orphans(before)}
    for package in orphans(after):
        if package.item not in earlier:
            severity = policy.severities[Rule.ORPHANED]
            yield Finding(rule=Rule.ORPHANED, item=package.item, severity=severity, detail=package.version)


def _changes(before: Inventory, after: Inventory) -> tuple[Change, ...]:
    olds, news = _by_item(before), _by_item(after)
    changes = []
    for item in olds.keys() & news.keys():
        if olds[item] == news[item]:
            continue
        old, new = _versions(olds[item]), _versions(news[item])
        if old != new:
            changes.append(Change(package=max(news[item], key=_order), before=old, after=new))
    return tuple(sorted(changes, key=lambda change: _order(change.package)))


def _by_item(inventory: Inventory) -> dict[str, list[Package]]:
    found: dict[str, list[Package]] = {}
    for package in inventory.packages:
        if not package.owner:
            found.setdefault(package.item, []).append(package)
    return found


def _versions(packages: Iterable[Package]) -> tuple[str, ...]:
    return tuple(sorted(package.version for package in packages))


def _sorted(packages: Iterable[Package]) -> tuple[Package, ...]:
    return tuple(sorted(packages, key=_order))


def _order(package: Package) -> tuple[str, str, str, str, str]:
    return package.manager, package.name, package.place, package.architecture, package.version
