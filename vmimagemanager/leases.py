"""The right to use a box.

A *lease* is held by a process and dies with it: a lock on a file of the state directory.  A *hold* is a record with an
owner, a reason and an end, which survives processes.  Who has a box's lease may use it while nobody else holds it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from vmimagemanager import records
from vmimagemanager.deadline import Deadline
from vmimagemanager.durable import remove_tree
from vmimagemanager.errors import BoxHeldError, ConfigError, DeadlineError, LeaseError, StateError
from vmimagemanager.locks import FileLock, Holder, user_name
from vmimagemanager.names import box_name
from vmimagemanager.state import BoxFolder, StateDirectory
from vmimagemanager.units import format_duration

FORMAT = 1
OWNER_VARIABLE = "VMIM_OWNER"
_POLL = 0.02

Notice = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Who keeps a box, why, since when and until when (both with their zone)."""

    owner: str
    reason: str
    since: datetime
    until: datetime

    @property
    def over(self) -> bool:
        return datetime.now(UTC) >= self.until

    def __str__(self) -> str:
        reason = f", for '{self.reason}'" if self.reason else ""
        return f"{self.owner}{reason}, until {self.until.astimezone().isoformat(timespec='seconds')}"


class Lease:
    """The exclusive right to one box, until it is released or its process ends."""

    def __init__(self, lock: FileLock, folder: BoxFolder) -> None:
        self._lock = lock
        self._folder = folder
        self.box = folder.name

    @property
    def active(self) -> bool:
        return self._lock.held

    def release(self) -> None:
        """Give the right back; that to a box that is no more leaves no file behind."""
        if self._folder.path.exists():
            self._lock.release()
        else:
            self._lock.remove()


def owner() -> str:
    """Return who this process acts for: ``VMIM_OWNER``, or else the user's login name."""
    return os.environ.get(OWNER_VARIABLE) or user_name()


class Leases:
    """The leases and holds of one state directory."""

    def __init__(self, state: StateDirectory) -> None:
        self._state = state

    def acquire(self, box: str, wait: timedelta, *, purpose: str = "", notice: Notice | None = None) -> Lease:
        """Lease a box, waiting at most ``wait`` (not scaled) for whoever has it; ``notice`` is told whom.

        Raises BoxHeldError when somebody else's hold lasts, LeaseError that names the holder when the time is over.
        """
        lock = self._lock(box, purpose)
        deadline = Deadline(wait, scaled=False)
        told: set[str] = set()

        def taken() -> bool | None:
            self._refuse_held(box)
            if lock.try_acquire():
                return True
            holder = str(lock.holder() or "")
            if holder and notice and holder not in told:
                told.add(holder)
                notice(f"Waiting for the box '{box}', which is leased by {holder}.")
            return None

        try:
            deadline.wait_for(f"the lease of the box '{box}'", taken, every=_POLL)
        except DeadlineError as error:
            raise self._leased_error(box, lock.holder(), deadline.elapsed) from error
        try:
            self._refuse_held(box)  # a hold may have come while the lock was waited for
        except BaseException:
            lock.release()
            raise
        return self._lease(lock, box)

    def take(self, box: str, *, purpose: str) -> Lease | None:
        """Lease a name that nobody else leases, whether there is such a box and whoever holds it, or return None."""
        lock = self._lock(box, purpose)
        return self._lease(lock, box) if lock.try_acquire() else None

    def claim(self, boxes: Callable[[], Iterable[str]], wait: timedelta, *, purpose: str = "") -> Lease:
        """Lease any one of ``boxes`` that is free: neither leased nor held, not even by this owner.

        Raises LeaseError when none became free within ``wait`` (not scaled).
        """

        def first_free() -> Lease | None:
            return next((lease for box in boxes() if (lease := self.attempt(box, purpose=purpose)) is not None), None)

        try:
            return Deadline(wait, scaled=False).wait_for("a free box", first_free, every=_POLL)
        except DeadlineError as error:
            raise LeaseError(
                f"No box became free within {format_duration(wait)}.",
                hint="'vmimagemanager list' shows who has which; --wait waits longer.",
            ) from error

    def attempt(self, box: str, *, purpose: str = "") -> Lease | None:
        """Lease a box that is neither leased nor held now, not even by this owner; return None for another one."""
        lock = self._lock(box, purpose)
        if self.hold(box) is None and lock.try_acquire():
            if self.hold(box) is None:
                return self._lease(lock, box)
            lock.release()
        return None

    def pool(self, snapshot: str) -> FileLock:
        """Return the lock of whoever keeps spares of a snapshot, ``web@clean``, ready."""
        return FileLock(self._state.locks / f"{snapshot}.lock")  # no name of a box has an '@' in it

    def pools(self, box: str) -> dict[str, Holder]:
        """Return who keeps spares of a box's snapshots ready, by the snapshots' addresses."""
        locks = sorted(self._state.locks.glob(f"{box}@*.lock"))
        return {lock.stem: holder for lock in locks if (holder := FileLock(lock).holder()) is not None}

    def new_names(self, prefix: str, count: int, *, taken: Callable[[str], bool]) -> tuple[Lease, ...]:
        """Lease ``count`` names that nobody uses: ``prefix`` and the first numbers from 1 that are not ``taken``."""
        leases: list[Lease] = []
        numbers = itertools.count(1)
        try:
            while len(leases) < count:
                name = box_name(f"{prefix}{next(numbers)}")
                lock = self._lock(name, "")
                if not taken(name) and lock.try_acquire():
                    leases.append(self._lease(lock, name))
                    if taken(name):
                        leases.pop().release()
        except BaseException:
            for lease in leases:
                lease.release()
            raise
        return tuple(leases)

    def holder(self, box: str) -> Holder | None:
        """Return who leases a box now, or None."""
        return self._lock(box, "").holder()

    def hold(self, box: str) -> Hold | None:
        """Return the hold on a box, or None when there is none or it is over."""
        path = self._hold_path(box)
        if not path.exists():
            return None
        try:
            record = records.read(path, version=FORMAT)
            hold = Hold(owner=record["owner"], reason=record["reason"], since=record["since"], until=record["until"])
        except (KeyError, TypeError) as error:
            raise StateError(f"The hold '{path}' is damaged: {error}.", hint=f"vmimagemanager unlock {box}") from error
        except StateError:
            if not path.exists():  # it was released between the look and the reading
                return None
            raise
        return None if hold.over else hold

    def keep(self, box: str, length: timedelta, reason: str) -> Hold:
        """Put a hold of this owner on a box that the caller leases; an own one is replaced."""
        if length <= timedelta(0):
            raise ConfigError("A hold needs a length above zero, such as 2h.")
        self._refuse_held(box)
        now = datetime.now(UTC).replace(microsecond=0)
        hold = Hold(owner=owner(), reason=reason, since=now, until=now + length)
        record = {"owner": hold.owner, "reason": hold.reason, "since": hold.since, "until": hold.until}
        records.write(self._hold_path(box), record, version=FORMAT)
        return hold

    def release(self, box: str, *, force: bool = False) -> Hold | None:
        """Remove a hold and return it, or None when there was none; somebody else's only by ``force``."""
        try:
            hold = self.hold(box)
        except StateError:  # damaged: unlocking is the way out
            hold = None
        if hold is not None and hold.owner != owner() and not force:
            raise self._held_error(box, hold)
        remove_tree(self._hold_path(box))
        return hold

    def _lease(self, lock: FileLock, box: str) -> Lease:
        return Lease(lock, self._state.box(box))

    def stale_holds(self) -> tuple[Path, ...]:
        """Return the records of holds that are over, or whose box is gone."""
        found = []
        for path in sorted(self._state.holds.glob("[!.]*.toml")):
            try:
                over = self.hold(path.stem) is None
            except StateError:  # damaged: whoever uses the box is told
                over = False
            if over or not self._state.box(path.stem).path.exists():
                found.append(path)
        return tuple(found)

    def stale_names(self) -> tuple[str, ...]:
        """Return the names without a box whose lease a killed process had; to lease one and give it back clears it."""
        names = sorted(path.stem for path in self._state.locks.glob("[!.]*.lock"))
        return tuple(name for name in names if not self._state.box(name).path.exists() and self.holder(name) is None)

    def _refuse_held(self, box: str) -> None:
        hold = self.hold(box)
        if hold is not None and hold.owner != owner():
            raise self._held_error(box, hold)

    def _held_error(self, box: str, hold: Hold) -> BoxHeldError:
        return BoxHeldError(
            f"The box '{box}' is held by {hold}.",
            hint=f"Ask {hold.owner}, or take it: vmimagemanager unlock --force {box}",
        )

    def _leased_error(self, box: str, holder: Holder | None, seconds: float) -> LeaseError:
        by = f"leased by {holder}" if holder is not None else "leased by somebody who has just released it"
        return LeaseError(
            f"The box '{box}' is {by}; waited {seconds:.1f} s for it.",
            hint="Wait longer with --wait, or end that process: the lease ends with it.",
        )

    def _lock(self, box: str, purpose: str) -> FileLock:
        return FileLock(self._state.locks / f"{box}.lock", purpose=purpose)

    def _hold_path(self, box: str) -> Path:
        return self._state.holds / f"{box}.toml"
