"""What is installed in a guest, asked in one round trip.

The probe is a POSIX sh script for the standard input of one ``sh -s``.  It writes sections, each begun by 0x1E and its
name, and ends with a marker that names the commands that failed.  Without the marker nothing is concluded: an inventory
that was cut off would look as if packages had been removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from vmimagemanager.errors import GuestError
from vmimagemanager.guest.inventory import dpkg, rpm
from vmimagemanager.guest.inventory.packages import Inventory, Package

__all__ = ["PROBE", "Inventory", "Package", "Run", "parse", "take"]


class Run(Protocol):
    """Runs a POSIX sh script in the guest, as ``sh -s`` does from its standard input, and returns what it wrote."""

    def __call__(self, script: str, /) -> bytes: ...


class Manager(Protocol):
    """A package manager: a module that asks for its packages in the guest and reads the answer on the host."""

    @property
    def NAME(self) -> str: ...  # noqa: N802 - the name of a module's constant
    @property
    def PROBE(self) -> str: ...  # noqa: N802
    def parse(self, sections: Mapping[str, str], /) -> Iterable[Package]: ...


MANAGERS: tuple[Manager, ...] = (dpkg, rpm)

# The shell has read the function whole before it calls it, so that nothing in it can eat the rest of the script.
PROBE = rf"""
main() {{
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C TZ=UTC
export PATH LC_ALL TZ
unset DPKG_ROOT DPKG_ADMINDIR RPM_CONFIGDIR COLUMNS POSIXLY_CORRECT
failed=
section() {{
    title=$1
    shift
    printf '\036%s\n' "$title"
    "$@" || failed="$failed $title:$?"
}}
{"".join(manager.PROBE for manager in MANAGERS)}
printf '\036end%s\n' "$failed"
}}
main </dev/null
"""


def take(run: Run) -> Inventory:
    """Return the packages that are in the guest now.

    Raises GuestError when the answer was cut off, when a package manager failed, or when the guest has none that is
    known.  Nothing is changed in the guest.
    """
    return parse(run(PROBE))


def parse(answer: bytes) -> Inventory:
    """Return the packages that an answer of `PROBE` lists; raise GuestError as `take` does."""
    sections = _sections(answer.decode("utf-8", "replace"))
    present = [manager for manager in MANAGERS if manager.NAME in sections]
    if not present:
        known = " or ".join(manager.NAME for manager in MANAGERS)
        raise GuestError(f"The guest has no package database that is known: expected one of {known}.")
    packages = frozenset(package for manager in present for package in manager.parse(sections))
    if not packages:  # rpm may end with status 0 although it could not read its database
        raise GuestError(f"The guest's package database lists nothing at all: {present[0].NAME} cannot read it.")
    return Inventory(packages)


def _sections(text: str) -> dict[str, str]:
    """Split an answer; what a login script wrote before the first section or after the end is not ours."""
    parts = text.split("\036")[1:]
    sections = {name: body for name, _, body in (part.partition("\n") for part in parts)}
    last, newline, _ = parts[-1].partition("\n") if parts else ("", "", "")
    word, *failed = last.split(" ")
    if word != "end" or not newline:
        raise GuestError(
            "The list of the guest's packages was cut off: its end is missing.",
            hint="Try again; 'vmimagemanager console' shows whether the guest is still well.",
            detail=text[-200:],
        )
    if failed:
        raise GuestError(f"The guest's packages could not be listed: {_failures(failed)}.")
    return sections


def _failures(failed: Iterable[str]) -> str:
    return ", ".join("the query '{}' ended with status {}".format(*failure.split(":")) for failure in failed)
