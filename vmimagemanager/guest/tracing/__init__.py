"""Which files of a guest are used while something runs in it.

Two ways behind one protocol, both through the box's own channel, with nothing installed in the guest: access times,
which need no process of ours meanwhile, and fanotify(7), which also knows who used a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Protocol

from vmimagemanager.guest.inventory import Run
from vmimagemanager.guest.tracing.accesstimes import AccessTimes
from vmimagemanager.guest.tracing.watcher import Watcher

__all__ = ["Trace", "Tracer", "tracer"]


class Trace(StrEnum):
    """How to find out which files are used."""

    ACCESS_TIMES = "atime"
    FANOTIFY = "fanotify"


class Tracer(Protocol):
    """Watches the files of a guest between two moments, and may do so again."""

    def begin(self) -> frozenset[bytes]:
        """Watch from now on; return the programs that run already.

        Raises GuestError, with the way out, when the guest cannot be watched in this way.
        """

    def end(self) -> Mapping[bytes, frozenset[bytes]]:
        """Return the files that were used since, each with the programs that used it where that is known.

        The guest is then as it was before `begin`.  Raises GuestError when that cannot be told.
        """


def tracer(how: Trace, run: Run) -> Tracer:
    """Return what watches a guest in which ``run`` runs scripts as root."""
    return Watcher(run) if how is Trace.FANOTIFY else AccessTimes(run)
