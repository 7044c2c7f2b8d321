"""trap."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import click

from vmimagemanager.cli import screen
from vmimagemanager.cli.guest import TIMEOUT
from vmimagemanager.cli.invocation import Invocation
from vmimagemanager.cli.progress import shown
from vmimagemanager.cli.streams import Streams
from vmimagemanager.cli.trapoptions import Asked
from vmimagemanager.cli.values import BOX
from vmimagemanager.cli.verb import guest_verb
from vmimagemanager.cli.verdicts import RESULT, recorded
from vmimagemanager.errors import TRAPPED, TRAPPED_AND_FAILED

if TYPE_CHECKING:
    from datetime import timedelta

    from vmimagemanager.guest.result import Result
    from vmimagemanager.proof import Proof, Question
    from vmimagemanager.trap import Verdict
    from vmimagemanager.trap.block import Trap

_FILE = click.Path(path_type=Path, dir_okay=False)


@guest_verb("trap", documents=True)
@click.argument("box", type=BOX)
@click.option("--baseline", metavar="FILE", type=_FILE, help="What is accepted.")
@click.option("--policy", metavar="FILE", type=_FILE, help="How bad each thing is, and exceptions that expire.")
@click.option(
    "--declared",
    metavar="FILE",
    type=_FILE,
    multiple=True,
    help="A file that says what is needed, such as debian/control.",
)
@click.option("--since", metavar="SNAPSHOT", help="Compare with this snapshot, not with the guest as it is before.")
@click.option(
    "--trace",
    metavar="HOW",
    type=click.Choice(["atime", "fanotify"]),
    help="Trap what is used and not declared, too: by access times, or by fanotify.",
)
@click.option("--prove", is_flag=True, help="Prove what is needed: hide packages in clones, and run the command there.")
@click.option("--on", metavar="SNAPSHOT", help="Which snapshot is cloned. [the one that the box stands on]")
@click.option(
    "--artefact",
    metavar="PATH",
    type=click.Path(path_type=PurePosixPath),
    multiple=True,
    help="What the command makes in the guest: the proof compares it.",
)
@click.option("--jobs", metavar="N", type=click.IntRange(min=1), help="How many clones at once. [2, or 1 core]")
@click.option("--expect-clean", is_flag=True, help="Trap all that is left behind, instead of going by a baseline.")
@click.option("--accept", is_flag=True, help="Accept what is new: write the baseline, and print what was added.")
@click.option("--rebase", is_flag=True, help="Write the baseline anew, for the base that the guest is now.")
@click.option("--earlier", metavar="FILE", type=_FILE, help="The JSON document of an earlier run, to compare with.")
@click.option("--junit", metavar="FILE", type=_FILE, help="Write the verdict to FILE as JUnit XML.")
@click.option("--sarif", metavar="FILE", type=_FILE, help="Write the verdict to FILE as SARIF.")
@click.option("--markdown", metavar="FILE", type=_FILE, help="Write the verdict to FILE as Markdown.")
@click.option("--cyclonedx", metavar="FILE", type=_FILE, help="Write what came in to FILE as CycloneDX.")
@click.option("--spdx", metavar="FILE", type=_FILE, help="Write what came in to FILE as SPDX.")
@TIMEOUT
@RESULT
@click.option("-n", "--no-stdin", is_flag=True, help="Give the command nothing on standard input.")
@click.pass_obj
def trap(
    invocation: Invocation,
    /,
    box: str,
    words: tuple[str, ...],
    *,
    limit: timedelta | None,
    result: Path | None,
    no_stdin: bool,
    **options: Any,  # noqa: ANN401 - click's
) -> int:
    """Run a command in the guest, and trap what is new afterwards and not in the baseline.

    The exit code is 100 when something was trapped, 101 when moreover the command failed, else the command's own. The
    verdict is printed on standard error; with --json it is the document on standard output, and the command's output
    goes to standard error.

    With --accept the baseline is written so that it accepts what is new, and made when it does not exist; not when the
    command fails.
    """
    from vmimagemanager.proof import prove
    from vmimagemanager.report import trap as report
    from vmimagemanager.trap import Told

    asked = Asked(**options)
    earlier = asked.history()
    with (
        recorded(result, "trap", box=box, command=words) as written,
        invocation.open() as manager,
        manager.lease(box) as held,
    ):
        question = asked.question(held, words)
        with held.trap(
            asked.baseline,
            policy=asked.policy,
            declared=asked.declared,
            since=asked.since,
            missing_is_empty=asked.writes,
            rebase=asked.rebase,
            trace=asked.trace,
            expect_clean=asked.expect_clean,
        ) as set_trap:
            ended = Streams(all_to_stderr=invocation.json).run(held, words, limit=limit, no_stdin=no_stdin)
        proof = None
        if question is not None and ended.status == 0:
            with shown(invocation) as progress:
                proof = prove(held, question, set_trap, progress=progress)
        told = Told.of(set_trap.verdict, earlier, words, asked.declared)
        found = report.document(told.verdict, inputs=told.inputs, today=told.today, fixed=told.fixed)
        asked.write(told.verdict, box)
        code = _accept(invocation, set_trap, ended, asked) if asked.writes else _judge(told.verdict, ended)
        if not asked.writes and not invocation.json:
            screen.note(*report.lines(told.verdict, accept=asked.accepting(box, words), fixed=told.fixed))
            screen.note(*_about_proof(question, proof, ended))
        found = {key: value for key, value in found.items() if key not in {"format", "kind"}}
        found["proof"] = None if proof is None else report.proof_document(proof)
        written.ended(ended, exit_code=code, verdict=found)
    if invocation.json:
        screen.emit("trap", {**found, "box": box, "status": ended.status, "exit_code": code})
    return code


def _about_proof(question: Question | None, proof: Proof | None, ended: Result) -> Iterator[str]:
    from vmimagemanager.report import trap as report

    if proof is not None:
        yield from report.proof_lines(proof)
    elif question is not None:
        yield f"Nothing was proven: the command failed with status {ended.status}."


def _judge(verdict: Verdict, ended: Result) -> int:
    if not verdict.trapped:
        return ended.status
    return TRAPPED if ended.status == 0 else TRAPPED_AND_FAILED


def _accept(invocation: Invocation, set_trap: Trap, ended: Result, asked: Asked) -> int:
    sys.stdout.flush()
    baseline = asked.baseline
    if ended.status != 0:
        screen.note(f"The baseline '{baseline}' was not written: the command failed with status {ended.status}.")
        return ended.status
    before = set_trap.baseline.accepted
    after = set_trap.accept(rebase=asked.rebase).accepted
    if not invocation.quiet:
        added, removed = sorted(after - before), sorted(before - after)
        told = f"{len(added)} added" + (f", {len(removed)} removed" if removed else "")
        screen.note(
            f"Written: '{baseline}', {told}.", *(f"+ {item}" for item in added), *(f"- {item}" for item in removed)
        )
    return 0
