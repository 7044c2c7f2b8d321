"""store, update."""

from __future__ import annotations

import click

from vmimagemanager.cli import screen
from vmimagemanager.cli.invocation import Invocation
from vmimagemanager.cli.life import BOXES, YES
from vmimagemanager.cli.progress import shown
from vmimagemanager.cli.several import Task, for_each
from vmimagemanager.cli.values import BOX, IMAGE
from vmimagemanager.cli.verb import verb
from vmimagemanager.report import deeds


@verb("store", documents=True)
@click.argument("box", type=BOX)
@click.argument("image", metavar="IMAGE", type=IMAGE)
@click.option(
    "--format",
    "file_format",
    metavar="FORMAT",
    default="qcow2",
    help="qcow2 (the default), raw; or of files: tar.zst, tar.gz, cpio.bz2, rsync.",
)
@click.option("--snapshot", metavar="NAME", help="A snapshot of the box, not as it is now.")
@click.option("--description", metavar="TEXT", default="", help="A line for people.")
@click.pass_obj
def store(
    invocation: Invocation, box: str, image: str, *, file_format: str, snapshot: str | None, description: str
) -> None:
    """Make the disk of a box a new generation of an image, or with a format of files archive its root file system.

    A guest that runs goes on running; its file systems are frozen for a moment, and SSH sessions to it end. A qcow2
    holds what was written since the box's own image, and stands on that; a raw disk stands alone.
    """
    from vmimagemanager.cli.files import store_files
    from vmimagemanager.files.formats import Format
    from vmimagemanager.report import images as report

    if file_format in list(Format):
        store_files(invocation, box, image, file_format=file_format, snapshot=snapshot, description=description)
        return
    with invocation.open() as manager, manager.box(box) as held, shown(invocation) as progress:
        stored = held.store(
            image, disk_format=file_format, snapshot=snapshot, description=description, progress=progress
        )
    if invocation.json:
        screen.emit("store", {"box": box, "image": report.document(stored.image), "left_out": list(stored.left_out)})
    invocation.say(report.stored_line(box, stored, verbose=bool(invocation.verbose)))
    if stored.left_out and not invocation.quiet:
        screen.note(f"An image has one disk: {', '.join(stored.left_out)} of '{box}' is not in it.")


@verb("update", documents=True)
@BOXES
@click.option("--reset", is_flag=True, help="Reset the boxes, too: they are off then, and what was on them is lost.")
@YES
@click.pass_obj
def update(invocation: Invocation, boxes: tuple[str, ...], *, reset: bool, yes: bool) -> int:
    """Let boxes go to the newest generations of their images, at their next reset.

    Until then, and in their snapshots, they are what they are.
    """
    names = list(dict.fromkeys(boxes))
    if reset:
        invocation.sure(f"Throw away what is on the disk of {', '.join(names)}?", yes=yes)
    return for_each(
        invocation,
        "update",
        [Task(title=name, box=name, deed=lambda box: box.update_image(reset=reset)) for name in names],
        lines=lambda title, changed, _: deeds.changed_lines(title, changed),
        document=deeds.changed_document,
    )
