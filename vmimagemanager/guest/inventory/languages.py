"""Packages of languages: what lies in the folders of Python, npm, Ruby and Cargo, for every interpreter and every user.

Nothing of the guest's own is run.  Where a package lies says who sees it: two of one name, of which one hides the
other, are both found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from vmimagemanager.guest.inventory.answer import Answer, visible
from vmimagemanager.guest.inventory.files import Walk
from vmimagemanager.guest.inventory.packages import Package

# The folders that such packages are in are few; their metadata is looked for there alone.
PROBE = r"""
languages() {
    set --
    for folder in /usr/lib/python[23]* /usr/lib64/python[23]* /usr/local /usr/lib/node_modules \
        /opt /srv /home /root /var/www
    do
        [ ! -d "$folder" ] || set -- "$@" "$folder"
    done
    [ $# = 0 ] || find "$@" -xdev \( -path '*.dist-info/METADATA' -o -path '*.egg-info/PKG-INFO' -o -name '*.egg-info' \
        -o -path '*/node_modules/*/package.json' \) -type f \
        -exec grep -aHE '^(Name|Version|Requires-Dist): |^ *"version" *:|^\{.*"version" *:' {} +
}
if have find && have grep; then
    section languages languages
fi
for file in /root/.cargo/.crates.toml /home/*/.cargo/.crates.toml /usr/local/cargo/.crates.toml; do
    [ ! -f "$file" ] || section cargo grep -aH '' "$file"
done
"""

_PYTHON = re.compile(rb"(/.*)/([^/]+\.(?:dist|egg)-info)(?:/(?:METADATA|PKG-INFO))?:(Name|Version|Requires-Dist): (.*)")
_NPM = re.compile(rb"(/.*/node_modules)/((?:@[^/]+/)?[^/]+)/package\.json:.*?\"version\" *: *\"([^\"]*)\"")
_GEM = re.compile(rb"(/.*)/specifications/(?:default/)?([^/]+?)-(\d[^/-]*)(?:-[^/]+)?\.gemspec")
_CRATE = re.compile(rb"(/.*)/\.crates\.toml:\"([^ \"]+) ([^ \"]+) [^\"]*\" *=")
_REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)([^;]*)(?:;(.*))?")


def parse(answer: Answer, walk: Walk | None) -> Iterator[Package]:
    """Yield the packages; ``owner`` is the package of the system that one belongs to."""
    lines = answer.raw("languages").split(b"\n")
    yield from _python(lines, walk)
    yield from _npm(lines, walk)
    yield from _crates(answer.raw("cargo").split(b"\n"))
    if walk is not None:
        for path in walk.files:
            gem = _GEM.fullmatch(path) if path.endswith(b".gemspec") else None
            if gem:
                owner = walk.owners.get(path, "")
                yield _package("gem", gem[2], gem[3], place=gem[1], owner=owner)


def normalised(name: str) -> str:
    """Return the name of a Python project as all its spellings share it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _python(lines: list[bytes], walk: Walk | None) -> Iterator[Package]:
    found: dict[tuple[bytes, bytes], dict[bytes, list[str]]] = {}
    for line in lines:
        match = _PYTHON.fullmatch(line)
        if match:
            fields = found.setdefault((match[1], match[2]), {})
            fields.setdefault(match[3], []).append(match[4].decode("utf-8", "backslashreplace").strip())
    for (place, folder), fields in found.items():
        if b"Name" not in fields:
            continue
        path = place + b"/" + folder
        owner = _owner(walk, path, path + b"/METADATA", path + b"/PKG-INFO")
        yield Package(
            manager="python",
            name=normalised(fields[b"Name"][0]),
            architecture="",
            version=fields.get(b"Version", [""])[0],
            place=visible(place),
            owner=owner,
            depends=tuple((name,) for name in _requirements(fields.get(b"Requires-Dist", []))),
        )


def _requirements(entries: list[str]) -> Iterator[str]:
    """Yield what is always needed; an extra is needed by those who ask for it alone."""
    for entry in entries:
        match = _REQUIREMENT.match(entry)
        if match and "extra" not in (match[3] or ""):
            yield normalised(match[1])


def _npm(lines: list[bytes], walk: Walk | None) -> Iterator[Package]:
    seen = set()
    for line in lines:
        match = _NPM.match(line)
        if match and (match[1], match[2]) not in seen:
            seen.add((match[1], match[2]))
            owner = _owner(walk, match[1] + b"/" + match[2] + b"/package.json")
            yield _package("npm", match[2], match[3], place=match[1], owner=owner)


def _crates(lines: list[bytes]) -> Iterator[Package]:
    for line in lines:
        match = _CRATE.match(line)
        if match:
            yield _package("cargo", match[2], match[3], place=match[1], owner="")


def _owner(walk: Walk | None, *paths: bytes) -> str:
    return next((owner for path in paths if walk and (owner := walk.owners.get(path))), "")


def _package(manager: str, name: bytes, version: bytes, *, place: bytes, owner: str) -> Package:
    return Package(
        manager=manager,
        name=visible(name),
        architecture="",
        version=visible(version),
        place=visible(place),
        owner=owner,
    )
