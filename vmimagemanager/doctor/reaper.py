"""How soon a process that has ended disappears.

libvirt waits, in steps of 0.2 s, until QEMU's process is gone, and a zombie is not.  QEMU is an orphan: who reaps it is
the nearest sub-reaper above libvirt's daemon, or process 1, and some of those look only every second or two.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from vmimagemanager import process
from vmimagemanager.deadline import Deadline, Stopwatch
from vmimagemanager.doctor.check import Check, ok, warning
from vmimagemanager.errors import DeadlineError

PROCESSES = Path("/proc")
DAEMONS = ("libvirtd", "virtqemud")
_SLOW = 0.1
_LIMIT = timedelta(seconds=1)
_PROGRAM_LIMIT = timedelta(seconds=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaped:
    """Who adopted an orphan, and how many seconds it stayed a zombie; None when it still was one at the end."""

    by: int
    seconds: float | None


def checks(*, system: bool) -> Iterator[Check]:
    """Leave an orphan, end it, and say how long it stayed; where libvirt's orphans go elsewhere, say that."""
    reaped = measure()
    elsewhere = daemon_parents(0 if system else os.geteuid()) - {reaped.by}
    yield judge(reaped, elsewhere)


def judge(reaped: Reaped, elsewhere: set[int]) -> Check:
    """Say what was measured; ``elsewhere`` are the parents of libvirt daemons that another process adopts from."""
    if elsewhere:
        names = ", ".join(f"{pid} ('{_name(pid)}')" for pid in sorted(elsewhere))
        return ok("reaper", f"Guests that have ended are reaped by process {names}, which cannot be tried from here.")
    who = f"process {reaped.by} ('{_name(reaped.by)}')"
    if reaped.seconds is not None and reaped.seconds <= _SLOW:
        return ok("reaper", f"Processes that have ended are reaped at once by {who}.")
    long = f"{_LIMIT.total_seconds():.0f} s and longer" if reaped.seconds is None else f"{reaped.seconds:.1f} s"
    return warning(
        "reaper",
        f"Processes that have ended stay for {long}, until {who} reaps them; ending a guest takes as much longer.",
        "scripts/testbed COMMAND  # or, for the daemons, too: tini -s COMMAND",
    )


def measure() -> Reaped:
    """Leave an orphan and end it; return who adopted it and how long it stayed a zombie."""
    program = Path(__file__).with_name("orphan.py")
    orphan = int(process.run([sys.executable, "-I", "-S", program], limit=_PROGRAM_LIMIT).stdout)
    handle = os.pidfd_open(orphan)
    try:
        adopter = _status(orphan).parent
        watch = Stopwatch()
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        try:
            Deadline(_LIMIT, scaled=False).wait_for("the orphan to be reaped", lambda: _gone(handle), every=0.002)
        except DeadlineError:
            return Reaped(by=adopter, seconds=None)
        return Reaped(by=adopter, seconds=watch.total)
    finally:
        os.close(handle)
        if adopter == os.getpid():
            with suppress(ChildProcessError):
                os.waitpid(orphan, 0)


def daemon_parents(user: int) -> set[int]:
    """Return the parents of the libvirt daemons that run as ``user``."""
    parents = set()
    for entry in PROCESSES.iterdir():
        if entry.name.isdecimal():
            with suppress(OSError, ValueError, KeyError):  # it has ended, or is hidden
                status = _status(int(entry.name))
                if status.name in DAEMONS and status.user == user:
                    parents.add(status.parent)
    return parents


@dataclass(frozen=True, slots=True)
class _Status:
    name: str
    parent: int
    user: int


def _status(pid: int) -> _Status:
    lines = (PROCESSES / str(pid) / "status").read_text(errors="replace").splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return _Status(fields["Name"].strip(), int(fields["PPid"]), int(fields["Uid"].split()[0]))


def _name(pid: int) -> str:
    try:
        return _status(pid).name
    except (OSError, ValueError, KeyError):
        return "unknown"


def _gone(handle: int) -> bool:
    try:
        signal.pidfd_send_signal(handle, 0)
    except ProcessLookupError:
        return True
    return False
