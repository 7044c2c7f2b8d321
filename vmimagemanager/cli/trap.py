"""trap."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmimagemanager.cli import screen
from vmimagemanager.cli.guest import TIMEOUT
from vmimagemanager.cli.invocation import Invocation
from vmimagemanager.cli.streams import Streams
from vmimagemanager.cli.values import BOX
from vmimagemanager.cli.verb import guest_verb
from vmimagemanager.cli.verdicts import RESULT, recorded
from vmimagemanager.errors import TRAPPED, TRAPPED_AND_FAILED

if TYPE_CHECKING:
    from datetime import timedelta

    from vmimagemanager.guest.result import Result
    from vmimagemanager.trap.block import Trap


@guest_verb("trap", documents=True)
@click.argument("box", type=BOX)
@click.option(
    "--baseline",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The packages that are accepted.",
)
@click.option("--accept", is_flag=True, help="Accept what is new: write the baseline, and print what was added.")
@TIMEOUT
@RESULT
@click.option("-n", "--no-stdin", is_flag=True, help="Give the command nothing on standard input.")
@click.pass_obj
def trap(
    invocation: Invocation,
    box: str,
    words: tuple[str, ...],
    *,
    baseline: Path,
    accept: bool,
    limit: timedelta | None,
    result: Path | None,
    no_stdin: bool,
) -> int:
    """Run a command in the guest, and trap the packages that are new afterwards and not in the baseline.

    The exit code is 100 when something was trapped, 101 when moreover the command failed, else the command's own. The
    verdict is printed on standard error; with --json it is the document on standard output, and the command's output
    goes to standard error.

    With --accept the baseline is written so that it accepts what is new, and made when it does not exist; not when the
    command fails.
    """
    from vmimagemanager.report import trap as report

    with recorded(result, "trap", box, words) as verdict, invocation.open() as manager, manager.lease(box) as held:
        with held.trap(baseline, missing_is_empty=accept) as set_trap:
            ended = Streams(all_to_stderr=invocation.json).run(held, words, limit=limit, no_stdin=no_stdin)
        found = report.document(set_trap.verdict)
        code = _accept(invocation, set_trap, ended, baseline) if accept else _judge(set_trap, ended)
        if not accept and not invocation.json:
            screen.note(*report.lines(set_trap.verdict, accept=_accepting(box, baseline, words)))
        found = {key: value for key, value in found.items() if key not in {"format", "kind"}}
        verdict.ended(ended, exit_code=code, verdict=found)
    if invocation.json:
        screen.emit("trap", {**found, "box": box, "status": ended.status, "exit_code": code})
    return code


def _judge(set_trap: Trap, ended: Result) -> int:
    if not set_trap.verdict.trapped:
        return ended.status
    return TRAPPED if ended.status == 0 else TRAPPED_AND_FAILED


def _accept(invocation: Invocation, set_trap: Trap, ended: Result, baseline: Path) -> int:
    sys.stdout.flush()
    if ended.status != 0:
        screen.note(f"The baseline '{baseline}' was not written: the command failed with status {ended.status}.")
        return ended.status
    set_trap.accept()
    if not invocation.quiet:
        added = [f"+ {package.item}" for package in set_trap.verdict.unexpected]
        screen.note(f"Written: '{baseline}', {len(added)} added.", *added)
    return 0


def _accepting(box: str, baseline: Path, words: tuple[str, ...]) -> str:
    return shlex.join(["vmimagemanager", "trap", box, "--baseline", str(baseline), "--accept", "--", *words])
