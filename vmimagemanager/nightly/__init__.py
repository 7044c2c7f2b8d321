"""Nightly runs: a box is put back to a clean snapshot, the steps of a job are done in it, and all is kept that explains
how it ended.

::

    from vmimagemanager import Manager, nightly

    with Manager.open() as manager:
        ended = nightly.run(manager, nightly.Job.read("hello.toml"))
        print(ended.outcome, ended.changed)

Nothing of a run is left running that did not run before, however it ends.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from vmimagemanager.box import Box
from vmimagemanager.deadline import Stopwatch
from vmimagemanager.durable import replace_file
from vmimagemanager.errors import BoxHeldError, StateError, VmimError
from vmimagemanager.manager import Manager
from vmimagemanager.nightly import inputs
from vmimagemanager.nightly.job import Job, Step
from vmimagemanager.nightly.outcome import Outcome
from vmimagemanager.nightly.runs import Run, Runs, StepRun
from vmimagemanager.nightly.steps import Place
from vmimagemanager.progress import Progress, silent
from vmimagemanager.trap import History

__all__ = ["Job", "Outcome", "Run", "Runs", "Step", "StepRun", "run", "runs_of"]

_log = logging.getLogger(__name__)
_MOST = 500  # characters of an error, which may be what a guest says
_CONSOLE = 4 << 20  # bytes


def runs_of(manager: Manager) -> Runs:
    """Return the runs that are kept."""
    return Runs(manager.site.state)


def run(
    manager: Manager,
    job: Job,
    *,
    accept: bool = False,
    rebase: bool = False,
    progress: Progress = silent,
    ended: Callable[[StepRun], object] | None = None,
    over: Callable[[Run], object] | None = None,
) -> Run:
    """Run a job, and return how that ended: nothing is raised for what is tested.

    The box is leased, restored, and after the steps powered off if it was off before.  Steps after one that failed are
    skipped, but for those that are done always; a trap that was sprung skips none.  ``ended`` is told of each step, and
    ``over`` of the run, also when something is raised.

    With ``accept`` the baselines are written so that they accept what each trap finds, with ``rebase`` anew for the
    base that the guest is now; not that of a command that fails.

    Raises UsageError for a job that cannot be done, LeaseError for a box that somebody has or that is held, and
    whatever else keeps the testbed from doing it.  That is kept in the run's record, too.
    """
    runs = runs_of(manager)
    try:
        runs.make_room(job)
    except StateError as error:  # somebody else's, or somebody else was quicker
        _log.warning("old runs of '%s' are not removed: %s", job.name, error)
    with runs.new(job) as begun:
        running = _Running(manager, job, begun, ended)
        try:
            inputs.require(job, accept=accept or rebase)
            running.to_the_end(runs, accept=accept, rebase=rebase, progress=progress)
        except BaseException as error:
            running.broke(error)
            try:
                running.tell(over)
            except VmimError as another:
                _log.warning("how the run '%s' ended is not kept: %s", begun.address, another)
            raise
        running.tell(over)
    return running.run


class _Running:
    def __init__(self, manager: Manager, job: Job, begun: Run, ended: Callable[[StepRun], object] | None) -> None:
        self._manager, self._job, self._ended = manager, job, ended
        self._watch = Stopwatch()
        self._before: list[Run] = []
        self.run = begun

    def to_the_end(self, runs: Runs, *, accept: bool, rebase: bool, progress: Progress) -> None:
        job, manager = self._job, self._manager
        with manager.lease(job.box) as box:
            _require_not_held(box)
            self._before = [one for one in runs.list(job.name) if one.name != self.run.name]
            self._note(inputs=inputs.gather(manager, box, job))
            with box.borrowed():
                place = Place(
                    box=box,
                    job=job,
                    run=self.run,
                    earlier=_earlier(self._before),
                    accept=accept,
                    rebase=rebase,
                    progress=progress,
                )
                try:
                    progress("restoring", None)
                    _put_back(box, job)
                    self._steps(place)
                except BaseException as error:
                    self.broke(error)
                    raise
                finally:
                    self._keep_what_explains(box)

    def tell(self, over: Callable[[Run], object] | None) -> None:
        """Compare the run with the last one that passed, write its record, and tell whoever wants to know."""
        passed = [one for one in self._before if one.outcome is Outcome.PASSED][-1:]
        if passed and self.run.inputs:
            self._note(compared=passed[0].name, changed=inputs.changed(passed[0].inputs, self.run.inputs))
        self.run.write()
        if over is not None:
            over(self.run)

    def broke(self, error: BaseException) -> None:
        """Keep that it did not come to its end."""
        if self.run.outcome is not Outcome.RUNNING:
            return
        outcome, message = _ending(error)
        code = 128 + signal.SIGPIPE if isinstance(error, BrokenPipeError) else outcome.exit_code
        code = getattr(error, "exit_code", code)  # of ours, and of whatever ends the program
        self._note(outcome=outcome, message=message, exit_code=code)

    def _steps(self, place: Place) -> None:
        """Do the steps; when the testbed fails in one, and the guest is well, those that are done always, too."""
        stopped, error = False, None
        for number, step in enumerate(self._job.steps, 1):
            if stopped and not (step.always and (error is None or place.guest_is_well())):
                self._tell(StepRun(name=step.name, outcome=Outcome.SKIPPED))
                continue
            place.progress(f"{number}/{len(self._job.steps)} {step.name}", (number - 1) / len(self._job.steps))
            self._begin(place, number, step)
            watch = Stopwatch()
            try:
                done = place.do(number, step)
            except BaseException as failure:
                outcome, message = _ending(failure)
                done = StepRun(name=step.name, outcome=outcome, seconds=watch.total, message=message)
                self._tell(replace(done, log=place.log(number, step)))
                if not isinstance(failure, VmimError):
                    raise
                error = error or failure
            else:
                self._learn(done, step)
                self._tell(done)
            stopped = stopped or done.outcome not in {Outcome.PASSED, Outcome.TRAPPED}
        if error is not None:
            raise error
        outcome = Outcome.of_all([step.outcome for step in self.run.steps])
        self._note(outcome=outcome, exit_code=outcome.exit_code)

    def _begin(self, place: Place, number: int, step: Step) -> None:
        """Keep which step is done now: whoever kills this process can be told."""
        running = StepRun(name=step.name, outcome=Outcome.RUNNING, log=place.run.log(number, step.name))
        replace(self.run, steps=(*self.run.steps, running), seconds=self._watch.total).write()

    def _learn(self, done: StepRun, step: Step) -> None:
        """Keep what a trap says of the archives, and the baseline that it wrote, as inputs."""
        if done.told is None:
            return
        found = inputs.archives(done.told.verdict.after.archive)
        if done.accepted is not None and step.trap is not None and step.trap.baseline is not None:
            found |= inputs.of(step.trap.baseline, self._job)
        self._note(inputs={**self.run.inputs, **found})

    def _tell(self, step: StepRun) -> None:
        self._note(steps=(*self.run.steps, step))
        self.run.write()
        if self._ended is not None:
            self._ended(step)

    def _keep_what_explains(self, box: Box) -> None:
        """Keep the console of a run that did not pass, and the box as it is, if the job says so."""
        if self.run.outcome is Outcome.PASSED:
            return
        with suppress(VmimError):
            replace_file(self.run.console_log, box.console_log()[-_CONSOLE:], mode=0o640)
        if self._job.hold is None or self.run.outcome is Outcome.INTERRUPTED or not self.run.steps:
            return
        try:
            box.lock(self._job.hold, f"nightly run {self.run.address}: {self.run.outcome}")
        except VmimError as error:
            _log.warning("the box '%s' is not held: %s", box.name, error)

    def _note(self, **values: object) -> None:
        self.run = replace(self.run, seconds=self._watch.total, **values)  # type: ignore[arg-type]  # Run's own fields


def _ending(error: BaseException) -> tuple[Outcome, str]:
    """Return what an error makes of a run or a step, and what is to be said of it."""
    if isinstance(error, BrokenPipeError):
        return Outcome.INTERRUPTED, "whoever read its output went away"
    if isinstance(error, Exception):
        return Outcome.ERROR, (str(error) or repr(error))[:_MOST]
    return Outcome.INTERRUPTED, ""


def _require_not_held(box: Box) -> None:
    """Raise BoxHeldError for a box that is held, by its own user, too: a hold keeps what is in it."""
    hold = box.show().held_by
    if hold is not None:
        raise BoxHeldError(
            f"The box '{box.name}' is held by {hold}: a nightly run would restore it.",
            hint=f"vmimagemanager unlock {box.name}",
        )


def _put_back(box: Box, job: Job) -> None:
    if job.snapshot is None:
        box.reset()
        box.up()
    elif not box.restore(job.snapshot).running:
        box.up()


def _earlier(before: Sequence[Run]) -> dict[str, History]:
    """Return what each step's trap found the last time."""
    return {step.name: step.trapped for one in before for step in one.steps if step.trapped is not None}
