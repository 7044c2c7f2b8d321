"""Nightly runs: each step as it ends, a run, a row of the list; as text and as JSON."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vmimagemanager.guest.console import last_lines
from vmimagemanager.nightly import Outcome, Run, StepRun
from vmimagemanager.nightly.output import tail
from vmimagemanager.report import trap
from vmimagemanager.report.boxes import moment
from vmimagemanager.report.deeds import seconds
from vmimagemanager.trap import History

HEADER = ("RUN", "STARTED", "BOX", "OUTCOME", "TOOK", "WHAT")
COLOURS = {
    Outcome.PASSED: "green",
    Outcome.SKIPPED: "yellow",
    Outcome.RUNNING: "yellow",
    Outcome.TRAPPED: "red",
    Outcome.FAILED: "red",
    Outcome.TRAPPED_AND_FAILED: "red",
    Outcome.ERROR: "red",
    Outcome.INTERRUPTED: "red",
    Outcome.DIED: "red",
    Outcome.DAMAGED: "red",
}
_LINES = 15
_WHAT = 60


def step_line(step: StepRun) -> str:
    """Return a step on one line, without its outcome: the name, how long it took, and why it did not pass."""
    took = "" if step.outcome is Outcome.SKIPPED else f", {seconds(step.seconds)}"
    return f"{step.name}{took}" + (f": {step.message}" if step.message else "")


def step_lines(step: StepRun, job: Path) -> Iterator[str]:
    """Yield what is to be said below a step: what was trapped and proven, and the last lines of one that failed.

    ``job`` is the file of the job.
    """
    if step.accepted is not None:
        yield f"  The baseline was written, {len(step.accepted)} added."
        yield from (f"  + {item}" for item in step.accepted)
    elif step.told is not None:
        command = ["vmimagemanager", "nightly", "run", str(job), "--accept"]
        accept = "" if step.told.verdict.clean else shlex.join(command)
        found = trap.lines(step.told.verdict, accept=accept, fixed=step.told.fixed)
        yield from (f"  {line}" for line in found)
    elif step.trapped is not None:
        yield from (f"  {seen.item}, {seen.rule}, since {seen.since}" for seen in step.trapped.findings.values())
    if step.proof is not None:
        yield from (f"  {line}" for line in trap.proof_lines(step.proof))
    yield from (f"    {line}" for line in _last(step))


def ending_lines(run: Run, *, why: bool = True) -> list[str]:
    """Return how a run ended as a whole and ``why``, what has changed since it last passed, and where to look."""
    because = f": {run.message}" if why and run.message else ""
    shown = [f"{run.address}: {run.outcome} in {seconds(run.seconds)}{because}"]
    if run.compared and run.outcome is not Outcome.PASSED:
        what = ", ".join(run.changed) if run.changed else "nothing that is known of"
        shown.append(f"  Changed since {run.compared}, when it passed: {what}.")
    return [*shown, f"  Kept in: {run.folder}"]


def lines(run: Run) -> Iterator[tuple[Outcome | None, str]]:
    """Yield all that is known about a run, each line with the outcome that it begins with, if any."""
    yield None, f"{run.address}, by {run.owner or 'somebody'}, {moment(run.started)}"
    if run.outcome is not Outcome.DAMAGED:
        start = f"'{run.snapshot}'" if run.snapshot else "its image"
        yield None, f"  {run.path}, on '{run.box}', from {start}"
    for step in run.steps:
        yield step.outcome, step_line(step)
        for line in step_lines(step, run.path):
            yield None, line
    for line in ending_lines(run):
        yield None, line


def row(run: Run) -> tuple[str, ...]:
    """Return the cells of a run in the list, as `HEADER` names them."""
    bad = [step.name for step in run.steps if step.outcome not in {Outcome.PASSED, Outcome.SKIPPED}]
    what = ", ".join(bad) or textwrap.shorten(run.message, _WHAT, placeholder=" …") or "-"
    return (run.address, moment(run.started), run.box, run.outcome.value, seconds(run.seconds), what)


def document(run: Run) -> dict[str, Any]:
    """Return a run for JSON."""
    return {
        "job": run.job,
        "run": run.name,
        "file": str(run.path),
        "folder": str(run.folder),
        "box": run.box,
        "snapshot": run.snapshot or None,
        "owner": run.owner,
        "started": run.started.isoformat(),
        "seconds": round(run.seconds, 3),
        "outcome": run.outcome.value,
        "message": run.message,
        "exit_code": run.exit_code,
        "inputs": dict(sorted(run.inputs.items())),
        "compared": run.compared or None,
        "changed": list(run.changed),
        "steps": [_step_document(step) for step in run.steps],
    }


def _step_document(step: StepRun) -> dict[str, Any]:
    return {
        "name": step.name,
        "outcome": step.outcome.value,
        "seconds": round(step.seconds, 3),
        "status": step.status,
        "message": step.message,
        "log": str(step.log) if step.log else None,
        "trap": _trap_document(step),
        "proof": trap.proof_document(step.proof) if step.proof else None,
    }


def _trap_document(step: StepRun) -> dict[str, Any] | None:
    if step.told is not None and step.accepted is None:
        told = step.told
        return trap.document(told.verdict, inputs=told.inputs, today=told.today, fixed=told.fixed)
    return _kept(step.trapped) if step.trapped is not None else None


def _kept(history: History) -> dict[str, Any]:
    return {"trapped": bool(history.findings), **history.to_record()}


def _last(step: StepRun) -> list[str]:
    failed = step.outcome in {Outcome.FAILED, Outcome.TRAPPED_AND_FAILED, Outcome.ERROR}
    if not failed or step.log is None or not step.log.exists():
        return []
    return last_lines(tail(step.log), _LINES).splitlines()
