"""What was in a guest when a snapshot was taken of it, whatever the box is now.

It is asked once, of a clone of the snapshot that is thrown away (or of its disk, where it has no memory), and kept with
the snapshot.  Every file of a package is compared with what its package brought, so that what was modified before is
not taken for what is modified later.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from vmimagemanager import snapshots
from vmimagemanager.config import Engine
from vmimagemanager.deadline import Stopwatch
from vmimagemanager.errors import GuestError, SnapshotError, StateError
from vmimagemanager.guest import inventory
from vmimagemanager.guest.inventory import EVER, Inventory
from vmimagemanager.names import Address
from vmimagemanager.snapshots import Manifest
from vmimagemanager.state import BoxFolder

_log = logging.getLogger(__name__)
# Times in inodes are those of the last tick of the guest's clock, and ours are whole seconds.
_GRAIN = 2


@dataclass(frozen=True, slots=True)
class Past:
    """A snapshot of a box, of whose guest something is to be known."""

    folder: BoxFolder
    manifest: Manifest

    @classmethod
    def of(cls, folder: BoxFolder, snapshot: str) -> Past:
        """Return a snapshot's; raise SnapshotError when there is none of that name."""
        return cls(folder, snapshots.find(folder, snapshot))

    @property
    def is_live(self) -> bool:
        """Whether the snapshot has clones."""
        return self.manifest.engine is Engine.LIVE

    def known(self) -> Inventory | None:
        """Return what is kept of the guest, or None when it has to be asked.

        Raises SnapshotError when it cannot be: what is in a saved memory and not yet on the disk, no appliance sees.
        """
        try:
            found = snapshots.kept_inventory(self.folder.snapshot(self.manifest.name), self.manifest)
        except (StateError, GuestError) as error:  # damaged, or read by a parser that was less strict
            _log.warning("taking the inventory of '%s' again: %s", self._address, error)
            found = None
        if found is None and self.manifest.engine is Engine.SAVED:
            raise SnapshotError(
                f"What is in '{self._address}' cannot be listed: it is a saved snapshot, and only a live one has "
                "clones that can be asked.",
                hint=f"vmimagemanager restore {self._address}, and ask the box: vmimagemanager inventory "
                f"{self.folder.name}",
            )
        return found

    def ask(self, probe: Callable[[str], bytes], watch: Stopwatch) -> Inventory:
        """Ask a clone (or the disk), and keep what it says; ``watch`` was started before the clone was woken.

        Changes count from the snapshot's moment on.  That is when it was taken, by the clock of this host, to which the
        guest's was set then; or, by a clock that nobody sets, what the clone's shows less the time that it has run.
        """
        mark = secrets.token_hex(16)
        answer = probe(inventory.script(mark, since=EVER, running=self.is_live))
        woken = inventory.parse(answer, mark).clock - math.ceil(watch.total)
        since = max(0, min(int(self.manifest.created.timestamp()), woken) - _GRAIN)
        snapshot = self.folder.snapshot(self.manifest.name)
        found = snapshots.keep_inventory(snapshot, self.manifest, answer, mark, since=since)
        _log.info("asked what is in '%s', once and for all, in %.2f s", self._address, watch.total)
        return found

    @property
    def _address(self) -> Address:
        return Address(self.folder.name, self.manifest.name)
