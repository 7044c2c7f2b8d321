"""What an inventory consists of: packages, as the guest's package managers know them, and facts about the system."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

# A clause is a list of alternatives, of which one suffices: Depends: default-mta | mail-transport-agent
Clause = tuple[str, ...]
_ODD = re.compile(r"[^!-9;-~]|%")
_PLAIN = re.compile(r"[!-$&-9;-~]*")
# What a terminal obeys, or shows as if it stood elsewhere, and what ends a line.
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One installed package.

    ``automatic`` says whether it came as a dependency of another (None where the manager does not say), ``foreign``
    whether it is built for another architecture than the guest's own.  ``place`` is the folder of a package that may
    be installed in several (Python, npm), ``owner`` the item of the system's package that its files belong to.
    What it needs is in clauses of names, which other packages have or provide.

    ``item`` identifies the package whatever its version: ``dpkg:hello``, or ``dpkg:libc6:i386`` when it is foreign.
    The guest's own architecture and 'all' are one there, because a package may change between them in an update.
    """

    manager: str
    name: str
    architecture: str
    version: str
    automatic: bool | None = None
    foreign: bool = False
    place: str = ""
    owner: str = ""
    source: str = ""
    essential: bool = False
    depends: tuple[Clause, ...] = field(default=(), repr=False)
    recommends: tuple[Clause, ...] = field(default=(), repr=False)
    provides: tuple[str, ...] = field(default=(), repr=False)

    item: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        _show(self, "name", "architecture", "version", "place", "source")
        more = self.place or (self.architecture if self.foreign else "")
        item = ":".join([self.manager, *(encoded(part) for part in (self.name, more) if part)])
        object.__setattr__(self, "item", item)

    def __hash__(self) -> int:
        return hash((self.item, self.version, self.architecture))


class Kind(StrEnum):
    """What a fact is about."""

    FILE = "file"
    SETUID = "setuid"
    CAPABILITY = "capability"
    MODIFIED = "modified"
    ALTERNATIVE = "alternative"
    UNIT = "unit"
    SOCKET = "socket"
    USER = "user"
    GROUP = "group"
    REPOSITORY = "repository"
    KEY = "key"
    MODULE = "module"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One thing that is true of the guest besides its packages, such as a user, a unit, or a file that nobody owns.

    ``detail`` is what may change while it stays the same thing (a unit's state), ``owner`` the item of the package that
    a file belongs to, if it does.
    """

    kind: Kind
    name: str
    detail: str = ""
    owner: str = ""

    def __post_init__(self) -> None:
        _show(self, "name", "detail", "owner")

    @property
    def item(self) -> str:
        """What identifies it: ``unit:atd.service``, ``setuid:/usr/bin/at``."""
        return f"{self.kind}:{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """What the guest says it is (os-release(5)), its kernel and its processor."""

    id: str = ""
    version: str = ""
    name: str = ""
    kernel: str = ""
    machine: str = ""


@dataclass(frozen=True, slots=True)
class Inventory:
    """All that was found in a guest at one moment; several versions of one item may be installed side by side (rpm).

    ``unknown`` says, by kind, why something could not be looked at.  The seconds of the guest's ``clock``, the
    ``archive`` (release files with their dates) and the ``owners`` (the item of the package that a file belongs to, by
    its real path) are no part of what two inventories differ in.
    """

    packages: frozenset[Package]
    facts: frozenset[Fact] = frozenset()
    system: System = System()
    unknown: Mapping[Kind, str] = field(default_factory=dict)
    clock: int = field(default=0, compare=False)
    archive: Mapping[str, str] = field(default_factory=dict, compare=False)
    owners: Mapping[bytes, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def items(self) -> frozenset[str]:
        """The items of the packages that are installed."""
        return frozenset(package.item for package in self.packages)

    def __sub__(self, other: Inventory) -> Inventory:
        """Return the packages whose item ``other`` does not have in any version, and the facts that it does not have.

        What one of the two could not look at is in no difference.
        """
        items, facts = other.items, {fact.item for fact in other.facts}
        unknown = self.unknown.keys() | other.unknown.keys()
        return Inventory(
            frozenset(package for package in self.packages if package.item not in items),
            frozenset(fact for fact in self.facts if fact.kind not in unknown and fact.item not in facts),
        )


def _show(thing: Package | Fact, *names: str) -> None:
    """Let a guest's text stand on one line and do nothing to a terminal; nearly all of it does already."""
    for name in names:
        text = getattr(thing, name)
        if not text.isprintable():
            object.__setattr__(thing, name, unseen(text))


def unseen(text: str) -> str:
    """Return text whose characters that cannot be seen are escaped: ``\\x1b``, and ``\\u0085`` above ASCII.

    A byte that is no character is ``\\x85`` elsewhere: the two must not be shown alike.
    """
    return _UNSEEN.sub(
        lambda odd: odd[0].encode("unicode_escape").decode() if odd[0] < "\x80" else f"\\u{ord(odd[0]):04x}", text
    )


def encoded(text: str) -> str:
    """Return a part of an item: visible ASCII without ':' and '%', which stand as %3A and %25, as in a URL."""
    if _PLAIN.fullmatch(text):
        return text
    return _ODD.sub(lambda odd: "".join(f"%{byte:02X}" for byte in odd[0].encode("utf-8", "surrogatepass")), text)
