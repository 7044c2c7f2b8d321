"""up, down, kill, reset."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vmimagemanager.cli.invocation import Invocation
from vmimagemanager.cli.several import Task, for_each
from vmimagemanager.cli.values import BOX
from vmimagemanager.cli.verb import verb
from vmimagemanager.report import deeds

if TYPE_CHECKING:
    from vmimagemanager.box import Box
    from vmimagemanager.boxes.life import Up

BOXES = click.argument("boxes", metavar="BOX...", type=BOX, nargs=-1, required=True)
YES = click.option("-y", "--yes", is_flag=True, help="Do not ask.")


@verb("up", documents=True)
@BOXES
@click.pass_obj
def up(invocation: Invocation, boxes: tuple[str, ...]) -> int:
    """Start boxes, and return when a command has run in each guest.

    A box that is up already is left as it is. At its first boot a box gets its own keys, host name and machine-id. When
    the guest does not get ready within the boot-timeout, its last console lines are shown, and it is left running to be
    looked at.
    """
    return for_each(
        invocation,
        "up",
        [Task(title=name, box=name, deed=lambda box: box.up()) for name in dict.fromkeys(boxes)],
        lines=lambda title, result, taken: deeds.up_lines(title, result, taken, verbose=bool(invocation.verbose)),
        document=deeds.up_document,
    )


@verb("down", documents=True)
@BOXES
@click.pass_obj
def down(invocation: Invocation, boxes: tuple[str, ...]) -> int:
    """Shut boxes down cleanly; one that takes longer than its down-timeout is powered off, and that is said."""
    return for_each(
        invocation,
        "down",
        [Task(title=name, box=name, deed=lambda box: box.down()) for name in dict.fromkeys(boxes)],
        lines=deeds.down_lines,
        document=deeds.down_document,
    )


@verb("kill", documents=True)
@BOXES
@click.pass_obj
def kill(invocation: Invocation, boxes: tuple[str, ...]) -> int:
    """Power boxes off at once, as if the plug was pulled; the disk stays as it is."""
    return for_each(
        invocation,
        "kill",
        [Task(title=name, box=name, deed=lambda box: box.kill()) for name in dict.fromkeys(boxes)],
        lines=lambda title, was_up, taken: [
            f"{title}: killed in {deeds.seconds(taken)}" if was_up else f"{title}: was off already"
        ],
        document=lambda was_up: {"was_up": was_up},
    )


@verb("reset", documents=True)
@BOXES
@click.option("--up", "start", is_flag=True, help="Start the boxes again afterwards.")
@YES
@click.pass_obj
def reset(invocation: Invocation, boxes: tuple[str, ...], *, start: bool, yes: bool) -> int:
    """Throw the disks and memories of boxes away: they are off, and back to their images. Snapshots stay."""
    names = list(dict.fromkeys(boxes))
    invocation.sure(f"Throw away what is on the disk of {', '.join(names)}?", yes=yes)

    def deed(box: Box) -> tuple[Up | None]:
        box.reset()
        return (box.up() if start else None,)

    def lines(title: str, result: tuple[Up | None], taken: float) -> list[str]:
        if result[0] is None:
            return [f"{title}: reset in {deeds.seconds(taken)}, off"]
        shown = deeds.up_lines(title, result[0], taken, verbose=bool(invocation.verbose))
        return [shown[0].replace(": up in", ": reset and up in", 1), *shown[1:]]

    return for_each(
        invocation,
        "reset",
        [Task(title=name, box=name, deed=deed) for name in names],
        lines=lines,
        document=lambda result: {"up": None if result[0] is None else deeds.up_document(result[0])},
    )
