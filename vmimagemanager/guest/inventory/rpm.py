"""rpm's packages: one query.  The reason why one is installed is in DNF's state, not in rpm's, and is not asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from vmimagemanager.errors import GuestError
from vmimagemanager.guest.inventory.packages import Package

NAME = "rpm"

# rpm would make an empty database where there is none, so that its file is looked for first.
PROBE = r"""
for database in /var/lib/rpm /usr/lib/sysimage/rpm; do
    for file in rpmdb.sqlite Packages Packages.db; do
        if [ -e "$database/$file" ] && command -v rpm >/dev/null; then
            section rpm rpm -qa --qf '%{NAME}\t%{EPOCHNUM}\t%{VERSION}-%{RELEASE}\t%{ARCH}\n'
            section rpm-architecture rpm --eval '%{_arch}'
            break 2
        fi
    done
done
"""

_I386 = re.compile(r"i[3-6]86|athlon|geode|pentium[34]")


def parse(sections: Mapping[str, str]) -> Iterator[Package]:
    """Yield the packages that are in the guest; raise GuestError for a line that the query does not write."""
    native = sections.get("rpm-architecture", "").strip()
    for line in sections[NAME].splitlines():
        try:
            name, epoch, version, architecture = line.split("\t")
        except ValueError as error:
            raise GuestError(f"rpm wrote a line in the guest that is not understood: {line!r}.") from error
        if name == "gpg-pubkey":  # not a package: a key that rpm keeps among them
            continue
        yield Package(
            manager=NAME,
            name=name,
            architecture=architecture,
            version=version if epoch == "0" else f"{epoch}:{version}",
            foreign=not _is_native(architecture, native),
        )


def _is_native(architecture: str, native: str) -> bool:
    """Say whether a package's architecture is the guest's, whose name ('i386', 'arm') may stand for a family."""
    if native == "i386":
        return architecture == "noarch" or _I386.fullmatch(architecture) is not None
    return architecture == "noarch" or architecture.startswith(native)
