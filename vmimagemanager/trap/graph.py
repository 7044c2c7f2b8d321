"""Who needs whom among the packages of one guest.

A clause is met by every installed package that has one of its names, or provides it; all of them count, as nothing says
which one it was meant to be.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from vmimagemanager.guest.inventory import Clause, Package


@dataclass(frozen=True, slots=True)
class Step:
    """How a package was reached: from ``parent`` (None: it is where the way begins), by ``clause``."""

    parent: Package | None
    clause: Clause = ()


class Graph:
    """The packages of one guest and what they need."""

    def __init__(self, packages: Iterable[Package]) -> None:
        self._providers: dict[str, dict[str, list[Package]]] = {}
        for package in packages:
            names = self._providers.setdefault(package.manager, {})
            names.setdefault(package.name, []).append(package)
            for name in package.provides:
                names.setdefault(name, []).append(package)

    def providers(self, manager: str, clause: Clause) -> Iterator[Package]:
        """Yield the packages that meet a clause."""
        names = self._providers.get(manager, {})
        for name in clause:
            yield from names.get(name, ())

    def needs(self, package: Package, *, recommended: bool = False) -> Iterator[tuple[Clause, Package]]:
        """Yield what a package needs, and with ``recommended`` what it recommends, too, each with its clause."""
        clauses = package.depends + package.recommends if recommended else package.depends
        names = self._providers[package.manager]
        for clause in clauses:
            for name in clause:
                for provider in names.get(name, ()):
                    yield clause, provider

    def reach(
        self, roots: Iterable[Package], *, recommended: bool = False, known: Mapping[Package, Step] | None = None
    ) -> dict[Package, Step]:
        """Return everything that can be reached from ``roots`` by a shortest way, the roots included.

        What is ``known`` was reached before: the way goes on from there, and it is in the result, too.  Both are of
        this graph's own packages, which are told apart by their identity here: that is what makes it quick.
        """
        steps = dict(known or {})
        seen = set(map(id, steps))
        waiting = list(steps)
        for root in roots:
            if id(root) not in seen:
                seen.add(id(root))
                steps[root] = Step(None)
                waiting.append(root)
        for package in waiting:  # which grows meanwhile
            names = self._providers[package.manager]
            for clause in package.depends + package.recommends if recommended else package.depends:
                for name in clause:
                    for needed in names.get(name, ()):
                        if id(needed) not in seen:
                            seen.add(id(needed))
                            steps[needed] = Step(package, clause)
                            waiting.append(needed)
        return steps


def chain(steps: Mapping[Package, Step], package: Package) -> tuple[Package, ...]:
    """Return the way to a package, from where it begins."""
    way = [package]
    while (parent := steps[way[-1]].parent) is not None:
        way.append(parent)
    return tuple(reversed(way))
