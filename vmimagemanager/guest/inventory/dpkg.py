"""dpkg's packages: ``dpkg-query`` for what is installed, apt's extended_states for what came by itself.

``apt-mark`` would answer the second question, too, but takes up to a second where reading its file takes 4 ms.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from vmimagemanager.errors import GuestError
from vmimagemanager.guest.inventory.answer import Answer
from vmimagemanager.guest.inventory.packages import Clause, Package

NAME = "dpkg"

PROBE = r"""
if have dpkg-query && [ -e /var/lib/dpkg/status ]; then
    set -- '${Status}\t${Package}\t${Architecture}\t${Version}\t${source:Package}\t${Essential}\t'
    section dpkg dpkg-query -W -f "$1"'${Pre-Depends}\t${Depends}\t${Recommends}\t${Provides}\n'
    if [ -e /var/lib/apt/extended_states ]; then
        section dpkg-automatic cat /var/lib/apt/extended_states
    elif [ -d /var/lib/apt ]; then
        section dpkg-automatic :
    fi
fi
"""

# tail(1) names each file before its content, in lines that no list has: there every line begins with a slash.
FILES_PROBE = r"""
if have dpkg-query && [ -e /var/lib/dpkg/status ]; then
    section dpkg-files tail -n +1 -v /var/lib/dpkg/info/*.list
    [ ! -e /var/lib/dpkg/diversions ] || section dpkg-diversions cat /var/lib/dpkg/diversions
fi
"""

# What is half-way in has its files in the guest and must not slip through; dpkg(1) names the states.
_ABSENT = ("not-installed", "config-files")
_NAME = re.compile(r"[^\s:(\[<]+")
_LIST = re.compile(rb"(?m)^==> .*/([^/\n]+)\.list <==\n")
_REMOVED = re.compile(r"(?m)^[^\t]* config-files\t([^\t]+)\t")


def parse(answer: Answer) -> Iterator[Package]:
    """Yield the packages that are in the guest; raise GuestError for a line that dpkg-query does not write."""
    native = _native(answer)
    automatic = _automatic(answer.text("dpkg-automatic")) if "dpkg-automatic" in answer else None
    for line in answer.lines(NAME):
        try:
            status, name, architecture, version, source, essential, first, then, recommends, provides = line.split("\t")
            _, _, state = status.split(" ")
        except ValueError as error:
            raise GuestError(f"dpkg-query wrote a line in the guest that is not understood: {line!r}.") from error
        if state not in _ABSENT:
            yield Package(
                manager=NAME,
                name=name,
                architecture=architecture,
                version=version,
                # apt notes a package of architecture 'all' under the native one.
                automatic=None if automatic is None else (name, _or_native(architecture, native)) in automatic,
                foreign=_or_native(architecture, native) != native,
                source=source,
                essential=essential == "yes",
                depends=clauses(first) + clauses(then),
                recommends=clauses(recommends),
                provides=tuple(alternative for clause in clauses(provides) for alternative in clause),
            )


def clauses(relation: str) -> tuple[Clause, ...]:
    """Read a relation of deb-control(5): names alone, without versions, architectures and profiles."""
    found = []
    for clause in relation.split(","):
        names = (_NAME.match(alternative.strip()) for alternative in clause.split("|"))
        alternatives = tuple(name[0] for name in names if name)
        if alternatives:
            found.append(alternatives)
    return tuple(found)


def owners(answer: Answer) -> dict[bytes, str]:
    """Return the paths that packages own with the package's item, which is empty where several do.

    What a package that was removed has left, its configuration, has no owner any more.
    """
    native = _native(answer)
    removed = set(_REMOVED.findall(answer.text(NAME)))
    found: dict[bytes, str] = {}
    lists = _LIST.split(answer.raw("dpkg-files"))
    for package, content in zip(lists[1::2], lists[2::2], strict=True):
        name, _, architecture = package.decode("utf-8", "replace").partition(":")
        if name in removed:
            continue
        item = f"{NAME}:{name}" + (f":{architecture}" if architecture not in ("", native) else "")
        owned = dict.fromkeys(content.split(b"\n"), item)
        shared = found.keys() & owned.keys()
        found |= owned
        found |= dict.fromkeys(shared, "")
    diversions = answer.raw("dpkg-diversions").split(b"\n")
    for _, diverted in zip(diversions[::3], diversions[1::3], strict=False):
        found.setdefault(diverted, "")
    found.pop(b"", None)
    return found


def _native(answer: Answer) -> str:
    """Return the guest's own architecture: that of dpkg itself, as dpkg --print-architecture says it."""
    found = re.search(r"(?m)^[^\t]* installed\tdpkg\t([^\t]+)\t", answer.text(NAME))
    return found[1] if found else ""


def _or_native(architecture: str, native: str) -> str:
    return native if architecture == "all" else architecture


def _automatic(states: str) -> set[tuple[str, str]]:
    found = set()
    for stanza in states.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line)
        if fields.get("Auto-Installed") == "1":
            found.add((fields.get("Package", ""), fields.get("Architecture", "")))
    return found
