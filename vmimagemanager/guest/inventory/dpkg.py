"""dpkg's packages: ``dpkg-query`` for what is installed, apt's extended_states for what came by itself.

``apt-mark`` would answer the second question, too, but takes up to a second where reading its file takes 4 ms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vmimagemanager.errors import GuestError
from vmimagemanager.guest.inventory.packages import Package

NAME = "dpkg"

PROBE = r"""
if command -v dpkg-query >/dev/null && [ -e /var/lib/dpkg/status ]; then
    section dpkg dpkg-query -W -f '${Status}\t${Package}\t${Architecture}\t${Version}\n'
    section dpkg-architecture dpkg --print-architecture
    if [ -e /var/lib/apt/extended_states ]; then
        section dpkg-automatic cat /var/lib/apt/extended_states
    elif [ -d /var/lib/apt ]; then
        section dpkg-automatic :
    fi
fi
"""

# What is half-way in has its files in the guest and must not slip through; dpkg(1) names the states.
_ABSENT = ("not-installed", "config-files")


def parse(sections: Mapping[str, str]) -> Iterator[Package]:
    """Yield the packages that are in the guest; raise GuestError for a line that dpkg-query does not write."""
    native = sections.get("dpkg-architecture", "").strip()
    automatic = _automatic(sections["dpkg-automatic"]) if "dpkg-automatic" in sections else None
    for line in sections[NAME].splitlines():
        try:
            status, name, architecture, version = line.split("\t")
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
            )


def _or_native(architecture: str, native: str) -> str:
    return native if architecture == "all" else architecture


def _automatic(states: str) -> set[tuple[str, str]]:
    found = set()
    for stanza in states.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line)
        if fields.get("Auto-Installed") == "1":
            found.add((fields.get("Package", ""), fields.get("Architecture", "")))
    return found
