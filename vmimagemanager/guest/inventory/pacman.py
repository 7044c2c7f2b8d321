"""Arch's packages: the files ``desc`` and ``files`` of each folder in pacman's local database.

Each is made of blocks: a line ``%KEY%``, the values, an empty line.  ``pacman -Qi`` would take three hundred times as
long.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from vmimagemanager.errors import GuestError
from vmimagemanager.guest.inventory.answer import Answer
from vmimagemanager.guest.inventory.packages import Clause, Package

NAME = "pacman"

# The pattern matches desc and files, in this order.
PROBE = r"""
if [ -e /var/lib/pacman/local/ALPM_DB_VERSION ]; then
    set -- /var/lib/pacman/local/*/[df][ei][sl]*
    if [ -e "$1" ]; then
        section pacman cat "$@"
    else
        section pacman :
    fi
    set --
    section pacman-architecture uname -m
fi
"""
FILES_PROBE = ""

_NAME = re.compile(r"[^<>=:]+")
_KEY = re.compile(rb"%[A-Z0-9]+%")


def parse(answer: Answer) -> Iterator[Package]:
    """Yield the packages that are in the guest; raise GuestError for one without name or version."""
    native = answer.text("pacman-architecture").strip()
    for fields in _records(answer.raw(NAME)):
        values = {key: [value.decode("utf-8", "backslashreplace") for value in found] for key, found in fields.items()}
        try:
            [name], [version] = values["%NAME%"], values["%VERSION%"]
            [architecture] = values.get("%ARCH%", ["any"]) or ["any"]
        except (KeyError, ValueError) as error:
            raise GuestError("pacman's database in the guest has a package without a name or a version.") from error
        yield Package(
            manager=NAME,
            name=name,
            architecture=architecture,
            version=version,
            automatic=values.get("%REASON%") == ["1"],
            foreign=architecture not in ("any", native),
            source="".join(values.get("%BASE%", [])),
            depends=_clauses(values.get("%DEPENDS%", [])),
            provides=tuple(name for clause in _clauses(values.get("%PROVIDES%", [])) for name in clause),
        )


def owners(answer: Answer) -> dict[bytes, str]:
    """Return the paths that packages own with the package's item."""
    found: dict[bytes, str] = {}
    for fields in _records(answer.raw(NAME)):
        item = f"{NAME}:" + b"".join(fields.get("%NAME%", [])).decode("utf-8", "replace")
        found.update((b"/" + path.rstrip(b"/"), item) for path in fields.get("%FILES%", []))
    return found


def _records(content: bytes) -> Iterator[dict[str, list[bytes]]]:
    fields: dict[str, list[bytes]] = {}
    key = ""
    for line in content.split(b"\n"):
        if not key and _KEY.fullmatch(line):
            key = line.decode()
            if key == "%NAME%" and fields:
                yield fields
                fields = {}
            fields[key] = []
        elif not line:
            key = ""
        elif key:
            fields[key].append(line)
    if fields:
        yield fields


def _clauses(entries: list[str]) -> tuple[Clause, ...]:
    names = (_NAME.match(entry) for entry in entries)
    return tuple((name[0],) for name in names if name)
