"""A nightly run in the formats of others: JUnit XML and Markdown."""

from __future__ import annotations

from dataclasses import replace

from vmimagemanager.nightly import Outcome, Run, StepRun
from vmimagemanager.report import junit as xml
from vmimagemanager.report import trapfiles
from vmimagemanager.report.deeds import seconds
from vmimagemanager.report.junit import Case
from vmimagemanager.report.nightly import ending_lines, step_lines

_NOT_DONE = (Outcome.ERROR, Outcome.INTERRUPTED)


def junit(run: Run) -> bytes:
    """Return JUnit XML: a suite with a case for each step, and one for each trap that was set.

    What kept a run from being done is an error, of a step or of a case of its own.
    """
    steps = list(run.steps)
    if run.outcome in _NOT_DONE and run.outcome not in {step.outcome for step in steps}:
        steps.append(StepRun(name="the run itself", outcome=run.outcome, message=run.message))
    suites = {f"nightly {run.job}": [_case(run, step) for step in steps]}
    for step in steps:
        if step.told is not None and step.accepted is None:
            suites[f"trap {run.job} {step.name}"] = list(trapfiles.cases(step.told.verdict))
    return xml.document(suites)


def markdown(run: Run) -> bytes:
    """Return Markdown for a comment or a job's summary, in at most `trapfiles.MARKDOWN_MOST` characters."""
    head = [f"## {trapfiles.cell(run.job)}: {run.outcome}", "", "| step | outcome | took | why |", "|---|---|---|---|"]
    rows = [
        f"| {trapfiles.cell(step.name)} | {step.outcome} | {seconds(step.seconds)} | {trapfiles.cell(step.message)} |"
        for step in run.steps
    ]
    text = "\n".join([*head, *rows, "", *map(trapfiles.cell, ending_lines(run)[:-1]), ""])
    for step in run.steps:
        if step.told is not None and step.told.verdict.trapped and step.accepted is None:
            more = "\n" + trapfiles.markdown(step.told.verdict, name=step.name).decode()
            if len(text + more) <= trapfiles.MARKDOWN_MOST:
                text += more
    return text.encode()


def _case(run: Run, step: StepRun) -> Case:
    case = Case(name=step.name, group=f"nightly.{run.job}", seconds=round(step.seconds, 3), kind=step.outcome.value)
    why = step.message or step.outcome.value
    if step.outcome is Outcome.SKIPPED:
        return replace(case, skipped="a step before it failed")
    if step.outcome is Outcome.PASSED:
        return case
    text = "\n".join(line.strip() for line in step_lines(step, run.path))
    return replace(case, broken=why, text=text) if step.outcome in _NOT_DONE else replace(case, failed=why, text=text)
