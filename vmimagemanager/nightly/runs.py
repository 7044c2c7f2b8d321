"""The runs that are kept, in the state directory::

    runs/<job>/<when, UTC>/run.toml       what it was made of, and how each step ended
                           lock           taken as long as it runs
                           logs/          what each step printed
                           artefacts/     what was copied out of the guest
                           console.log    the guest's console, of a run that did not pass

Its record is there before anything is done to the box, and written again after each step: whoever finds it "running"
without its lock knows that it died.
"""

from __future__ import annotations

import itertools
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vmimagemanager import records
from vmimagemanager.durable import make_folder, publish, remove_tree, translate_os_errors
from vmimagemanager.errors import LeaseError, StateError, UsageError
from vmimagemanager.leases import owner
from vmimagemanager.locks import FileLock
from vmimagemanager.names import is_name, printable, quoted
from vmimagemanager.nightly.job import Job
from vmimagemanager.nightly.outcome import Outcome
from vmimagemanager.proof import Proof
from vmimagemanager.state import StateDirectory
from vmimagemanager.trap import History, Told

FORMAT = 1
_WHEN = "%Y%m%dT%H%M%SZ"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRun:
    """How a step ended; ``status`` is that of its command, ``log`` the file with its output, ``trapped`` its findings.

    ``told``, ``proof``, and what its baseline ``accepted`` if that was written, are there when it has just ended, and
    not when it is read from the record.
    """

    name: str
    outcome: Outcome
    seconds: float = 0.0
    status: int | None = None
    message: str = ""
    log: Path | None = None
    trapped: History | None = None
    told: Told | None = None
    proof: Proof | None = None
    accepted: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a job; ``inputs`` says what it was made of, each with its digest or date.

    ``changed`` are those inputs that were others in the last run that passed, which ``compared`` names.
    """

    job: str
    name: str
    folder: Path
    path: Path
    box: str
    snapshot: str
    started: datetime
    owner: str
    outcome: Outcome = Outcome.RUNNING
    seconds: float = 0.0
    message: str = ""
    exit_code: int | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    compared: str = ""
    changed: tuple[str, ...] = ()
    steps: tuple[StepRun, ...] = ()

    @property
    def address(self) -> str:
        return f"{self.job}/{self.name}"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def artefacts(self) -> Path:
        return self.folder / "artefacts"

    def artefacts_of(self, step: str) -> Path:
        """Make the folder of a step's artefacts, and return it."""
        return make_folder(self.artefacts / step, mode=stat.S_IMODE(self.artefacts.stat().st_mode))

    @property
    def console_log(self) -> Path:
        return self.folder / "console.log"

    def log(self, step: int, name: str) -> Path:
        return self.logs / f"{step}-{name}.log"

    def write(self) -> None:
        """Write its record; raise SpaceError or StateError."""
        record = {
            "job": self.job,
            "path": printable(self.path),
            "box": self.box,
            "snapshot": self.snapshot,
            "started": self.started,
            "owner": self.owner,
            "outcome": self.outcome.value,
            "seconds": round(self.seconds, 3),
            "message": _encodable(self.message),
            "exit-code": self.exit_code,
            "compared": self.compared,
            "changed": list(self.changed),
            "inputs": dict(self.inputs),
            "steps": [_step_record(step) for step in self.steps],
        }
        records.write(self.folder / _RECORD, record, version=FORMAT)


class Runs:
    """The runs of one state directory."""

    def __init__(self, state: StateDirectory) -> None:
        self._state = state

    @contextmanager
    def new(self, job: Job) -> Iterator[Run]:
        """Yield a new run, whose lock is taken as long as the block runs; raise StateError, SpaceError."""
        run = Run(
            job=job.name,
            name="",
            folder=Path(),
            path=job.path,
            box=job.box,
            snapshot=job.snapshot or "",
            started=datetime.now(UTC).replace(microsecond=0),
            owner=owner(),
        )
        staged = self._staged(job.name)
        parent = staged.parent
        try:
            mode = stat.S_IMODE(parent.stat().st_mode)
            staged.chmod(mode)
            for part in (run.logs, run.artefacts):
                make_folder(staged / part, mode=mode)
            replace(run, folder=staged).write()
            lock = FileLock(staged / _LOCK)
            lock.try_acquire()
            folder = _published(staged, parent, run.started)
        except BaseException:
            remove_tree(staged)
            raise
        lock.path = folder / _LOCK
        try:
            yield replace(run, name=folder.name, folder=folder)
        finally:
            lock.remove()

    def list(self, job: str | None = None) -> tuple[Run, ...]:
        """Return the runs of a job, or of all jobs, the oldest first; raise UsageError when there are none of it."""
        folder = self._state.runs
        jobs = [job] if job is not None else _names(folder)
        if job is not None and (not is_name(job) or job not in _names(folder)):
            known = ", ".join(_names(folder))
            raise UsageError(
                f"There is no run of a job {quoted(job)}.",
                hint=f"There are runs of: {known}." if known else "vmimagemanager nightly run FILE",
            )
        folders = [folder / one / name for one in jobs for name in _names(folder / one)]
        found = [self._read(path) for path in folders]
        found = [run for run in found if run.outcome is not Outcome.DAMAGED or run.folder.exists()]  # not just removed
        return tuple(sorted(found, key=lambda run: (run.started, run.address)))

    def get(self, job: str, name: str | None = None) -> Run:
        """Return a run of a job, by default the last one; raise UsageError when there is none of that name."""
        found = self.list(job)
        if not found:
            raise UsageError(f"There is no run of a job {quoted(job)}.", hint="vmimagemanager nightly run FILE")
        for run in reversed(found):
            if name in (None, run.name):
                return run
        known = ", ".join(run.name for run in found)
        raise UsageError(f"There is no run {quoted(name or '')} of '{job}'.", hint=f"There are: {known}.")

    def remove(self, run: Run) -> None:
        """Remove a run with its logs and artefacts; raise LeaseError for one that is not over."""
        if run.outcome is Outcome.RUNNING:
            holder = FileLock(run.folder / _LOCK).holder()
            raise LeaseError(
                f"The run '{run.address}' is not over: {holder}.",
                hint=f"End it first: kill {holder.pid if holder else ''}",
            )
        hidden = run.folder.with_name(f"{_REMOVED}{run.name}")  # all at once, for whoever looks meanwhile
        with translate_os_errors("remove", run.folder), suppress(FileNotFoundError):  # somebody else was quicker
            run.folder.rename(hidden)
        self.sweep(run.job)

    def sweep(self, job: str) -> None:
        """Remove what removals have left of a job that were interrupted, and its folder when there is nothing in it."""
        folder = self._state.runs / job
        for left in (*folder.glob(f"{_REMOVED}*"), *filter(_is_abandoned, folder.glob(f"{_NEW}*"))):
            remove_tree(left)
        with suppress(OSError):  # there is something in it, or no folder
            folder.rmdir()

    def make_room(self, job: Job) -> None:
        """Remove the oldest runs of a job, so that a new one is the last that it keeps.

        The last that passed stays, and the last that did not, though it was begun.
        """
        self.sweep(job.name)
        if not (self._state.runs / job.name).is_dir():
            return
        ended = [run for run in self.list(job.name) if run.outcome is not Outcome.RUNNING]
        passed = [run.name for run in ended if run.outcome is Outcome.PASSED]
        others = [run.name for run in ended if run.outcome is not Outcome.PASSED and run.steps]
        for run in ended[: max(0, len(ended) - job.keep + 1)]:
            if run.name not in {*passed[-1:], *others[-1:]}:
                self.remove(run)

    def _staged(self, job: str) -> Path:
        while True:
            parent = self._state.private_folder("runs", job)
            with translate_os_errors("make a folder in", parent), suppress(FileNotFoundError):  # it was just removed
                return Path(tempfile.mkdtemp(dir=parent, prefix=_NEW))

    def _read(self, folder: Path) -> Run:
        run = _recorded(folder)
        if run.outcome is not Outcome.RUNNING:
            return run
        if FileLock(folder / _LOCK).holder() is not None:
            return replace(run, seconds=(datetime.now(UTC) - run.started).total_seconds())
        run = _recorded(folder)  # it may have ended between the two looks
        if run.outcome is not Outcome.RUNNING:
            return run
        steps = [replace(one, outcome=Outcome.DIED) if one.outcome is Outcome.RUNNING else one for one in run.steps]
        return replace(
            run,
            outcome=Outcome.DIED,
            message="its process was killed, or could not write how it ended",
            steps=tuple(steps),
        )


def _recorded(folder: Path) -> Run:
    """Return a run as its record tells it."""
    try:
        with translate_os_errors("read", folder):
            list(folder.iterdir())
        return _run(folder, records.read(folder / _RECORD, version=FORMAT))
    except (StateError, KeyError, TypeError, ValueError, AttributeError) as error:
        message = error.message if isinstance(error, StateError) else f"'{folder / _RECORD}' is damaged: {error!r}"
        return _damaged(folder, message)


def _is_abandoned(staged: Path) -> bool:
    """Say whether the process that made a run's folder was killed before it was one."""
    with suppress(OSError):
        return time.time() - staged.stat().st_mtime > _MAKING and FileLock(staged / _LOCK).holder() is None
    return False


def _published(staged: Path, parent: Path, started: datetime) -> Path:
    """Give a run's folder the first name that is free of those that a run can have which began then; return it."""
    name = started.strftime(_WHEN)
    for number in itertools.count(1):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            publish(staged, folder)
        except FileExistsError:
            continue
        except StateError:
            if not folder.exists():  # else somebody was quicker
                raise
            continue
        return folder
    raise AssertionError("there are names without an end")


def _damaged(folder: Path, message: str) -> Run:
    """Return what can be told of a run without its record."""
    try:
        started = datetime.strptime(folder.name.partition("-")[0], _WHEN).replace(tzinfo=UTC)
    except ValueError:
        started = datetime.fromtimestamp(0, UTC)
    return Run(
        job=folder.parent.name,
        name=folder.name,
        folder=folder,
        path=Path(),
        box="",
        snapshot="",
        started=started,
        owner="",
        outcome=Outcome.DAMAGED,
        message=message,
    )


def _encodable(text: str) -> str:
    """Escape what TOML cannot hold: what a guest says, and how its files are called, is the guest's."""
    return text.encode("utf-8", "backslashreplace").decode()


def _step_record(step: StepRun) -> dict[str, Any]:
    return {
        "name": step.name,
        "outcome": step.outcome.value,
        "seconds": round(step.seconds, 3),
        "status": step.status,
        "message": _encodable(step.message),
        "log": step.log.name if step.log else None,
        "trap": step.trapped.to_record() if step.trapped else None,
    }


def _run(folder: Path, record: Mapping[str, Any]) -> Run:
    return Run(
        job=folder.parent.name,
        name=folder.name,
        folder=folder,
        path=Path(record["path"]),
        box=str(record["box"]),
        snapshot=str(record["snapshot"]),
        started=record["started"].astimezone(UTC),
        owner=str(record["owner"]),
        outcome=Outcome(record["outcome"]),
        seconds=float(record["seconds"]),
        message=str(record["message"]),
        exit_code=record.get("exit-code"),
        inputs={str(name): str(value) for name, value in record["inputs"].items()},
        compared=str(record["compared"]),
        changed=tuple(map(str, record["changed"])),
        steps=tuple(_step(folder, step) for step in record["steps"]),
    )


def _step(folder: Path, record: Mapping[str, Any]) -> StepRun:
    return StepRun(
        name=str(record["name"]),
        outcome=Outcome(record["outcome"]),
        seconds=float(record["seconds"]),
        status=record.get("status"),
        message=str(record["message"]),
        log=folder / "logs" / str(record["log"]) if "log" in record else None,
        trapped=History.of(record["trap"]) if "trap" in record else None,
    )


def _names(folder: Path) -> list[str]:
    with translate_os_errors("read", folder):
        if not folder.is_dir():
            return []
        return sorted(entry.name for entry in folder.iterdir() if is_name(entry.name) and entry.is_dir())


_RECORD, _LOCK, _NEW, _REMOVED = "run.toml", "lock", ".new-", ".removed-"
_MAKING = 60.0  # seconds
