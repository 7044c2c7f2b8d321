"""What users hold: the warm spares of one snapshot."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING

from vmimagemanager.boxes import fork, spares
from vmimagemanager.deadline import Deadline, Stopwatch
from vmimagemanager.errors import HypervisorError, LeaseError, SnapshotError, UsageError, VmimError
from vmimagemanager.leases import Lease, Leases
from vmimagemanager.names import Address

if TYPE_CHECKING:
    from vmimagemanager.box import Box
    from vmimagemanager.boxes.site import Site
    from vmimagemanager.snapshots import Manifest

_log = logging.getLogger(__name__)
_LOOK = 0.1  # seconds between two looks at what other processes have taken
_RETRY = 10.0  # seconds after a spare could not be made


class Pool:
    """Warm spares of one snapshot, which a thread of this process keeps ready; a context manager that ends that.

    At its end the spares that nobody took are removed.  Those that a killed process left can be taken all the same; the
    next pool of the snapshot counts them as its own.  ``notice`` is told what comes and goes.
    """

    def __init__(
        self,
        site: Site,
        address: Address,
        size: int,
        *,
        overcommit: bool,
        wait: timedelta,
        box: Callable[[Lease], Box],
        notice: Callable[[str], None] | None,
    ) -> None:
        if size < 1:
            raise UsageError(f"A pool of {size} spares cannot be kept: expected 1 or more.")
        self.address = address
        self.size = size
        self._takers = site
        self._site = replace(site)  # with a connection of its own
        self._overcommit = overcommit
        self._wait = wait
        self._box = box
        self._notice = notice
        self._catalogue = spares.Catalogue(site, address)
        self._known: set[str] = set()
        self._failure: Exception | None = None
        self._changed, self._closing, self._ended = threading.Event(), threading.Event(), threading.Event()
        self._lock = Leases(site.state).pool(str(address))
        try:
            self._require_snapshot()
            if not self._lock.try_acquire():
                raise LeaseError(
                    f"A pool of '{address}' is held by {self._lock.holder()}.",
                    hint=f"Take one of its spares: vmimagemanager acquire {address}",
                )
            self._missing()
        except BaseException:
            self._end()
            raise
        self._thread = threading.Thread(target=self._keep_ready, name=f"pool of {address}", daemon=True)
        self._thread.start()

    def acquire(self, *, wait: timedelta | None = None) -> Box:
        """Return a clone that runs, proven and with its clock right, leased by this process; its release removes it.

        Raises LeaseError when none is ready within ``wait`` (not scaled), or at once what keeps them from being made.
        """
        limit = self._wait if wait is None else wait
        lease = spares.acquire(self._takers, self.address, limit, check=self._raise_failure)
        self._changed.set()
        return self._box(lease)

    def ready(self) -> tuple[str, ...]:
        """Return the names of the spares that can be taken now."""
        return spares.Catalogue(self._site, self.address).ready()

    def fill(self, limit: timedelta) -> None:
        """Wait until all spares are ready; raise DeadlineError, or at once what keeps them from being made."""

        def is_full() -> bool:
            self._raise_failure()
            return len(self.ready()) >= self.size

        Deadline(limit).wait_for(f"{self.size} spares of '{self.address}'", is_full)

    def serve(self) -> None:
        """Keep spares ready for other processes until this one is interrupted, or the snapshot is no more."""
        # Python handles signals in the main thread alone, and one that the kernel gives to the other wakes nobody here.
        while not self._ended.wait(_LOOK):
            pass
        self._raise_failure()

    def close(self) -> None:
        """Remove the spares that nobody took; closing twice is no error."""
        if not self._lock.held:
            return
        self._closing.set()
        self._changed.set()
        self._thread.join()
        try:
            tuple(fork.in_parallel(self._remove, self.ready()))
        finally:
            self._end()

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _keep_ready(self) -> None:
        try:
            while not self._closing.is_set():
                is_full = self._refilled()
                if not is_full:
                    with suppress(HypervisorError):  # it may come back; a snapshot that is gone ends the pool
                        self._require_snapshot()
                self._changed.wait(_LOOK if is_full else _RETRY)
                self._changed.clear()
        except Exception as error:  # noqa: BLE001 - it is raised where spares are waited for
            self._failure = error
        finally:
            self._ended.set()

    def _refilled(self) -> bool:
        try:
            missing = self._missing()
            if missing:
                leases, prefix = Leases(self._site.state), spares.prefix(self.address)
                tuple(fork.in_parallel(self._make, leases.new_names(prefix, missing, taken=self._site.taken)))
            self._failure = None
        except VmimError as error:
            if str(error) != str(self._failure):
                self._tell(f"A spare of '{self.address}' could not be made, and is tried again: {error}")
            self._failure = error
            self._site.close()  # libvirt may have been started anew
        return self._failure is None

    def _missing(self) -> int:
        """Look which spares there are, remove what is of no use, and return how many are to be made."""
        ready = self._catalogue.ready()
        for name in sorted(self._known.difference(ready)):
            self._tell(f"{name}: taken")
        sound = [name for name in ready if name in self._known or spares.is_paused(self._site, name)]
        self._known = set(sound[: self.size])
        for name in sorted(self._known.symmetric_difference(ready)):
            self._remove(name)
        for name in self._catalogue.leftovers():
            if spares.remove(self._site, name, only=lambda record: record.temporary and not record.spare):
                self._tell(f"{name}: removed, the process that had it has ended")
        missing = self.size - len(self._known)
        if missing and not self._overcommit:
            fork.require_memory(missing, self._require_snapshot().ram)
        return missing

    def _make(self, lease: Lease) -> None:
        if self._closing.is_set():
            lease.release()
            return
        watch = Stopwatch()
        record = self._site.record(self.address.box)
        spares.make(self._site, record, self._require_snapshot(), lease)
        self._known.add(lease.box)
        self._tell(f"{lease.box}: ready in {watch.total:.2f} s")

    def _remove(self, name: str) -> None:
        if spares.remove(self._site, name, only=lambda record: record.spare != ""):
            self._tell(f"{name}: removed")

    def _end(self) -> None:
        self._lock.remove()
        self._site.close()

    def _require_snapshot(self) -> Manifest:
        manifest = fork.forkable(self._site, self._site.record(self.address.box), self.address.snapshot)
        if not manifest.token:
            raise SnapshotError(
                f"No spares of '{self.address}' can be kept: its guest cannot be asked whether it is the one that was "
                "paused.",
                hint=f"vmimagemanager fork {self.address}",
            )
        return manifest

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _tell(self, line: str) -> None:
        if self._notice is None:
            _log.info("%s", line)
        else:
            self._notice(line)
