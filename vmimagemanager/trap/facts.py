"""What is said about facts that are new, gone or other than before, and about packages that hide each other."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from vmimagemanager.guest.inventory import Fact, Inventory, Kind, Package
from vmimagemanager.guest.inventory.files import in_program_path
from vmimagemanager.trap.finding import Finding, Rule
from vmimagemanager.trap.policy import Policy

# Folders in which each entry is one thing that somebody installed: new files below it are told as one.
_WHOLE = re.compile(
    r"(?:.*/(?:dist|site)-packages/|.*/node_modules/(?:@[^/]+/)?|/opt/|/srv/|/var/www/|/var/lib/|/usr/share/"
    r"|/usr/local/(?:lib|share|include|src)/)[^/]+/(?=.)"
)
_SYSTEM_PYTHON = re.compile(r"(/usr(/local)?|/root/\.local|/home/[^/]+/\.local)/lib(64)?/python3[^/]*/[^/]+")
_Judge = tuple[Collection[str], Policy]
_QUIET_WHEN_GONE = (Kind.MODULE, Kind.MODIFIED)


def findings(before: Inventory, after: Inventory, accepted: Collection[str], policy: Policy) -> Iterator[Finding]:
    """Yield what differs; what one of the two could not look at is left out."""
    unknown = (before.unknown.keys() | after.unknown.keys()) - {Kind.MODIFIED}
    olds = {fact.item: fact for fact in before.facts}
    news = {fact.item: fact for fact in after.facts}
    folded: dict[str, list[str]] = {}
    for item, fact in news.items():
        old = olds.get(item)
        if fact.kind in unknown or (old is not None and old.detail == fact.detail):
            continue
        rule = _rule(fact)
        whole = _WHOLE.match(fact.name) if fact.kind is Kind.FILE and old is None else None
        if whole:
            folded.setdefault(whole[0], []).append(fact.name)
            continue
        detail = fact.detail if old is None else f"{old.detail} → {fact.detail}"
        owner = f"{detail}, of {fact.owner}" if fact.owner else detail
        yield _finding(rule, item, owner, (accepted, policy))
    for folder, names in folded.items():
        rule = Rule.PROGRAM if any(map(in_program_path, names)) and not _of_language(folder, after) else Rule.FILE
        count = "1 file" if len(names) == 1 else f"{len(names)} files"
        yield _finding(rule, f"{Kind.FILE}:{folder}", count, (accepted, policy))
    quiet = _QUIET_WHEN_GONE if policy.clean else (*_QUIET_WHEN_GONE, Kind.FILE)
    for item, fact in olds.items():
        if item not in news and fact.kind not in unknown and fact.kind not in quiet:
            yield Finding(rule=Rule.GONE, item=item, severity=policy.severities[Rule.GONE], detail=fact.detail)
    yield from _shadowed(before, after, (accepted, policy))


def _rule(fact: Fact) -> Rule:
    if fact.kind is Kind.FILE:
        return Rule.PROGRAM if in_program_path(fact.name) else Rule.FILE
    return Rule(fact.kind.value)


def _finding(rule: Rule, item: str, detail: str, judge: _Judge) -> Finding:
    accepted, policy = judge
    return Finding(rule=rule, item=item, severity=policy.severities[rule], detail=detail, accepted=item in accepted)


def _of_language(folder: str, inventory: Inventory) -> bool:
    """Whether a folder is that of a package of a language, which is told by itself."""
    places = {package.place for package in inventory.packages if package.place}
    return folder.rstrip("/").rpartition("/")[0] in places


def _shadowed(before: Inventory, after: Inventory, judge: _Judge) -> Iterator[Finding]:
    known = before.items
    by_name: dict[str, list[Package]] = {}
    for package in after.packages:
        if package.manager == "python" and _SYSTEM_PYTHON.fullmatch(package.place):
            by_name.setdefault(package.name, []).append(package)
    for packages in by_name.values():
        new = [package for package in packages if package.item not in known]
        for package in new:
            for other in packages:
                if other.place == package.place or (other in new and other.item < package.item):
                    continue
                owner = f" of {other.owner}" if other.owner else ""
                detail = f"{package.version} beside {other.version}{owner} in {other.place}"
                item = f"shadowed:{package.item}"
                yield _finding(Rule.SHADOWED, item, detail, judge)
