"""What nobody needs any more: what killed processes left half done, and what outlived its last user.

The state directory is its own journal.  What is about to exist is made under a hidden name (``.web.4711``), a clone is
temporary until it is kept, and the lease on a name dies with its holder.  So what is hidden or temporary while nobody
leases its name was left in the middle, and is undone here.  Nothing is touched whose name somebody leases or holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from vmimagemanager import snapshots
from vmimagemanager.boxes import borrowing, define, life, quiet, spares
from vmimagemanager.boxes.record import BoxRecord
from vmimagemanager.boxes.site import Site
from vmimagemanager.durable import occupied, remove_tree
from vmimagemanager.errors import ForeignDomainError, ImageError, LeaseError, StateError
from vmimagemanager.hypervisor.domain import Domain
from vmimagemanager.images import pull
from vmimagemanager.leases import Leases
from vmimagemanager.names import is_name
from vmimagemanager.units import Size

_PURPOSE = "looking for what was left half done"


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """Something that nobody needs: ``what`` it is, and what it takes on the disk."""

    what: str
    size: Size


@dataclass(frozen=True, slots=True, kw_only=True)
class Caretaker:
    """Looks for what nobody needs, and removes what it finds unless it is to ``look_only``."""

    site: Site
    look_only: bool

    def put_right(self) -> Iterator[Leftover]:
        """Yield what killed processes left half done, and the blobs that they did not get to publish or to remove."""
        yield from self.interrupted()
        with suppress(StateError, ImageError):  # what a damaged box needs is not known: `fsck` tells of it
            yield from self._blobs()

    def interrupted(self) -> Iterator[Leftover]:
        """Yield what killed processes left half done."""
        state, leases = self.site.state, Leases(self.site.state)
        for name in leases.stale_names():
            if not self.look_only:
                with suppress(LeaseError):
                    leases.acquire(name, timedelta(0), purpose=_PURPOSE).release()
            yield Leftover(what=f"the lock of '{name}', which is gone or was never made", size=Size(0))
        names = {*state.box_names(), *self._half_made(), *self.site.hypervisor.owned_by(str(state.path))}
        for name in sorted(names):
            try:
                lease = leases.acquire(name, timedelta(0), purpose=_PURPOSE)
            except LeaseError:  # somebody is at work on it, or keeps it
                continue
            try:
                yield from self._left_of(name)
            finally:
                lease.release()
        for path, size in self.site.images.stale_stages(remove=not self.look_only):
            yield Leftover(what=f"the stage of an interrupted build '{path}'", size=size)
        for path, size in pull.stale(state.path, remove=not self.look_only):
            yield Leftover(what=f"what an interrupted pull fetched, '{path}'", size=size)

    def unneeded(self) -> Iterator[Leftover]:
        """Yield what outlived its last user.

        Raises StateError when a box's record is damaged: what that box needs is not known.
        """
        leases = Leases(self.site.state)
        for path in leases.stale_holds():
            yield self._removed(path, f"the hold '{path}', whose time is over or whose box is gone")
        yield from self._blobs()
        for path, size in self.site.images.downloads(remove=not self.look_only):
            yield Leftover(what=f"what an import fetched or kept, '{path}'", size=size)

    def _blobs(self) -> Iterator[Leftover]:
        used = define.blobs_in_use
        for path, size in self.site.images.unneeded_blobs(lambda: used(self.site), remove=not self.look_only):
            yield Leftover(what=f"the blob '{path}', which no image and no box uses", size=size)

    def _left_of(self, name: str) -> Iterator[Leftover]:
        for path in self._half_made().get(name, ()):
            yield self._removed(path, f"the folder '{path}', half made or half removed")
        folder = self.site.state.box(name)
        if not folder.path.exists():
            yield from self._domain_without_box(name)
            return
        try:
            record = self.site.record(name)
            domain = self.site.domain(name)
        except (StateError, ForeignDomainError):  # told by `fsck`
            return
        if record.temporary:
            if spares.has_holder(self.site, record):
                return
            size = occupied(folder.path)
            if not self.look_only:
                define.undefine(self.site, name, force=True)
            yield Leftover(what=f"the clone '{name}', whose process has ended", size=size)
            return
        left = [
            Leftover(what=f"'{path}', half made or used by nobody", size=occupied(path))
            for path in snapshots.leftovers(folder, active=domain is not None)
        ]
        if left and not self.look_only:
            snapshots.settle(life.subject(self.site, record), domain)
            snapshots.sweep(folder)
        yield from left
        if folder.frozen.exists():
            if not self.look_only:
                quiet.thaw_what_was_left(self.site, record)
            yield Leftover(what=f"the guest of '{name}', whose file systems were left frozen", size=Size(0))
        yield from self._left_running(record, domain)

    def _left_running(self, record: BoxRecord, domain: Domain | None) -> Iterator[Leftover]:
        if not self.site.state.box(record.name).borrowed.exists() or Leases(self.site.state).hold(record.name):
            return
        if not self.look_only:
            borrowing.give_back(self.site, record)
        if domain is not None:
            yield Leftover(what=f"the guest of '{record.name}', which was off before a run that is over", size=Size(0))

    def _domain_without_box(self, name: str) -> Iterator[Leftover]:
        with suppress(ForeignDomainError):
            domain = self.site.hypervisor.domain(name, str(self.site.state.path))
            if domain is not None:
                if not self.look_only:
                    domain.end()
                    domain.undefine()
                yield Leftover(what=f"the domain '{name}', whose box is gone", size=Size(0))

    def _half_made(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for path in self.site.state.boxes.glob(".*"):
            name, _, process = path.name[1:].rpartition(".")
            if is_name(name) and process.isdecimal():
                found.setdefault(name, []).append(path)
        return found

    def _removed(self, path: Path, what: str) -> Leftover:
        size = occupied(path)
        if not self.look_only:
            remove_tree(path)
        return Leftover(what=what, size=size)
