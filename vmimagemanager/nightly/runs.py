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

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vmimagemanager import records
from vmimagemanager.durable import make_folder, remove_tree, translate_os_errors
from vmimagemanager.errors import StateError, UsageError
from vmimagemanager.leases import owner
from vmimagemanager.locks import FileLock
from vmimagemanager.names import is_name, quoted
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
    def artefacts(self) -> Path:
        return self.folder / "artefacts"

    @property
    def console_log(self) -> Path:
        return self.folder / "console.log"

    def log(self, step: int, name: str) -> Path:
        return self.folder / "logs" / f"{step}-{name}.log"

    def write(self) -> None:
        """Write its record; raise SpaceError or StateError."""
        record = {
            "job": self.job,
            "path": str(self.path),
            "box": self.box,
            "snapshot": self.snapshot,
            "started": self.started,
            "owner": self.owner,
            "outcome": self.outcome.value,
            "seconds": round(self.seconds, 3),
            "message": self.message,
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
        started = datetime.now(UTC).replace(microsecond=0)
        folder = self._new_folder(self._state.private_folder("runs", job.name), started)
        for part in ("logs", "artefacts"):
            make_folder(folder / part, mode=0o700)
        run = Run(
            job=job.name,
            name=folder.name,
            folder=folder,
            path=job.path,
            box=job.box,
            snapshot=job.snapshot or "",
            started=started,
            owner=owner(),
        )
        with FileLock(folder / _LOCK) as lock:
            run.write()
            try:
                yield run
            finally:
                lock.remove()

    def list(self, job: str | None = None) -> tuple[Run, ...]:
        """Return the runs of a job, or of all jobs, the oldest first; raise UsageError when there are none of it."""
        folder = self._state.runs
        jobs = [job] if job is not None else _names(folder)
        if job is not None and (not is_name(job) or not (folder / job).is_dir()):
            known = ", ".join(_names(folder))
            raise UsageError(
                f"There is no run of a job {quoted(job)}.",
                hint=f"There are runs of: {known}." if known else "vmimagemanager nightly run FILE",
            )
        found = [self._read(folder / one / name) for one in jobs for name in _names(folder / one)]
        return tuple(sorted((run for run in found if run), key=lambda run: (run.started, run.address)))

    def get(self, job: str, name: str | None = None) -> Run:
        """Return a run of a job, by default the last one; raise UsageError when there is none of that name."""
        found = self.list(job)
        for run in reversed(found):
            if name in (None, run.name):
                return run
        known = ", ".join(run.name for run in found)
        raise UsageError(f"There is no run {quoted(name or '')} of '{job}'.", hint=f"There are: {known}.")

    def remove(self, run: Run) -> None:
        """Remove a run with its logs and artefacts; raise StateError for one that is not over."""
        if run.outcome is Outcome.RUNNING:
            raise StateError(f"The run '{run.address}' is not over: {FileLock(run.folder / _LOCK).holder()}.")
        hidden = run.folder.with_name(f".{run.name}")  # all at once, for whoever looks meanwhile
        with translate_os_errors("remove", run.folder):
            run.folder.rename(hidden)
        remove_tree(hidden)
        with translate_os_errors("remove", run.folder.parent):
            if not any(run.folder.parent.iterdir()):
                run.folder.parent.rmdir()

    def make_room(self, job: Job) -> None:
        """Remove the oldest runs of a job, so that a new one is the last that it keeps; not the last that passed."""
        for left in (self._state.runs / job.name).glob(".*"):  # of a removal that was interrupted
            remove_tree(left)
        if not (self._state.runs / job.name).is_dir():
            return
        ended = [run for run in self.list(job.name) if run.outcome is not Outcome.RUNNING]
        passed = [run.name for run in ended if run.outcome is Outcome.PASSED][-1:]
        for run in ended[: max(0, len(ended) - job.keep + 1)]:
            if run.name not in passed:
                self.remove(run)

    def _new_folder(self, parent: Path, started: datetime) -> Path:
        name = started.strftime(_WHEN)
        for number in range(1, 1000):
            folder = parent / (name if number == 1 else f"{name}-{number}")
            try:
                folder.mkdir(mode=0o700)
            except FileExistsError:
                continue
            except OSError:
                with translate_os_errors("make the folder", folder):
                    raise
            return folder
        raise StateError(f"There are too many runs in '{parent}'.")

    def _read(self, folder: Path) -> Run | None:
        if not (folder / _RECORD).exists():  # being made, or removed
            return None
        record = records.read(folder / _RECORD, version=FORMAT)
        try:
            run = _run(folder, record)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StateError(
                f"The record '{folder / _RECORD}' is damaged: {error!r}.", hint=f"Remove its folder: '{folder}'."
            ) from error
        if run.outcome is Outcome.RUNNING and FileLock(folder / _LOCK).holder() is None:
            return replace(run, outcome=Outcome.DIED, message="the process that ran it was killed")
        return run


def _step_record(step: StepRun) -> dict[str, Any]:
    return {
        "name": step.name,
        "outcome": step.outcome.value,
        "seconds": round(step.seconds, 3),
        "status": step.status,
        "message": step.message,
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
    if not folder.is_dir():
        return []
    with translate_os_errors("read", folder):
        return sorted(entry.name for entry in folder.iterdir() if is_name(entry.name) and entry.is_dir())


_RECORD, _LOCK = "run.toml", "lock"
