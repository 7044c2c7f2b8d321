"""What was used and not declared: files that were opened, by the packages of the base that they belong to.

What a guest uses by itself is no finding: what a command that does nothing uses, over the same channel, the programs
that run already, what is essential, and all that these depend on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from vmimagemanager.guest.inventory import Inventory, Package
from vmimagemanager.guest.inventory.answer import visible
from vmimagemanager.guest.inventory.files import in_program_path
from vmimagemanager.trap.explain import Explanation, Need, declared, undeclared
from vmimagemanager.trap.finding import Finding, Rule, Severity
from vmimagemanager.trap.graph import Graph
from vmimagemanager.trap.policy import Policy

Used = Mapping[bytes, frozenset[bytes]]
PREFIX = "used:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """The files that a block used, each with the programs that did it where that is known, and what is used anyway.

    A proof says which items are ``needed``, each with what goes otherwise without it, and which are not (``cleared``).
    """

    files: Used
    idle: Collection[bytes] = field(default=frozenset(), repr=False)
    needed: Mapping[str, str] = field(default_factory=dict)
    cleared: frozenset[str] = frozenset()


def spare(base: Inventory, inventory: Inventory, needs: Sequence[Need], usage: Usage) -> tuple[Package, ...]:
    """Return the packages of the base that neither what is declared nor the guest by itself needs, sorted.

    ``inventory`` is the guest with them, where files have owners.
    """
    graph = Graph(inventory.packages)
    owners = {inventory.owners[path] for path in usage.idle if path in inventory.owners}
    anyway = [package for package in inventory.packages if package.essential or package.item in owners]
    kept = graph.reach(_sorted([*declared(graph, needs), *anyway]))
    items = base.items
    return tuple(
        package
        for package in _sorted(inventory.packages)
        if package.item in items and package not in kept and not package.owner
    )


def findings(
    base: Inventory,
    inventory: Inventory,
    needs: Sequence[Need],
    usage: Usage,
    *,
    accepted: Collection[str],
    policy: Policy,
) -> Iterator[Finding]:
    """Yield what of the base was used or is needed although nothing declared leads to it, without what only that needs.

    What was proven not to be needed is information only.
    """
    idle = frozenset(usage.idle)
    used = {path: who for path, who in usage.files.items() if path not in idle}
    by_item: dict[str, list[bytes]] = {}
    for path in sorted(used):
        by_item.setdefault(inventory.owners.get(path, ""), []).append(path)
    found = [
        package
        for package in spare(base, inventory, needs, usage)
        if package.item in by_item or package.item in usage.needed
    ]
    for package, told in undeclared(Graph(inventory.packages), found).items():
        if told.is_root:
            item, concerned = PREFIX + package.item, (package.item, *told.brings)
            cleared = usage.cleared.issuperset(concerned)
            detail = [_used(by_item[package.item], used)] if package.item in by_item else []
            detail += [usage.needed[item] for item in concerned if item in usage.needed]
            detail += ["not needed, as was proven"] if cleared else []
            yield Finding(
                rule=Rule.USED,
                item=item,
                severity=Severity.INFO if cleared else policy.severities[Rule.USED],
                detail=", ".join(detail),
                explanation=Explanation(reason=told.reason, brings=told.brings),
                accepted=item in accepted,
            )
    known = {fact.name for fact in base.facts}
    for path in by_item.get("", ()):
        name = visible(path)
        if name in known and in_program_path(name):
            item = f"{PREFIX}file:{name}"
            severity = policy.severities[Rule.USED]
            yield Finding(
                rule=Rule.USED, item=item, severity=severity, detail=_used([path], used), accepted=item in accepted
            )


def _used(paths: Sequence[bytes], used: Used) -> str:
    """Name a file that was used, the program where there is one, and who used it."""
    best = min(paths, key=lambda path: (b"/bin/" not in path and b"/sbin/" not in path, path))
    who = sorted(visible(program) for program in used[best] if program not in paths)
    by = f" by {', '.join(who)}" if who else ""
    more = f", and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"{visible(best)}{by}{more}"


def _sorted(packages: Iterable[Package]) -> list[Package]:
    return sorted(packages, key=lambda package: (package.item, package.version))
