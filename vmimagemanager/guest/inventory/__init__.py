"""What is in a guest, asked in one round trip.

The probe is a POSIX sh script for the standard input of one ``sh -s``.  It needs no file of its own in the guest, nor
any program but the shell for what the guest's package manager can say; what else is missing (find, grep, getcap)
is told, and never taken for nothing.  The guest only reads and lists: everything is understood here.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from enum import Enum
from typing import Protocol

from vmimagemanager.errors import GuestError
from vmimagemanager.guest.inventory import apk, dpkg, files, languages, pacman, rpm, system, units
from vmimagemanager.guest.inventory.answer import Answer, read
from vmimagemanager.guest.inventory.packages import Clause, Fact, Inventory, Kind, Package, System

__all__ = ["Clause", "Fact", "Inventory", "Kind", "Package", "Run", "Scope", "System", "parse", "script", "take"]

EVER = 0


class Run(Protocol):
    """Runs a POSIX sh script in the guest, as ``sh -s`` does from its standard input, and returns what it wrote."""

    def __call__(self, script: str, /) -> bytes: ...


class Scope(Enum):
    """How much to look at: the package managers' databases alone, or everything."""

    PACKAGES = "packages"
    WHOLE = "whole"


class Manager(Protocol):
    """A package manager: a module that asks for its packages in the guest and reads the answer on the host."""

    @property
    def NAME(self) -> str: ...  # noqa: N802 - the name of a module's constant
    @property
    def PROBE(self) -> str: ...  # noqa: N802
    @property
    def FILES_PROBE(self) -> str: ...  # noqa: N802
    def parse(self, answer: Answer, /) -> Iterable[Package]: ...
    def owners(self, answer: Answer, /) -> dict[bytes, str]: ...


MANAGERS: tuple[Manager, ...] = (dpkg, rpm, apk, pacman)

# The shell has read the function whole before it calls it, so that nothing in it can eat the rest of the script.
_FRAME = r"""
main() {{
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C TZ=UTC
export PATH LC_ALL TZ
unset DPKG_ROOT DPKG_ADMINDIR RPM_CONFIGDIR COLUMNS POSIXLY_CORRECT GREP_OPTIONS SYSTEMD_COLORS GZIP
mark={mark} since={since} running={running}
section() {{
    printf '\036%s %s\n' "$mark" "$1"
    shift
    "$@"
    printf '\036%s=%s\n' "$mark" "$?"
}}
show() {{
    while IFS= read -r line || [ "$line" ]; do
        printf '%s\n' "$line"
    done <"$1"
}}
have() {{
    command -v "$1" >/dev/null 2>&1
}}
{body}
printf '\036%s.\n' "$mark"
}}
if command -v gzip >/dev/null 2>&1; then main </dev/null | gzip -1; else main </dev/null; fi
"""


def take(run: Run, scope: Scope = Scope.WHOLE, *, since: int | None = None, running: bool = True) -> Inventory:
    """Return what is in the guest now; ``running`` is false where its disk alone is looked at.

    Files of packages that have changed since the second ``since`` of the guest's clock (`Inventory.clock`, or `EVER`)
    are compared with what their packages brought; without it they are not.  Raises GuestError when the answer was cut
    off, when a package manager failed, or when the guest has none that is known.  Nothing is changed in the guest.
    """
    mark = secrets.token_hex(16)
    return parse(run(script(mark, scope, since=since, running=running)), mark)


def script(mark: str, scope: Scope = Scope.WHOLE, *, since: int | None = None, running: bool = True) -> str:
    """Return the probe, whose sections are told apart by ``mark``: letters and digits that nobody can guess."""
    parts = [manager.PROBE for manager in MANAGERS]
    if scope is Scope.WHOLE:
        parts += [manager.FILES_PROBE for manager in MANAGERS]
        parts += [files.PROBE, files.CHANGED_PROBE, languages.PROBE, system.PROBE]
    return framed(mark, "".join(parts), since="" if since is None else str(int(since)), running=running)


def framed(mark: str, body: str, *, since: str = "", running: bool = True) -> str:
    """Return a script of sections, told apart by ``mark``, whose answer `answer.read` understands."""
    return _FRAME.format(mark=mark, since=since, running="yes" if running else "", body=body)


def parse(answer: bytes, mark: str) -> Inventory:
    """Return the inventory that an answer to `script` holds; raise GuestError as `take` does."""
    found = read(answer, mark)
    present = [manager for manager in MANAGERS if manager.NAME in found]
    if not present:
        known = ", ".join(manager.NAME for manager in MANAGERS)
        raise GuestError(f"The guest has no package database that is known: expected one of {known}.")
    for section in _REQUIRED:
        found.require(section)
    packages = {package for manager in present for package in manager.parse(found)}
    if not packages:  # rpm may end with status 0 although it could not read its database
        raise GuestError(f"The guest's package database lists nothing at all: {present[0].NAME} cannot read it.")
    if "clock" not in found:
        return Inventory(frozenset(_named(packages)), unknown=dict.fromkeys(Kind, "only packages were looked at"))
    return _whole(found, packages, mark)


def _named(packages: set[Package]) -> set[Package]:
    """Return packages; raise GuestError for one without a name, which a damaged database may hold."""
    for package in packages:
        if not package.name:
            raise GuestError(f"The guest's {package.manager} lists a package without a name: its database is damaged.")
    return packages


_REQUIRED = (
    *("dpkg", "dpkg-automatic", "dpkg-files", "rpm", "rpm-architecture", "rpm-files"),
    *("apk", "apk-world", "pacman", "users", "groups", "repositories", "keys"),
)
_NO_FIND = "the guest has no find that can be used"


def _whole(found: Answer, packages: set[Package], mark: str) -> Inventory:
    owners = {path: item for manager in MANAGERS for path, item in manager.owners(found).items()}
    walk = files.parse(found, owners, mark)
    facts = {*system.facts(found), *files.capabilities(found, walk)}
    unknown = system.unknown(found)
    if walk is None:
        unknown |= dict.fromkeys((Kind.FILE, Kind.SETUID, Kind.ALTERNATIVE, Kind.UNIT), _NO_FIND)
    else:
        facts |= {*files.facts(walk), *units.facts(walk)}
    if walk is not None and "changed" in found:
        facts |= {*files.modified(found, walk)}
    else:
        unknown[Kind.MODIFIED] = "it was not asked for, or the guest has no dpkg, grep, sed or md5sum"
    if "capabilities" not in found:
        unknown[Kind.CAPABILITY] = "the guest has no getcap"
    return Inventory(
        frozenset(_named({*packages, *languages.parse(found, walk)})),
        frozenset(fact for fact in facts if fact.kind not in unknown),
        system.system(found),
        unknown,
        system.clock(found),
        system.archive(found),
        {} if walk is None else walk.owners,
    )
