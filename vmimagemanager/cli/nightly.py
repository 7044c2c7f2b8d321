"""nightly run, list, show, remove."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vmimagemanager.cli import screen
from vmimagemanager.cli.invocation import Invocation
from vmimagemanager.cli.life import YES
from vmimagemanager.cli.progress import shown
from vmimagemanager.cli.values import JOB, RUN
from vmimagemanager.cli.verb import VerbGroup, verb_of
from vmimagemanager.cli.verdicts import RESULT, recorded
from vmimagemanager.durable import translate_os_errors
from vmimagemanager.errors import UsageError

if TYPE_CHECKING:
    from vmimagemanager.nightly import Job, Run, Runs, StepRun
    from vmimagemanager.progress import Progress

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.group("nightly", cls=VerbGroup)
def nightly() -> None:
    """Nightly runs: the steps of a job, on a box that was put back first.

    A run is named by its job and when it began, such as hello/20261128T030001Z; the job alone means the last one.
    """


@verb_of(nightly, "run", documents=True)
@click.argument("file", metavar="JOB", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--accept", is_flag=True, help="Accept what is new: write the baselines of the traps.")
@click.option("--rebase", is_flag=True, help="Write the baselines anew, for the base that the guest is now.")
@click.option("--junit", metavar="FILE", type=_FILE, help="Write how it ended to FILE as JUnit XML.")
@click.option("--markdown", metavar="FILE", type=_FILE, help="Write how it ended to FILE as Markdown.")
@RESULT
@click.pass_obj
def run(
    invocation: Invocation,
    *,
    file: Path,
    accept: bool,
    rebase: bool,
    junit: Path | None,
    markdown: Path | None,
    result: Path | None,
) -> int:
    """Run a job: put its box back, do its steps, and keep what explains how that ended.

    The exit code is 0 when it passed, 1 when a step failed, 100 when something was trapped, 101 for both, and that of
    the error when it could not be done.
    """
    from vmimagemanager import nightly as room

    for path in (junit, markdown, result):
        _make_way(path)
    with recorded(result, "nightly", file=str(file)) as written, invocation.open() as manager:
        job = room.Job.read(file)
        with _Telling(invocation, job, junit=junit, markdown=markdown) as telling:
            try:
                ended = room.run(
                    manager,
                    job,
                    accept=accept,
                    rebase=rebase,
                    progress=telling.progress,
                    ended=telling.step,
                    over=telling.over,
                )
            finally:
                written.more = {"run": telling.document}
        written.values = {"outcome": "ended", "exit_code": ended.exit_code}
    if invocation.json:
        screen.emit("nightly", telling.document or {})
    return ended.exit_code or 0


def _make_way(path: Path | None) -> None:
    """Remove what an earlier run has written, or it would be taken for that of one that is killed."""
    if path is None:
        return
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"'{path}' cannot be written: its folder is not writable, or not there.")
    if not path.parent.is_dir() or path.is_symlink() or (path.exists() and not path.is_file()):
        raise UsageError(f"'{path}' cannot be written: it is there, and not a plain file.")
    with translate_os_errors("replace", path):
        path.unlink(missing_ok=True)


@verb_of(nightly, "list", documents=True)
@click.argument("job", type=JOB, required=False)
@click.pass_obj
def list_runs(invocation: Invocation, job: str | None) -> None:
    """List the runs that are kept, of a job or of all jobs, the oldest first."""
    from vmimagemanager import nightly as room
    from vmimagemanager.report import nightly as report

    with invocation.open() as manager:
        found = room.runs_of(manager).list(job)
    if invocation.json:
        screen.emit("nightly-list", {"runs": [report.document(one) for one in found]})
    elif found:
        screen.table(report.HEADER, map(report.row, found))
    else:
        invocation.say("There are no runs.")


@verb_of(nightly, "show", documents=True)
@click.argument("which", metavar="JOB[/RUN]", type=RUN)
@click.pass_obj
def show(invocation: Invocation, which: str) -> None:
    """Show how a run ended, by default the last one of a job: its steps, what was trapped, and what had changed."""
    from vmimagemanager import nightly as room
    from vmimagemanager.report import nightly as report

    with invocation.open() as manager:
        found = _get(room.runs_of(manager), which)
    if invocation.json:
        screen.emit("nightly", report.document(found))
        return
    for outcome, line in report.lines(found):
        if outcome is None:
            screen.say(line)
        else:
            screen.say_marked(outcome.value, report.COLOURS[outcome], line)


@verb_of(nightly, "remove")
@click.argument("which", metavar="JOB[/RUN]...", type=RUN, nargs=-1, required=True)
@YES
@click.pass_obj
def remove(invocation: Invocation, *, which: tuple[str, ...], yes: bool) -> None:
    """Remove runs with their logs and artefacts; a job alone means all of its runs."""
    from vmimagemanager import nightly as room

    with invocation.open() as manager:
        runs = room.runs_of(manager)
        chosen = (run for one in which for run in ([_get(runs, one)] if "/" in one else runs.list(one)))
        found = {run.address: run for run in chosen}
        invocation.sure(f"Remove {', '.join(found)}?", yes=yes)
        for run in found.values():
            runs.remove(run)
            invocation.say(f"{run.address}: removed")


def _get(runs: Runs, which: str) -> Run:
    job, _, name = which.partition("/")
    return runs.get(job, name or None)


class _Telling:
    """Shows how far a run is, prints each step as it ends, and at its end writes what was asked for."""

    def __init__(self, invocation: Invocation, job: Job, *, junit: Path | None, markdown: Path | None) -> None:
        self._invocation, self._job = invocation, job
        self._junit, self._markdown = junit, markdown
        self._bars = ExitStack()
        self._bar: Progress | None = None
        self.document: dict[str, Any] | None = None

    def progress(self, phase: str, fraction: float | None) -> None:
        if self._bar is None:
            self._bar = self._bars.enter_context(shown(self._invocation))
        self._bar(phase, fraction)

    def step(self, step: StepRun) -> None:
        from vmimagemanager.report import nightly as report

        self._end_bar()  # nothing can be printed beside it
        if not self._invocation.quiet and not self._invocation.json:
            screen.say_marked(step.outcome.value, report.COLOURS[step.outcome], report.step_line(step))
            screen.say(*report.step_lines(step, self._job.path))
            sys.stdout.flush()

    def over(self, run: Run) -> None:
        from vmimagemanager.durable import replace_file
        from vmimagemanager.nightly import Outcome
        from vmimagemanager.report import nightly as report
        from vmimagemanager.report import nightlyfiles

        self._end_bar()
        self._invocation.say(*report.ending_lines(run, why=run.outcome is not Outcome.ERROR))
        self.document = report.document(run)
        self._invocation.about["run"] = self.document
        for path, make in ((self._junit, nightlyfiles.junit), (self._markdown, nightlyfiles.markdown)):
            if path is not None:
                replace_file(path, make(run))

    def __enter__(self) -> _Telling:
        return self

    def __exit__(self, *raised: object) -> None:
        self._end_bar()

    def _end_bar(self) -> None:
        self._bars.close()
        self._bar = None
