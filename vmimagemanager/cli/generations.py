"""image diff, pin, unpin, prune."""

from __future__ import annotations

import click

from vmimagemanager.cli import screen
from vmimagemanager.cli.images import image
from vmimagemanager.cli.invocation import Invocation
from vmimagemanager.cli.life import YES
from vmimagemanager.cli.values import IMAGE
from vmimagemanager.cli.verb import verb_of

ADDRESS = click.argument("address", metavar="NAME[:GENERATION]", type=IMAGE)


@verb_of(image, "diff", documents=True)
@click.argument("before", metavar="NAME[:GENERATION]", type=IMAGE)
@click.argument("after", metavar="NAME[:GENERATION]", type=IMAGE)
@click.option("--files", is_flag=True, help="Compare the files of both, too: their file systems are read for it.")
@click.pass_obj
def diff(invocation: Invocation, before: str, after: str, *, files: bool) -> None:
    """Show how an image differs from another one: in packages, and with --files in files.

    Lines begin with + for what the second one has alone, - for what the first one has alone, and ! for what is another
    one. Files are read from outside, without mounting anything, in ext2, ext3 and ext4.
    """
    from vmimagemanager.report import images as report

    with invocation.open() as manager:
        found = manager.compare_images(before, after, files=files)
    if invocation.json:
        screen.emit("image-diff", report.difference_document(found))
    else:
        screen.say(*report.difference_lines(found))


@verb_of(image, "pin", documents=True)
@ADDRESS
@click.pass_obj
def pin(invocation: Invocation, address: str) -> None:
    """Keep a generation from being removed, by 'image remove' and by 'image prune'."""
    _pin(invocation, address, pinned=True)


@verb_of(image, "unpin", documents=True)
@ADDRESS
@click.pass_obj
def unpin(invocation: Invocation, address: str) -> None:
    """Let a pinned generation be removed again."""
    _pin(invocation, address, pinned=False)


@verb_of(image, "prune", documents=True)
@click.argument("name", metavar="NAME", type=IMAGE)
@click.option("--keep", metavar="N", type=click.IntRange(min=1), required=True, help="How many of the newest to keep.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@YES
@click.pass_obj
def prune(invocation: Invocation, name: str, *, keep: int, dry_run: bool, yes: bool) -> None:
    """Remove all generations of an image but the newest.

    Those that are pinned, and those that a box or a snapshot stands on, stay, and are named.
    """
    from vmimagemanager.report import images as report

    with invocation.open() as manager:
        pruned = manager.prune_images(name, keep=keep, remove=False)
        if not dry_run and pruned.removed:
            invocation.sure(f"Remove {', '.join(each.address for each in pruned.removed)}?", yes=yes)
            pruned = manager.prune_images(name, keep=keep)
    if invocation.json:
        screen.emit("image-prune", report.pruned_document(pruned, removed=not dry_run))
    invocation.say(*report.pruned_lines(name, pruned, removed=not dry_run))


def _pin(invocation: Invocation, address: str, *, pinned: bool) -> None:
    from vmimagemanager.report import images as report

    with invocation.open() as manager:
        found = manager.images.pin(address, pinned=pinned)
    if invocation.json:
        screen.emit("image", {"image": report.document(found)})
    invocation.say(f"{found.address}: {'pinned' if pinned else 'not pinned'}")
