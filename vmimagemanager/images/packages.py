"""Which packages a Debian system holds, from its own records."""

from __future__ import annotations

import re


def installed_packages(status: str) -> dict[str, str]:
    """Return the installed packages and their versions from the text of /var/lib/dpkg/status, sorted by name."""
    packages = {}
    for stanza in status.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Status|Version): (.*)$", stanza, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed") and {"Package", "Version"} <= fields.keys():
            packages[fields["Package"]] = fields["Version"]
    return dict(sorted(packages.items()))
