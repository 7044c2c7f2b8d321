"""An inventory, as lines and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from vmimagemanager.guest.inventory import Fact, Inventory, Package


def lines(inventory: Inventory) -> list[str]:
    """Return one line for each item, sorted, so that two inventories can be compared by diff(1)."""
    packages = [f"{package.item} {package.version}{_owned(package.owner)}" for package in ordered(inventory)]
    return packages + [f"{fact.item} {fact.detail}".rstrip() + _owned(fact.owner) for fact in ordered_facts(inventory)]


def document(inventory: Inventory) -> dict[str, Any]:
    """Return an inventory for JSON."""
    return {
        "system": asdict(inventory.system),
        "packages": [package_document(package) for package in ordered(inventory)],
        "facts": [fact_document(fact) for fact in ordered_facts(inventory)],
        "unknown": {kind.value: reason for kind, reason in sorted(inventory.unknown.items())},
        "archive": dict(sorted(inventory.archive.items())),
    }


def package_document(package: Package) -> dict[str, Any]:
    """Return a package for JSON; ``item`` is how a baseline names it, and stays the same in every version."""
    return {
        "item": package.item,
        "manager": package.manager,
        "name": package.name,
        "architecture": package.architecture,
        "version": package.version,
        "automatic": package.automatic,
        **({"place": package.place} if package.place else {}),
        **({"owner": package.owner} if package.owner else {}),
        **({"source": package.source} if package.source else {}),
    }


def fact_document(fact: Fact) -> dict[str, Any]:
    """Return a fact for JSON."""
    return {"item": fact.item, "kind": fact.kind.value, "name": fact.name, "detail": fact.detail, "owner": fact.owner}


def ordered(inventory: Inventory) -> list[Package]:
    """Return the packages by manager, name, place and version."""
    return sorted(inventory.packages, key=lambda package: (package.item, package.architecture, package.version))


def ordered_facts(inventory: Inventory) -> list[Fact]:
    """Return the facts by kind and name."""
    return sorted(inventory.facts, key=lambda fact: (fact.kind, fact.name, fact.detail))


def _owned(owner: str) -> str:
    return f" ({owner})" if owner else ""
