"""A package as a guest's package manager knows it, and the set of all that are installed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One installed package.

    ``automatic`` says whether it came as a dependency of another (None where the manager does not say), ``foreign``
    whether it is built for another architecture than the guest's own.
    """

    manager: str
    name: str
    architecture: str
    version: str
    automatic: bool | None = None
    foreign: bool = False

    @property
    def item(self) -> str:
        """What identifies the package whatever its version: ``dpkg:hello``, or ``dpkg:libc6:i386`` when it is foreign.

        The guest's own architecture and 'all' are one here, because a package may change between them in an update.
        """
        return f"{self.manager}:{self.name}:{self.architecture}" if self.foreign else f"{self.manager}:{self.name}"


@dataclass(frozen=True, slots=True)
class Inventory:
    """All packages of a guest at one moment; several versions of one item may be installed side by side (rpm)."""

    packages: frozenset[Package]

    @property
    def items(self) -> frozenset[str]:
        """The items that are installed."""
        return frozenset(package.item for package in self.packages)

    def __sub__(self, other: Inventory) -> Inventory:
        """Return the packages whose item ``other`` does not have in any version."""
        items = other.items
        return Inventory(frozenset(package for package in self.packages if package.item not in items))
