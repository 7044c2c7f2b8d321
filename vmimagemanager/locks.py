"""Advisory locks on files that name their holder and die with it.

A lock is ``flock(2)`` on a file: it excludes other processes and other threads of this one, and the kernel frees it
when its holder dies, however it dies.  The file's content names the last holder; it is only believed while the lock is
taken.  Its holder may remove the file: a lock on a file that has no name any more is none, and is taken anew.
"""

from __future__ import annotations

import errno
import fcntl
import getpass
import json
import os
import socket
import sys
import weakref
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType

from vmimagemanager.deadline import Deadline, pause
from vmimagemanager.durable import translate_os_errors
from vmimagemanager.errors import DeadlineError

_MOMENTS = (0.0005, 0.001, 0.002, 0.004)  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who has a lock, since when (local time with zone, ISO 8601), and what for."""

    user: str
    host: str
    pid: int
    since: str
    purpose: str

    def __str__(self) -> str:
        return f"{self.user} (process {self.pid} on {self.host}, '{self.purpose}', since {self.since})"


def user_name() -> str:
    """Return the caller's login name, or the numeric id of a user without one."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


class FileLock:
    """One lock on one path; not re-entrant, neither shared between threads nor inherited by forked children."""

    def __init__(self, path: Path, *, purpose: str = "") -> None:
        self.path = path
        self.purpose = purpose or " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200]
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        return self._descriptor is not None

    def try_acquire(self, *, shared: bool = False) -> bool:
        """Take the lock if it is free, and say whether it was taken."""
        if self._descriptor is not None:
            return False
        with translate_os_errors("lock", self.path):
            descriptor = self._locked_file(fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        if descriptor is None:
            return False
        self._descriptor = descriptor
        _held_here.add(self)
        if not shared:
            self._write_holder(descriptor)
        return True

    def acquire(self, limit: timedelta) -> None:
        """Wait for the lock; raise DeadlineError when ``limit``, which is not scaled, is over."""
        Deadline(limit, scaled=False).wait_for(f"the lock '{self.path.name}'", lambda: self.try_acquire() or None)

    def release(self) -> None:
        """Free the lock; freeing it twice is no error."""
        descriptor, self._descriptor = self._descriptor, None
        _held_here.discard(self)
        if descriptor is not None:
            os.close(descriptor)

    def remove(self) -> None:
        """Remove the file of a lock that is held, and free it."""
        if self._descriptor is not None:
            with translate_os_errors("remove", self.path):
                self.path.unlink(missing_ok=True)
        self.release()

    def holder(self) -> Holder | None:
        """Return who has the lock now, as far as its file tells, or None when it is free."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _read_holder(descriptor)
            return None
        finally:
            os.close(descriptor)

    def __enter__(self) -> FileLock:
        if not self.held and not self.try_acquire():
            raise DeadlineError(f"The lock '{self.path}' is taken by {self.holder()}.")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _locked_file(self, kind: int) -> int | None:
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
            try:
                _open_to_group(descriptor)
                if not _flock(descriptor, kind):
                    os.close(descriptor)
                    return None
                if _is_at(descriptor, self.path):
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # its last holder removed it between the two calls

    def _write_holder(self, descriptor: int) -> None:
        holder = Holder(
            user=user_name(),
            host=socket.gethostname(),
            pid=os.getpid(),
            since=datetime.now().astimezone().isoformat(timespec="seconds"),
            purpose=self.purpose,
        )
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(asdict(holder)).encode() + b"\n", 0)
        except OSError as error:  # who frees a full disk takes locks, too: they hold without a name
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise


def _open_to_group(descriptor: int) -> None:
    # The admins of a shared state directory lock the same files, whatever the umask of the one who came first.
    status = os.fstat(descriptor)
    if status.st_uid == os.geteuid() and status.st_mode & 0o060 != 0o060:
        os.fchmod(descriptor, 0o660)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _flock(descriptor: int, kind: int) -> bool:
    for moment in (*_MOMENTS, None):
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if moment is not None:
                pause(moment)  # `holder` of somebody who only asks has the lock for a moment, too
    return False


def _read_holder(descriptor: int) -> Holder:
    try:
        return Holder(**json.loads(os.pread(descriptor, 4096, 0)))
    except (ValueError, TypeError):  # the holder has taken the lock and not yet written its name
        return Holder(user="somebody", host=socket.gethostname(), pid=0, since="a moment ago", purpose="starting")


_held_here: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _forget_in_child() -> None:
    # flock belongs to the open file description, which a forked child shares: unless the child closes its copy, the
    # lock would outlive the parent that took it.
    for lock in list(_held_here):
        lock.release()


os.register_at_fork(after_in_child=_forget_in_child)
