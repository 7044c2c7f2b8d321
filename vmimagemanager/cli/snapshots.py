"""snapshot, restore, snapshots, snapshot-remove."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import click

from vmimagemanager.cli import screen
from vmimagemanager.cli.invocation import Invocation
from vmimagemanager.cli.life import BOXES, YES
from vmimagemanager.cli.several import Task, for_each
from vmimagemanager.cli.values import NEW_SNAPSHOT, SNAPSHOT
from vmimagemanager.cli.verb import verb
from vmimagemanager.names import Address
from vmimagemanager.report import deeds

if TYPE_CHECKING:
    from vmimagemanager.box import Box
    from vmimagemanager.snapshots import Restored, Taken

ADDRESSES = click.argument("addresses", metavar="BOX@SNAPSHOT...", type=SNAPSHOT, nargs=-1, required=True)


@verb("snapshot", documents=True)
@click.argument("addresses", metavar="BOX@SNAPSHOT...", type=NEW_SNAPSHOT, nargs=-1, required=True)
@click.option("--description", metavar="TEXT", default="", help="A line for people, which 'snapshots' shows.")
@click.pass_obj
def snapshot(invocation: Invocation, addresses: tuple[Address, ...], description: str) -> int:
    """Take snapshots with the best engine that fits each box.

    A running box goes on running; SSH sessions to it end. When the engine is not the live one, the reason is printed.
    """

    def task(address: Address) -> Task[Taken]:
        def deed(box: Box) -> Taken:
            return box.snapshot(address.snapshot, description=description)

        return Task(title=str(address), box=address.box, deed=deed)

    return for_each(
        invocation,
        "snapshot",
        map(task, dict.fromkeys(addresses)),
        lines=lambda title, taken, time: deeds.taken_lines(title, taken, time, verbose=bool(invocation.verbose)),
        document=deeds.taken_document,
    )


@verb("restore", documents=True)
@ADDRESSES
@click.option("--disk", "disk_only", is_flag=True, help="Leave the memory alone, and boot the disk.")
@click.pass_obj
def restore(invocation: Invocation, addresses: tuple[Address, ...], *, disk_only: bool) -> int:
    """Put boxes back to snapshots, whatever state they are in.

    It returns when each guest is proven to be its snapshot and its clock is right again. What was done to a box since
    the snapshot is lost: nothing asks. When the engine is not the live one, the reason is printed.
    """
    twice = [box for box, count in Counter(address.box for address in set(addresses)).items() if count > 1]
    if twice:
        raise click.UsageError(f"The box '{twice[0]}' can be restored to one snapshot only.")

    def task(address: Address) -> Task[Restored]:
        def deed(box: Box) -> Restored:
            return box.restore(address.snapshot, disk_only=disk_only)

        return Task(title=str(address), box=address.box, deed=deed)

    return for_each(
        invocation,
        "restore",
        map(task, dict.fromkeys(addresses)),
        lines=lambda title, done, time: deeds.restored_lines(title, done, time, verbose=bool(invocation.verbose)),
        document=deeds.restored_document,
    )


@verb("snapshots", documents=True)
@BOXES
@click.pass_obj
def snapshots(invocation: Invocation, boxes: tuple[str, ...]) -> None:
    """Show the snapshots of boxes as a tree: each below the one that it stands on.

    OWN is what its removal would free; SHARED is what it needs of disks below it, or that others need, too.
    """
    from vmimagemanager.report import snapshots as report

    with invocation.open() as manager:
        trees = {name: manager.box(name).snapshots() for name in dict.fromkeys(boxes)}
    if invocation.json:
        documents = [report.document(box, snapshot) for box, tree in trees.items() for snapshot in tree]
        screen.emit("snapshots", {"snapshots": documents})
    elif any(trees.values()):
        screen.table(report.HEADER, [row for box, tree in trees.items() for row in report.rows(box, tree)])
    elif not invocation.quiet:
        screen.note("There are no snapshots.")


@verb("snapshot-remove", documents=True)
@ADDRESSES
@YES
@click.pass_obj
def snapshot_remove(invocation: Invocation, addresses: tuple[Address, ...], *, yes: bool) -> int:
    """Remove snapshots. The box and other snapshots that stand on their disks keep what they need of them."""
    chosen = list(dict.fromkeys(addresses))
    invocation.sure(f"Remove {', '.join(map(str, chosen))}?", yes=yes)

    def task(address: Address) -> Task[str]:
        def deed(box: Box) -> str:
            box.remove_snapshot(address.snapshot)
            return address.snapshot

        return Task(title=str(address), box=address.box, deed=deed)

    return for_each(
        invocation,
        "snapshot-remove",
        map(task, chosen),
        lines=lambda title, _, taken: [f"{title}: removed in {deeds.seconds(taken)}"],
        document=lambda name: {"snapshot": name},
    )
