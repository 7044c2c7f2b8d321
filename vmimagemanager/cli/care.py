"""fsck, gc."""

from __future__ import annotations

import click

from vmimagemanager.cli import screen
from vmimagemanager.cli.invocation import Invocation
from vmimagemanager.cli.progress import shown
from vmimagemanager.cli.verb import verb
from vmimagemanager.errors import StateError


@verb("fsck", documents=True)
@click.option("--images", is_flag=True, help="Read every file of the image store, and compare it with its digest.")
@click.pass_obj
def fsck(invocation: Invocation, *, images: bool) -> int:
    """Examine the state directory against itself and against libvirt.

    What killed processes left half done is put right first. A box that somebody is at work on is not examined. The
    content of boxes' disks and memory is not read.
    """
    from vmimagemanager.report import care as report

    with invocation.open() as manager, shown(invocation) as progress:
        examination = manager.fsck(images=images, progress=progress)
    if invocation.json:
        screen.emit("fsck", report.fsck_document(examination))
    else:
        invocation.say(*report.fsck_lines(examination))
    return StateError.exit_code if examination.findings else 0


@verb("gc", documents=True)
@click.option("--remove/--dry-run", help="Remove it, or only say what would be removed (the default).")
@click.pass_obj
def gc(invocation: Invocation, *, remove: bool) -> None:
    """Remove what nobody needs any more; by default, only list it.

    That is what killed processes left half done, clones whose process has ended, disks that no snapshot stands on,
    blobs that no image and no box uses, holds that are over. Domains and files that are not vmimagemanager's stay.
    """
    from vmimagemanager.report import care as report

    with invocation.open() as manager:
        leftovers = manager.gc(remove=remove)
    if invocation.json:
        screen.emit("gc", report.gc_document(leftovers, removed=remove))
    else:
        invocation.say(*report.gc_lines(leftovers, removed=remove))
