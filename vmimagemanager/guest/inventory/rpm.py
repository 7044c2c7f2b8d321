"""rpm's packages: one query.  The reason why one is installed is in DNF's state, not in rpm's, and is not asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator

from vmimagemanager.errors import GuestError
from vmimagemanager.guest.inventory.answer import Answer
from vmimagemanager.guest.inventory.packages import Clause, Package

NAME = "rpm"

# rpm would make an empty database where there is none, so that its file is looked for first; Debian's rpm would look
# for one in the home directory.
_FOUND = r"""
rpm_database() {
    for database in /var/lib/rpm /usr/lib/sysimage/rpm; do
        for file in rpmdb.sqlite Packages Packages.db; do
            [ ! -e "$database/$file" ] || return 0
        done
    done
    return 1
}
"""

# Before rpm 4.12 nothing could be recommended, and that tag is an error.
PROBE = (
    _FOUND
    + r"""
if have rpm && rpm_database; then
    set -- '%{NAME}\t%{EPOCHNUM}\t%{VERSION}-%{RELEASE}\t%{ARCH}\t'
    section rpm rpm --dbpath "$database" -qa --qf "$1"'%{SOURCERPM}\t[%{REQUIRENAME}\f]\t[%{PROVIDENAME}\f]\n'
    section rpm-recommends rpm --dbpath "$database" -qa --qf "$1"'[%{RECOMMENDNAME}\f]\n'
    section rpm-architecture rpm --eval '%{_arch}'
fi
"""
)

FILES_PROBE = r"""
if have rpm && rpm_database; then
    section rpm-files rpm --dbpath "$database" -qa --qf '[%{=NAME}\t%{FILENAMES}\f]'
fi
"""

_I386 = re.compile(r"i[3-6]86|athlon|geode|pentium[34]")
# A rich dependency, such as '(a or b)' or '(a if b)': its names, of which one is taken to suffice.
_RICH = re.compile(r"[^\s()]+")
_WORDS = frozenset(("and", "or", "if", "else", "with", "without", "unless", "<", "<=", "=", ">=", ">"))


def parse(answer: Answer) -> Iterator[Package]:
    """Yield the packages that are in the guest; raise GuestError for a line that the query does not write."""
    native = answer.text("rpm-architecture").strip()
    recommended = dict(line.rsplit("\t", 1) for line in answer.lines("rpm-recommends") if "\t" in line)
    rows = [line.split("\t") for line in answer.lines(NAME)]
    files = _needed_files(answer, rows)
    for row in rows:
        try:
            name, epoch, version, architecture, source, requires, provides = row
        except ValueError as error:
            line = "\t".join(row)
            raise GuestError(f"rpm wrote a line in the guest that is not understood: {line!r}.") from error
        if name == "gpg-pubkey":  # not a package: a key that rpm keeps among them
            continue
        yield Package(
            manager=NAME,
            name=name,
            architecture=architecture,
            version=version if epoch == "0" else f"{epoch}:{version}",
            foreign=not _is_native(architecture, native),
            source=source.removesuffix(".src.rpm"),
            depends=_clauses(requires),
            recommends=_clauses(recommended.get(f"{name}\t{epoch}\t{version}\t{architecture}", "")),
            provides=(*_entries(provides), *files.get(name, ())),
        )


def keys(answer: Answer) -> list[tuple[str, str]]:
    """Return the keys that rpm trusts: name and version."""
    rows = (line.split("\t") for line in answer.lines(NAME))
    return [(row[0], row[2]) for row in rows if row[0] == "gpg-pubkey"]


def owners(answer: Answer) -> dict[bytes, str]:
    """Return the paths that packages own with the package's item."""
    pairs = (entry.partition(b"\t") for entry in answer.raw("rpm-files").split(b"\f"))
    return {path: f"{NAME}:{name.decode('utf-8', 'replace')}" for name, _, path in pairs if path}


def _needed_files(answer: Answer, rows: list[list[str]]) -> dict[str, list[str]]:
    """Return, by package, the files that another package requires, such as /bin/sh."""
    wanted = {entry for row in rows if len(row) == 7 for entry in _entries(row[5]) if entry.startswith("/")}
    found: dict[str, list[str]] = {}
    for entry in answer.raw("rpm-files").split(b"\f") if wanted else ():
        name, _, path = entry.partition(b"\t")
        if (text := path.decode("utf-8", "replace")) in wanted:
            found.setdefault(name.decode("utf-8", "replace"), []).append(text)
    return found


def _clauses(entries: str) -> tuple[Clause, ...]:
    found = []
    for entry in _entries(entries):
        if entry.startswith("rpmlib("):
            continue
        found.append(
            tuple(word for word in _RICH.findall(entry) if word not in _WORDS) if entry.startswith("(") else (entry,)
        )
    return tuple(dict.fromkeys(found))


def _entries(entries: str) -> list[str]:
    return [entry for entry in entries.split("\f") if entry not in ("", "(none)")]


def _is_native(architecture: str, native: str) -> bool:
    """Say whether a package's architecture is the guest's, whose name ('i386', 'arm') may stand for a family."""
    if native == "i386":
        return architecture == "noarch" or _I386.fullmatch(architecture) is not None
    return architecture == "noarch" or architecture.startswith(native)
