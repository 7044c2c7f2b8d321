"""Warm spares: clones of a snapshot that were proven, and then paused, for whoever takes one.

A spare is ready when its record holds the token that it was paused with and nobody leases it.  Until then its maker
leases it.  Who takes one leases it and removes the token from its record before the guest runs again; so no spare is
taken twice, and a temporary clone without a token that nobody leases was left by a killed process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from vmimagemanager import snapshots
from vmimagemanager.boxes import fork, life
from vmimagemanager.boxes.define import undefine
from vmimagemanager.boxes.operations import Entry, logged
from vmimagemanager.boxes.record import BoxRecord
from vmimagemanager.boxes.site import Site
from vmimagemanager.deadline import Deadline, Stopwatch
from vmimagemanager.durable import translate_os_errors
from vmimagemanager.errors import BoxError, DeadlineError, GuestError, LeaseError, SnapshotError, StateError, VmimError
from vmimagemanager.guest.repair import new_token
from vmimagemanager.hypervisor.domain import Domain, DomainState
from vmimagemanager.leases import Lease, Leases
from vmimagemanager.names import Address
from vmimagemanager.snapshots import Manifest
from vmimagemanager.units import format_duration

_log = logging.getLogger(__name__)
_EVERY = 0.05  # seconds


def has_holder(site: Site, record: BoxRecord) -> bool:
    """Tell whether a box is a spare of a pool that somebody holds."""
    return record.spare != "" and Leases(site.state).pool(record.fork_of).holder() is not None


def prefix(address: Address) -> str:
    """Return what the names of a snapshot's spares begin with, before a number."""
    return f"{address.box}-"


def make(site: Site, record: BoxRecord, manifest: Manifest, lease: Lease) -> None:
    """Make a clone under a leased name, pause it once it is proven, and give the lease up; on failure nothing is left.

    It runs until it has answered twice, and not only until it is woken: whoever takes it meets a guest that has its
    identity already, and whose code QEMU has translated.
    """
    name = lease.box
    try:
        fork.fork(site, record, manifest, (name,), new_host_keys=False, common=False)
        try:
            made, folder = site.record(name), site.state.box(name)
            domain, token = _domain(site, made), new_token()
            life.prove(domain, made, folder, token)
            domain.suspend()
            # Nobody looked for us who removed the snapshot before there was a clone of it.
            if snapshots.find(site.state.box(record.name), manifest.name) != manifest:
                raise SnapshotError(f"The snapshot '{made.fork_of}' became another one meanwhile.")
            replace(made, spare=token).write(folder)
        except BaseException:
            undefine(site, name, force=True)
            raise
    finally:
        lease.release()


def acquire(site: Site, address: Address, wait: timedelta, *, check: Callable[[], None] | None = None) -> Lease:
    """Lease a spare of a snapshot, whoever holds its pool, and return when its guest runs, proven, its clock right.

    A spare that fails is thrown away, and the next one taken.  ``check`` is called when none is ready, and raises when
    there is no more hope; by default BoxError when nobody holds a pool.  Raises LeaseError when none is ready within
    ``wait`` (not scaled).
    """
    catalogue = Catalogue(site, address)

    def taken() -> Lease | None:
        for name in catalogue.ready():
            lease = _taken(site, name, str(address))
            if lease is not None:
                return lease
        if check is None:
            _require_pool(site, address)
        else:
            check()
        return None

    try:
        return Deadline(wait, scaled=False).wait_for(f"a spare of '{address}'", taken, every=_EVERY)
    except DeadlineError as error:
        raise LeaseError(
            f"No spare of '{address}' became ready within {format_duration(wait)}.",
            hint="Keep more of them ready (vmimagemanager pool --size), or wait longer with --wait.",
        ) from error


class Catalogue:
    """The clones of one snapshot under names that a pool gives, as their records tell.

    Only records that are new since the last look are read.
    """

    def __init__(self, site: Site, address: Address) -> None:
        self._site = site
        self._address = str(address)
        self._prefix = prefix(address)
        self._seen: dict[str, tuple[tuple[int, int], BoxRecord | None]] = {}

    def ready(self) -> tuple[str, ...]:
        """Return the names of the spares that nobody has taken yet."""
        return tuple(name for name, record in self._clones() if record.spare)

    def leftovers(self) -> tuple[str, ...]:
        """Return the names of the clones whose process has ended, before they were spares or after."""
        leases = Leases(self._site.state)
        temporary = [name for name, record in self._clones() if record.temporary and not record.spare]
        return tuple(name for name in temporary if leases.holder(name) is None)

    def _clones(self) -> list[tuple[str, BoxRecord]]:
        names = [name for name in self._site.state.box_names() if name.startswith(self._prefix)]
        self._seen = {name: seen for name in names if (seen := self._look(name)) is not None}
        return [(name, record) for name, (_, record) in self._seen.items() if record is not None]

    def _look(self, name: str) -> tuple[tuple[int, int], BoxRecord | None] | None:
        folder = self._site.state.box(name)
        try:
            with translate_os_errors("look at", folder.record):
                status = folder.record.stat()
            version = (status.st_ino, status.st_mtime_ns)  # a record is replaced, never written into
            before = self._seen.get(name)
            if before is not None and before[0] == version:
                return before
            record = BoxRecord.read(folder)
        except StateError:  # it is damaged, or was just removed: told by whatever needs that box
            return None
        return version, record if record.fork_of == self._address else None


def is_paused(site: Site, name: str) -> bool:
    """Tell whether a spare's guest is still there, as it was paused."""
    domain = site.domain(name)
    return domain is not None and domain.state() is DomainState.PAUSED


def remove(site: Site, name: str, *, only: Callable[[BoxRecord], bool]) -> bool:
    """Remove a clone that nobody leases, if its record, looked at under a lease, is one to remove; tell whether."""
    lease = Leases(site.state).attempt(name)
    if lease is None:
        return False
    try:
        record = _record(site, name)
        if record is None or not only(record):
            return False
        undefine(site, name, force=True)
        return True
    finally:
        lease.release()


def _taken(site: Site, name: str, address: str) -> Lease | None:
    """Take a spare; return None when somebody was quicker, or it failed and is no more."""
    lease = Leases(site.state).attempt(name)
    if lease is None:
        return None
    is_ours = False
    try:
        record = _record(site, name)
        if record is None or not record.spare or record.fork_of != address:
            return None
        try:
            with logged(site.state.box(name), "acquire") as entry:
                _resume(site, record, entry)
            is_ours = True
        except BaseException as error:
            undefine(site, name, force=True)
            if not isinstance(error, VmimError):
                raise
            _log.warning("the spare '%s' was thrown away: %s", name, error)
            return None
        return lease
    finally:
        if not is_ours:
            lease.release()


def _resume(site: Site, record: BoxRecord, entry: Entry) -> None:
    folder, watch = site.state.box(record.name), Stopwatch()
    domain = _domain(site, record)
    if domain.state() is not DomainState.PAUSED:
        raise BoxError(f"The spare '{record.name}' is not paused any more.")
    replace(record, spare="").write(folder)
    watch.lap("take")
    domain.resume()
    watch.lap("resume")
    proof = life.prove(domain, record, folder, new_token())
    watch.lap("proof and repair")
    entry.phases |= watch.phases
    if proof.token != record.spare:
        raise SnapshotError(f"The guest of '{record.name}' is not the one that was paused.")
    if not proof.clock_set:
        raise GuestError(f"The clock of '{record.name}' could not be set, and it has stood still meanwhile.")


def _require_pool(site: Site, address: Address) -> None:
    """Raise BoxError, or what is wrong with the address, when nobody makes spares of a snapshot."""
    if Leases(site.state).pool(str(address)).holder() is not None:
        return
    site.require(address.box)
    snapshots.find(site.state.box(address.box), address.snapshot)
    raise BoxError(
        f"There is no spare of '{address}', and nobody holds a pool of it.", hint=f"vmimagemanager pool {address}"
    )


def _domain(site: Site, record: BoxRecord) -> Domain:
    domain = site.domain(record.name)
    if domain is None:
        raise BoxError(f"The guest of the spare '{record.name}' has ended.")
    return domain


def _record(site: Site, name: str) -> BoxRecord | None:
    try:
        return site.record(name)
    except (BoxError, StateError):
        return None
