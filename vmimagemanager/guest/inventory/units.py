"""The units of systemd, as their files and the links that enable them say it.

``systemctl list-unit-files`` would ask systemd, which reads them all for it: of all that is asked in a guest that took
longest, and on a busy one the bus gave up after 25 s.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from vmimagemanager.guest.inventory.answer import visible
from vmimagemanager.guest.inventory.files import Walk
from vmimagemanager.guest.inventory.packages import Fact, Kind

_UNIT = re.compile(
    rb"/(?:etc|usr/lib|lib|usr/local/lib)/systemd/system/"
    rb"(?:[^/]+\.(?:wants|requires)/)?"
    rb"([^/]+\.(?:service|socket|timer|path|mount|automount|swap|target|slice))"
)


def facts(walk: Walk) -> Iterator[Fact]:
    """Yield each unit: ``masked``, ``enabled`` by a link, an alias, or nothing of that."""
    found: dict[bytes, tuple[str, str]] = {}
    enabled = set()
    for path, file in walk.files.items():
        match = _UNIT.fullmatch(path)
        if match is None:
            continue
        name = match[1]
        target = file.link.rpartition(b"/")[2]
        if b".wants/" in path or b".requires/" in path:
            enabled.add(name)
            found.setdefault(name, ("", ""))  # an instance, such as getty@tty1.service, has no file of its own
        elif file.link == b"/dev/null":
            found[name] = ("masked", "")
        elif found.get(name, ("", ""))[0] != "masked":
            alias = f"alias of {visible(target)}" if file.link and target != name else ""
            found[name] = (alias, walk.owners.get(path, ""))
    for name, (detail, owner) in found.items():
        state = detail or ("enabled" if name in enabled else "not enabled")
        yield Fact(kind=Kind.UNIT, name=visible(name), detail=state, owner=owner)
