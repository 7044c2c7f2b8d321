"""KVM or emulation: decided by running 64-bit kernel code for a moment, remembered per host, and explained.

/dev/kvm existing, its ioctls succeeding and libvirt listing ``kvm`` prove nothing (see `kvmprobe`), so ``auto``
believes only a guest that ran.  What was found is kept in the cache folder until anything that could change it
changes: the host, its boot, its kernel, the device, or QEMU.  What a look at the device tells is not kept, and what may
have been a busy moment is not kept for long.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Literal, assert_never

from vmimagemanager import durable, process, records
from vmimagemanager.deadline import Stopwatch
from vmimagemanager.errors import DeadlineError, HypervisorError, SpaceError, StateError, ToolError, UsageError
from vmimagemanager.locks import user_name

Requested = Literal["auto", "kvm", "tcg"]

EMULATOR = "qemu-system-x86_64"
DEVICE = Path("/dev/kvm")
RECORD = "accelerator.toml"

_VERSION = 1
_LIMIT = timedelta(seconds=3)  # the probe ends its guest after one second; the rest is for starting Python
_PROGRAM_LIMIT = timedelta(seconds=10)
_DOUBT_LASTS = timedelta(hours=1)

_log = logging.getLogger(__name__)


class Accelerator(StrEnum):
    """What runs the guest's instructions: the processor through KVM, or QEMU's emulation."""

    KVM = "kvm"
    TCG = "tcg"


class Outcome(StrEnum):
    """What came of looking at /dev/kvm, of running code on it, and of asking QEMU."""

    GOOD = "good"
    SLOW = "slow"
    WRONG = "wrong"
    HUNG = "hung"
    BROKEN = "broken"
    CRASHED = "crashed"
    ABSENT = "absent"
    DENIED = "denied"
    UNTESTED = "untested"
    UNSUPPORTED = "unsupported"


_DOUBTFUL = frozenset({Outcome.SLOW, Outcome.HUNG, Outcome.CRASHED})
_NOT_KEPT = frozenset({Outcome.ABSENT, Outcome.DENIED, Outcome.UNTESTED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """An outcome, the detail that goes with it, and the seconds for a million turns of a loop if they were measured."""

    outcome: Outcome
    detail: str = ""
    seconds: float | None = None

    @property
    def good(self) -> bool:
        return self.outcome is Outcome.GOOD


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """An accelerator, why it was chosen (a whole sentence), and whether that was remembered rather than measured."""

    accelerator: Accelerator
    reason: str
    cached: bool


def choose(requested: Requested, cache_folder: Path, *, emulator: Path | None = None) -> Choice:
    """Choose the accelerator for guests that ``emulator`` runs, by default the qemu-system-x86_64 on the path.

    ``tcg`` is granted unseen.  ``auto`` and ``kvm`` look at what ``cache_folder`` (made when it is missing) remembers,
    and measure when it remembers nothing or, for ``kvm``, nothing good: 30 ms, a second when the guest hangs.  Raises
    HypervisorError when ``kvm`` was asked for and does not run 64-bit kernel code.
    """
    if requested == "tcg":
        return Choice(accelerator=Accelerator.TCG, reason="Emulation was asked for.", cached=False)
    if requested not in ("auto", "kvm"):
        raise UsageError(f"'{requested}' is not an accelerator: expected auto, kvm or tcg.")
    finding, cached = _find(cache_folder, emulator or process.find(EMULATOR), only_good=requested == "kvm")
    return Choice(accelerator=_decide(requested, finding), reason=explain(finding), cached=cached)


def explain(finding: Finding) -> str:
    """Return the whole sentence that says what was found and what follows from it."""
    follows = "KVM is used" if finding.good else "emulation is used"
    return f"{_observed(finding)}, so {follows}."


def measure(device: Path = DEVICE) -> Finding:
    """Run 64-bit kernel code on ``device`` in a process of its own, for a second at most; never raises.

    Nothing of it is left behind: a vCPU that does not come back dies with its process.
    """
    program = Path(__file__).with_name("kvmprobe.py")
    try:
        finished = process.run([sys.executable, "-I", "-S", program, device], limit=_LIMIT, check=False)
    except DeadlineError as error:
        return Finding(outcome=Outcome.HUNG, detail=f"the probe did not end in {error.seconds:.0f} s")
    except ToolError as error:
        return Finding(outcome=Outcome.CRASHED, detail=error.message.rstrip("."))
    return read_report(finished)


def read_report(finished: process.Finished) -> Finding:
    """Return what the probe program found, from how it ended and the one line that it wrote."""
    if finished.status == -signal.SIGALRM:
        return Finding(outcome=Outcome.HUNG, detail="the guest did not come back within a second")
    try:
        return _finding(json.loads(finished.stdout))
    except (ValueError, TypeError, KeyError):
        last = finished.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        said = f": {last[0]}" if last else ""
        return Finding(outcome=Outcome.CRASHED, detail=f"the probe ended with status {finished.status}{said}")


def _decide(requested: Literal["auto", "kvm"], finding: Finding) -> Accelerator:
    if finding.good:
        return Accelerator.KVM
    if requested == "kvm":
        raise HypervisorError(
            f"KVM was asked for and cannot be used: {_observed(finding)}.",
            hint="Set the accelerator to 'auto' or 'tcg'; 'vmimagemanager doctor' says what this host offers.",
        )
    return Accelerator.TCG


def _find(folder: Path, emulator: Path | None, *, only_good: bool) -> tuple[Finding, bool]:
    finding = _glance()
    if finding is not None:
        return finding, False
    record = folder / RECORD
    key = _key(emulator)
    remembered = _recall(record, key)
    if remembered is not None and (remembered.good or not only_good):
        return remembered, True
    watch = Stopwatch()
    finding = measure(DEVICE)
    if finding.good and emulator is not None:
        finding = _ask_emulator(emulator) or finding
    _log.info("tried %s in %.3f s: %s", DEVICE, watch.total, explain(finding))
    _remember(record, key, finding)
    return finding, False


def _glance() -> Finding | None:
    architecture = os.uname().machine
    if architecture != "x86_64":
        return Finding(outcome=Outcome.UNTESTED, detail=architecture)
    if not DEVICE.exists():
        return Finding(outcome=Outcome.ABSENT)
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return Finding(outcome=Outcome.DENIED)
    return None


def _ask_emulator(emulator: Path) -> Finding | None:
    try:
        said = process.run([emulator, "-accel", "help"], limit=_PROGRAM_LIMIT).stdout
    except (ToolError, DeadlineError):
        return None  # a QEMU that cannot even answer fails by itself, and says more
    return None if b"kvm" in said.split() else Finding(outcome=Outcome.UNSUPPORTED, detail=str(emulator))


def _key(emulator: Path | None) -> dict[str, str]:
    # A new version of QEMU is a new file, and its size and time cost no process to ask for.  The device's node is made
    # anew when another module takes it over.
    device = DEVICE.stat()
    system = os.uname()
    return {
        "host": _first_line(Path("/etc/machine-id")) or socket.gethostname(),
        "boot": _first_line(Path("/proc/sys/kernel/random/boot_id")),
        "kernel": f"{system.release} {system.version}",
        "device": f"{os.major(device.st_rdev)}:{os.minor(device.st_rdev)} {device.st_ino} {device.st_ctime_ns}",
        "qemu": _identity(emulator) if emulator else "none",
    }


def _identity(program: Path) -> str:
    try:
        status = program.stat()
    except OSError:
        return "none"
    return f"{program.resolve()} {status.st_size} {status.st_mtime_ns}"


def _first_line(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""


def _recall(path: Path, key: Mapping[str, str]) -> Finding | None:
    if not path.exists():
        return None
    try:
        record = records.read(path, version=_VERSION)
        if record["key"] != key:
            return None
        finding = _finding(record)
        age = time.time() - float(record["measured"])
    except (StateError, KeyError, TypeError, ValueError) as error:
        _log.warning("what '%s' remembers is ignored: %s", path, error)
        return None
    if finding.outcome in _DOUBTFUL and not 0 <= age < _DOUBT_LASTS.total_seconds():
        return None
    return finding


def _remember(path: Path, key: Mapping[str, str], finding: Finding) -> None:
    if finding.outcome in _NOT_KEPT:
        return
    content = {
        "outcome": finding.outcome.value,
        "detail": finding.detail,
        "seconds": finding.seconds,
        "measured": time.time(),
        "key": key,
    }
    try:
        durable.make_folder(path.parent)
        records.write(path, content, version=_VERSION)
    except (StateError, SpaceError) as error:
        _log.warning("the accelerator is not remembered: %s", error)


def _finding(report: Mapping[str, object]) -> Finding:
    detail, seconds = report["detail"], report.get("seconds")
    if not isinstance(detail, str) or not (seconds is None or isinstance(seconds, float)):
        raise TypeError("'detail' is a text and 'seconds' a number with a point")
    return Finding(outcome=Outcome(str(report["outcome"])), detail=detail, seconds=seconds)


def _observed(finding: Finding) -> str:
    detail = f" ({finding.detail})" if finding.detail else ""
    speed = "" if finding.seconds is None else f" (a million turns of a loop take {_seconds(finding.seconds)})"
    match finding.outcome:
        case Outcome.GOOD:
            return f"{DEVICE} runs 64-bit kernel code at full speed{speed}"
        case Outcome.SLOW:
            return f"{DEVICE} runs 64-bit kernel code far too slowly{speed}"
        case Outcome.WRONG:
            return f"{DEVICE} makes virtual machines but does not run 64-bit kernel code{detail}"
        case Outcome.HUNG:
            return f"64-bit kernel code hangs on {DEVICE}{detail}"
        case Outcome.BROKEN:
            return f"{DEVICE} cannot make a virtual machine{detail}"
        case Outcome.CRASHED:
            return f"whether {DEVICE} runs 64-bit kernel code could not be found out{detail}"
        case Outcome.ABSENT:
            return f"there is no {DEVICE} on this host"
        case Outcome.DENIED:
            user = user_name()
            return f"'{user}' may not use {DEVICE}{detail} ('usermod -aG kvm {user}' and a new login permit it)"
        case Outcome.UNTESTED:
            return f"there is no probe for this host's architecture{detail}"
        case Outcome.UNSUPPORTED:
            return f"{DEVICE} is good but this QEMU was built without KVM{detail}"
        case _:
            assert_never(finding.outcome)


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 0.1 else f"{seconds:.2f} s"
