"""Why a package is there: declared, needed by what is declared, recommended by it, or nothing of that."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from vmimagemanager.guest.inventory import Clause, Inventory, Package
from vmimagemanager.trap.graph import Graph, Step, chain


class Reason(StrEnum):
    """Why a package is there."""

    DECLARED = "declared"
    REQUESTED = "requested"
    TRANSITIVE = "transitive"
    RECOMMENDED = "recommended"
    UPDATE = "update"
    UNDECLARED = "undeclared"


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why a package is there.

    ``chain`` is the shortest way to it, from what is declared (or, for one that is undeclared, from the undeclared one
    that brought it), itself included; ``clause`` the relation of the last step.  ``brings`` are the items that came
    with an undeclared package that nothing undeclared needs.
    """

    reason: Reason
    chain: tuple[str, ...] = ()
    clause: Clause = ()
    brings: tuple[str, ...] = ()

    @property
    def is_root(self) -> bool:
        """Whether nothing else that is undeclared brought it."""
        return len(self.chain) < 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """One thing that somebody declared: any of ``names`` of one of the ``managers``; ``source`` is where it says so."""

    managers: tuple[str, ...]
    names: Clause
    source: str = ""


def explain(
    before: Inventory, after: Inventory, new: Collection[Package], needs: Sequence[Need] | None
) -> dict[Package, Explanation]:
    """Return why each of the ``new`` packages is there; without ``needs`` what was asked for by name is declared."""
    graph = Graph(after.packages)
    if needs is None:
        first, roots = Reason.REQUESTED, [package for package in new if package.automatic is not True]
        roots = [package for package in roots if package.manager not in _LANGUAGES or _is_top(package, new)]
    else:
        first, roots = Reason.DECLARED, declared(graph, needs)
    direct = graph.reach(_sorted(roots))
    wide = graph.reach((), recommended=True, known=direct) if len(direct) < len(after.packages) else direct
    updated = graph.reach(_sorted(_updated(before, after)))
    found: dict[Package, Explanation] = {}
    rest = []
    for package in new:
        if package in direct:
            root = direct[package].parent is None
            found[package] = _told(first if root else Reason.TRANSITIVE, direct, package)
        elif package in updated:
            found[package] = _told(Reason.UPDATE, updated, package)
        elif package in wide:
            found[package] = _told(Reason.RECOMMENDED, wide, package)
        else:
            rest.append(package)
    found.update(undeclared(graph, rest))
    return found


def declared(graph: Graph, needs: Iterable[Need]) -> list[Package]:
    """Return the packages that meet what somebody declared: all of them count, of each alternative."""
    return [package for need in needs for manager in need.managers for package in graph.providers(manager, need.names)]


def orphans(inventory: Inventory) -> frozenset[Package]:
    """Return what came by itself and is not needed or recommended any more by anything that did not."""
    graph = Graph(inventory.packages)
    roots = [package for package in inventory.packages if package.automatic is not True or package.essential]
    kept = graph.reach(roots, recommended=True)
    return frozenset(package for package in inventory.packages if package.automatic and package not in kept)


_LANGUAGES = ("python", "npm", "gem", "cargo")


def _is_top(package: Package, new: Iterable[Package]) -> bool:
    """Whether no other new package of a language needs this one: nobody notes what was asked for there."""
    return not any(
        (package.name,) in other.depends for other in new if other is not package and other.manager == package.manager
    )


def _updated(before: Inventory, after: Inventory) -> list[Package]:
    versions: dict[str, set[str]] = {}
    for package in before.packages:
        versions.setdefault(package.item, set()).add(package.version)
    return [
        package
        for package in after.packages
        if package.item in versions and package.version not in versions[package.item]
    ]


def undeclared(graph: Graph, packages: Collection[Package]) -> dict[Package, Explanation]:
    """Collapse to what brought the others: what nothing else undeclared needs, and one of each circle that is left."""
    inside = set(packages)
    edges = {
        package: [needed for _, needed in graph.needs(package, recommended=True) if needed in inside]
        for package in inside
    }
    needed_by_others = {
        needed for package, all_needed in edges.items() for needed in all_needed if needed is not package
    }
    ordered = _sorted(inside)
    ordered = [one for one in ordered if one not in needed_by_others] + [
        one for one in sorted(ordered, key=lambda one: one.automatic is True) if one in needed_by_others
    ]
    found: dict[Package, Explanation] = {}
    for root in ordered:
        if root in found:
            continue
        steps: dict[Package, Step] = {root: Step(None)}
        waiting = [root]
        for package in waiting:
            for clause, needed in graph.needs(package, recommended=True):
                if needed in inside and needed not in steps and needed not in found:
                    steps[needed] = Step(package, clause)
                    waiting.append(needed)
        brought = tuple(sorted(one.item for one in steps if one is not root))
        for package in steps:
            told = _told(Reason.UNDECLARED, steps, package)
            found[package] = Explanation(
                reason=told.reason, chain=told.chain, clause=told.clause, brings=brought if package is root else ()
            )
    return found


def _told(reason: Reason, steps: Mapping[Package, Step], package: Package) -> Explanation:
    way = tuple(one.item for one in chain(steps, package))
    return Explanation(reason=reason, chain=way, clause=steps[package].clause)


def _sorted(packages: Iterable[Package]) -> list[Package]:
    return sorted(packages, key=lambda package: (package.item, package.version))
