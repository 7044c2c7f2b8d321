"""Alpine's packages: the database of apk(8) as it is, of records ``P:name`` and so on, with a line for each file.

The letters are those of apk's v2 index and installed database: P name, V version, A architecture, o origin, D depends,
i install_if, p provides, F folder, R file.  ``world`` says what was asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from vmimagemanager.errors import GuestError
from vmimagemanager.guest.inventory.answer import Answer
from vmimagemanager.guest.inventory.packages import Clause, Package

NAME = "apk"

PROBE = r"""
for database in /lib/apk/db/installed /usr/lib/apk/db/installed; do
    if [ -e "$database" ]; then
        section apk cat "$database"
        section apk-world cat /etc/apk/world
        [ ! -e /etc/apk/arch ] || section apk-architecture cat /etc/apk/arch
        break
    fi
done
"""
FILES_PROBE = ""

_NAME = re.compile(r"[^<>=~@]+")


def parse(answer: Answer) -> Iterator[Package]:
    """Yield the packages that are in the guest; raise GuestError for a record without name or version."""
    world = {found[0] for word in answer.text("apk-world").split() if (found := _NAME.match(word))}
    native = answer.text("apk-architecture").strip()
    records = list(_records(answer.text(NAME)))
    extras: dict[str, list[Clause]] = {}
    for fields in records:  # what comes by itself once all of these are there
        for clause in _clauses(fields.get("i", "")):
            extras.setdefault(clause[0], []).append((fields["P"],))
    for fields in records:
        name, architecture = fields["P"], fields.get("A", "noarch")
        yield Package(
            manager=NAME,
            name=name,
            architecture=architecture,
            version=fields["V"],
            automatic=name not in world,
            foreign=bool(native) and architecture not in ("noarch", native),
            source=fields.get("o", ""),
            depends=_clauses(fields.get("D", "")),
            recommends=tuple(extras.get(name, ())),
            provides=tuple(provided for clause in _clauses(fields.get("p", "")) for provided in clause),
        )


def _records(content: str) -> Iterator[dict[str, str]]:
    for record in content.split("\n\n"):
        fields = dict(line.split(":", 1) for line in record.splitlines() if line[:1] in "PVAoDip" and line[1:2] == ":")
        if not record.strip():
            continue
        if "P" not in fields or "V" not in fields:
            raise GuestError(f"apk's database in the guest has a record without a name or a version: {record[:80]!r}.")
        yield fields


def owners(answer: Answer) -> dict[bytes, str]:
    """Return the paths that packages own with the package's item."""
    found: dict[bytes, str] = {}
    item, folder = "", b""
    for line in answer.raw(NAME).split(b"\n"):
        letter, value = line[:2], line[2:]
        if letter == b"P:":
            item = f"{NAME}:{value.decode('utf-8', 'replace')}"
        elif letter == b"F:":
            folder = b"/" + value
            found[folder] = item
        elif letter == b"R:":
            found[folder.rstrip(b"/") + b"/" + value] = item
    return found


def _clauses(entries: str) -> tuple[Clause, ...]:
    """Read what a package needs; '!name' is a conflict."""
    names = (_NAME.match(word) for word in entries.split() if not word.startswith("!"))
    return tuple((name[0],) for name in names if name)
