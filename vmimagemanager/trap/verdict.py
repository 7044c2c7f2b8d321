"""What the trap says about two inventories of one guest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vmimagemanager.guest.inventory import Inventory, Package
from vmimagemanager.trap.baseline import Baseline


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A package that was there before and after, in other versions."""

    package: Package
    before: tuple[str, ...]
    after: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The packages that are new, and accepted or not; what else differs is information.

    ``stale`` are the items of the baseline that nothing new matched: left over, or accepted for another command.  All
    are sorted by manager, name and architecture.
    """

    unexpected: tuple[Package, ...]
    accepted: tuple[Package, ...]
    gone: tuple[Package, ...]
    changed: tuple[Change, ...]
    stale: tuple[str, ...]

    @property
    def trapped(self) -> bool:
        """Whether a package is new that nobody accepted."""
        return bool(self.unexpected)


def compare(before: Inventory, after: Inventory, baseline: Baseline) -> Verdict:
    """Return what differs between two inventories of one guest, judged by a baseline."""
    new, accepted = after - before, baseline.accepted
    return Verdict(
        unexpected=_sorted(package for package in new.packages if package.item not in accepted),
        accepted=_sorted(package for package in new.packages if package.item in accepted),
        gone=_sorted((before - after).packages),
        changed=_changes(before, after),
        stale=tuple(sorted(accepted - new.items)),
    )


def _changes(before: Inventory, after: Inventory) -> tuple[Change, ...]:
    olds, news = _by_item(before), _by_item(after)
    changes = []
    for item in olds.keys() & news.keys():
        old, new = _versions(olds[item]), _versions(news[item])
        if old != new:
            changes.append(Change(package=max(news[item], key=_order), before=old, after=new))
    return tuple(sorted(changes, key=lambda change: _order(change.package)))


def _by_item(inventory: Inventory) -> dict[str, list[Package]]:
    found: dict[str, list[Package]] = {}
    for package in inventory.packages:
        found.setdefault(package.item, []).append(package)
    return found


def _versions(packages: Iterable[Package]) -> tuple[str, ...]:
    return tuple(sorted(package.version for package in packages))


def _sorted(packages: Iterable[Package]) -> tuple[Package, ...]:
    return tuple(sorted(packages, key=_order))


def _order(package: Package) -> tuple[str, str, str, str]:
    return package.manager, package.name, package.architecture, package.version
