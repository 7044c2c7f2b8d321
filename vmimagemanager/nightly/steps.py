"""Doing one step of a job, and telling whose fault it is when it does not end well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path, PurePosixPath

from vmimagemanager.box import Box
from vmimagemanager.deadline import Stopwatch, timeout_factor
from vmimagemanager.durable import translate_os_errors
from vmimagemanager.errors import DeadlineError, TransferError, VmimError
from vmimagemanager.guest.result import Result
from vmimagemanager.nightly.job import Command, Deed, Get, Insert, Job, Put, Script, Step, Trapping
from vmimagemanager.nightly.outcome import Outcome
from vmimagemanager.nightly.output import Output, output
from vmimagemanager.nightly.runs import Run, StepRun
from vmimagemanager.progress import Progress
from vmimagemanager.proof import Question, prove
from vmimagemanager.trap import History, Told
from vmimagemanager.units import format_duration

_ANSWER = timedelta(seconds=10)
_MOST = 500  # characters of what a guest says


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a job's steps are done, what earlier runs found there, and whether baselines are written."""

    box: Box
    job: Job
    run: Run
    earlier: Mapping[str, History]
    accept: bool
    rebase: bool
    progress: Progress

    def do(self, number: int, step: Step) -> StepRun:
        """Do a step, and return how it ended; raise VmimError when that was not the fault of what is tested."""
        watch = Stopwatch()
        with output(self.run.log(number, step.name)) as printed:
            doing = _Doing(place=self, step=step, printed=printed)
            ended = doing.trapped(step.trap) if step.trap is not None else doing.plain()
        return replace(ended, seconds=watch.total, log=self.log(number, step))

    def log(self, number: int, step: Step) -> Path | None:
        """Return where a step's output is, if it printed any."""
        path = self.run.log(number, step.name)
        return path if path.exists() else None

    def guest_is_well(self) -> bool:
        """Say whether the guest does what it is told."""
        try:
            return self.box.run(["true"], limit=_ANSWER, check=False).status == 0
        except VmimError:
            return False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ended:
    """How a deed ended: the status of its command, if it had one, and what is to be said when it failed."""

    status: int | None = None
    failure: str = ""


class _TooLongError(Exception):
    """A command did not end in time, and its guest is well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Doing:
    place: Place
    step: Step
    printed: Output

    def plain(self) -> StepRun:
        try:
            ended = self._deed(self.step.deed)
        except _TooLongError as error:
            ended = _Ended(failure=str(error))
        return self._made(ended)

    def trapped(self, trap: Trapping) -> StepRun:
        """Do it inside the trap.

        What took too long may go on in the guest: nothing is said of what it changed.
        """
        box, place, deed = self.place.box, self.place, self.step.deed
        question = None
        if trap.prove and isinstance(deed, Command):
            question = Question.of(
                box, deed.argv, snapshot=place.job.snapshot, artefacts=trap.artefacts, jobs=trap.jobs
            )
            question = replace(question, limit=self.step.timeout)
        writes = (place.accept or place.rebase) and trap.baseline is not None
        try:
            with box.trap(
                trap.baseline,
                policy=trap.policy,
                declared=trap.declared,
                since=trap.since,
                trace=trap.trace or ("atime" if trap.prove else None),
                expect_clean=trap.expect_clean,
                missing_is_empty=writes,
                rebase=place.rebase,
            ) as set_trap:
                ended = self._deed(deed)
        except _TooLongError as error:
            return self._made(_Ended(failure=str(error)))
        proof = None
        if question is not None and not ended.failure:
            proof = prove(box, question, set_trap, progress=place.progress)
        told = Told.of(set_trap.verdict, place.earlier.get(self.step.name), _words(deed), trap.declared)
        done = replace(self._made(ended), trapped=told.history, told=told, proof=proof)
        if writes and ended.failure:
            done = replace(done, message=f"{ended.failure}; the baseline was not written")
        if not writes or ended.failure:
            return replace(done, outcome=Outcome.of(failed=bool(ended.failure), trapped=told.verdict.trapped))
        before = set_trap.baseline.accepted
        added = sorted(set_trap.accept(rebase=place.rebase).accepted - before)
        return replace(done, trapped=replace(told.history, findings={}), accepted=tuple(added))

    def _made(self, ended: _Ended) -> StepRun:
        return StepRun(
            name=self.step.name,
            outcome=Outcome.of(failed=bool(ended.failure), trapped=False),
            status=ended.status,
            message=ended.failure,
        )

    def _deed(self, deed: Deed) -> _Ended:
        """Do it, within the step's time; raise _TooLongError when that did not suffice though the guest is well."""
        limit, watch = self.step.timeout, Stopwatch()
        try:
            return self._done(deed, limit)
        except DeadlineError as error:
            over = watch.total >= limit.total_seconds() * timeout_factor()  # or it was a connection that did not answer
            if not over or not self.place.guest_is_well():
                raise
            raise _TooLongError(f"it did not end within {format_duration(limit * timeout_factor())}") from error

    def _done(self, deed: Deed, limit: timedelta) -> _Ended:
        box, sink = self.place.box, self.printed.write
        match deed:
            case Command(argv=argv):
                return _of(box.run(argv, limit=limit, check=False, stdout=sink, stderr=sink))
            case Script(path=path):
                return _of(box.script(_text(path), limit=limit, check=False, stdout=sink, stderr=sink))
            case Put(source=source, target=target):
                box.put(source, target, limit=limit)
            case Insert(sources=sources, folder=folder):
                box.insert(sources, to=folder, limit=limit)
            case Get(source=source):
                return self._get(source, limit)
        return _Ended()

    def _get(self, source: PurePosixPath, limit: timedelta) -> _Ended:
        """Copy out of the guest; what is not there, or cannot be copied, fails as long as the guest is well."""
        box = self.place.box
        if box.run(["test", "-e", str(source)], limit=limit, check=False).status != 0:
            return _Ended(failure=f"'{source}' is not there")
        try:
            box.get(source, self.place.run.artefacts_of(self.step.name), limit=limit)
        except TransferError as error:
            if not self.place.guest_is_well():
                raise
            return _Ended(failure=str(error)[:_MOST])
        return _Ended()


def _of(result: Result) -> _Ended:
    return _Ended(status=result.status, failure=f"status {result.status}" if result.status else "")


def _words(deed: Deed) -> tuple[str, ...]:
    """Return what is asked for by a deed, for `trap.history.inputs_digest`."""
    match deed:
        case Command(argv=argv):
            return argv
        case Script(path=path):
            return ("script", _text(path))
        case Put(source=source, target=target):
            return ("put", source.name, str(target))
        case Insert(sources=sources, folder=folder):
            return ("insert", *sources, str(folder))
        case Get(source=source):
            return ("get", str(source))


def _text(script: Path) -> str:
    """Return a script as it is, for `Box.script`."""
    with translate_os_errors("read", script):
        return script.read_bytes().decode("utf-8", "surrogateescape")
