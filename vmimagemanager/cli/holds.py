"""lock, unlock."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import click

from vmimagemanager.cli import screen
from vmimagemanager.cli.invocation import Invocation
from vmimagemanager.cli.life import BOXES
from vmimagemanager.cli.several import Task, for_each
from vmimagemanager.cli.values import BOX, DURATION
from vmimagemanager.cli.verb import verb

if TYPE_CHECKING:
    from vmimagemanager.box import Box
    from vmimagemanager.leases import Hold


@verb("lock", documents=True)
@click.argument("boxes", metavar="[BOX]...", type=BOX, nargs=-1)
@click.option("--for", "length", type=DURATION, required=True, help="For how long, such as 2h.")
@click.option("--reason", metavar="TEXT", default="", help="What for: others are told.")
@click.option("--any", "any_of", is_flag=True, help="One free box, of those that are named or of all; print its name.")
@click.pass_obj
def lock(invocation: Invocation, boxes: tuple[str, ...], *, length: timedelta, reason: str, any_of: bool) -> int:
    """Keep boxes for yourself across commands, until 'unlock' or until the time is over.

    You are your login name, or VMIM_OWNER: every command of that owner may use the box, nobody else's. With --any, one
    box that is free is taken and its name printed; --wait says how long to wait for one.
    """
    from vmimagemanager.report import boxes as report

    if not boxes and not any_of:
        raise click.UsageError("Name a box, or take any free one with --any.")
    if length <= timedelta(0):
        raise click.UsageError("A hold needs a length above zero, such as 2h.")
    if any_of:
        with invocation.open() as manager, manager.claim(boxes or None) as claimed:
            hold = claimed.lock(length, reason)
        if invocation.json:
            screen.emit("lock", {"results": [_document(claimed.name, hold)]})
        else:
            screen.say(claimed.name)
        return 0
    return for_each(
        invocation,
        "lock",
        [Task(title=name, box=name, deed=lambda box: box.lock(length, reason)) for name in dict.fromkeys(boxes)],
        lines=lambda title, hold, _: [f"{title}: held by {hold}"],
        document=lambda hold: {"hold": report.hold_document(hold)},
    )


@verb("unlock", documents=True)
@BOXES
@click.option("--force", is_flag=True, help="Also what somebody else holds.")
@click.pass_obj
def unlock(invocation: Invocation, boxes: tuple[str, ...], *, force: bool) -> int:
    """Give boxes back that 'lock' kept."""
    from vmimagemanager.report import boxes as report

    def deed(box: Box) -> tuple[Hold | None]:
        return (box.unlock(force=force),)

    return for_each(
        invocation,
        "unlock",
        [Task(title=name, box=name, deed=deed) for name in dict.fromkeys(boxes)],
        lines=lambda title, was, _: [f"{title}: free, was held by {was[0]}" if was[0] else f"{title}: was not held"],
        document=lambda was: {"hold": None if was[0] is None else report.hold_document(was[0])},
    )


def _document(name: str, hold: Hold) -> dict[str, object]:
    from vmimagemanager.report import boxes as report

    return {"name": name, "outcome": "done", "hold": report.hold_document(hold)}
