"""insert, extract, restore-image, and store with a format of files: the files of boxes, whether they run or not."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import click

from vmimagemanager.cli import screen
from vmimagemanager.cli.invocation import Invocation
from vmimagemanager.cli.life import YES
from vmimagemanager.cli.progress import shown
from vmimagemanager.cli.values import BOX
from vmimagemanager.cli.verb import VerbGroup, verb, verb_of

if TYPE_CHECKING:
    from vmimagemanager.boxes.inserts import Insert
    from vmimagemanager.images.archives import Archive

TO = click.option("--to", "folder", metavar="DIR", help="The folder of the guest: /, or what a named insert says.")


class _InsertGroup(VerbGroup):
    """``insert BOX …`` beside ``insert list``: a word that is no verb of its own is a box."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.list_commands(ctx):
            args = ["into", *args]
        return super().resolve_command(ctx, args)


@click.group("insert", cls=_InsertGroup)
def insert() -> None:
    """Lay folders, files, archives and named inserts into a box: insert BOX SOURCE...

    A named insert is a copy that is kept: for the certificates and keys that every box gets after a restore.
    """


@verb_of(insert, "into")
@click.argument("box", type=BOX)
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@TO
@click.pass_obj
def insert_into(invocation: Invocation, box: str, sources: tuple[str, ...], folder: str | None) -> None:
    """Lay sources over a folder of a box, in their order; 'insert BOX SOURCE...' is the same.

    A source is a folder, whose content is laid, an archive (.tar, .tgz, .tar.zst, .cpio.bz2 and the like), another
    file, or the name of an insert. Folders and links to folders that are there stay what they are; files are replaced.
    A box that is off gets all of it or nothing.
    """
    from vmimagemanager.deadline import Stopwatch
    from vmimagemanager.report import deeds

    watch = Stopwatch()
    with invocation.open() as manager, manager.box(box) as held:
        held.insert(sources, to=folder)
    what = "1 source" if len(sources) == 1 else f"{len(sources)} sources"
    invocation.say(f"{box}: inserted {what} in {deeds.seconds(watch.total)}")


@verb_of(insert, "add", documents=True)
@click.argument("name")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--to", "folder", metavar="DIR", default="/", help="The folder of a guest that it is laid over: /.")
@click.pass_obj
def insert_add(invocation: Invocation, name: str, source: Path, folder: str) -> None:
    """Keep a copy of a folder, a file or an archive under a name."""
    with invocation.open() as manager:
        kept = manager.inserts.add(name, source, PurePosixPath(folder))
    if invocation.json:
        screen.emit("insert", {"insert": _document(kept)})
    invocation.say(f"{name}: kept, {kept.packed.human()}, for {kept.folder}")


@verb_of(insert, "list", documents=True)
@click.pass_obj
def insert_list(invocation: Invocation) -> None:
    """List the named inserts."""
    from vmimagemanager.report.boxes import moment

    with invocation.open() as manager:
        found = manager.inserts.list()
    if invocation.json:
        screen.emit("inserts", {"inserts": [_document(one) for one in found]})
    elif found:
        rows = [(one.name, str(one.folder), one.packed.human(), moment(one.created), one.source) for one in found]
        screen.table(("INSERT", "TO", "SIZE", "KEPT", "FROM"), rows)
    elif not invocation.quiet:
        screen.note("There are no inserts yet: 'vmimagemanager insert add NAME SOURCE' keeps one.")


@verb_of(insert, "remove")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@YES
@click.pass_obj
def insert_remove(invocation: Invocation, names: tuple[str, ...], *, yes: bool) -> None:
    """Remove named inserts; what was laid into guests stays there."""
    with invocation.open() as manager:
        for name in names:
            manager.inserts.get(name)
        invocation.sure(f"Remove {', '.join(names)}?", yes=yes)
        for name in names:
            manager.inserts.remove(name)
            invocation.say(f"{name}: removed")


@verb("extract", documents=True)
@click.argument("box", type=BOX)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.argument("target", type=click.Path(path_type=Path))
@click.pass_obj
def extract(invocation: Invocation, box: str, paths: tuple[str, ...], target: Path) -> None:
    """Copy files and folders out of a box, whether it runs or not, with their modes.

    TARGET is a folder that exists, or for one path its new name.
    """
    from vmimagemanager.units import Size

    with invocation.open() as manager, manager.box(box) as held:
        copied = held.extract(paths, target)
    if invocation.json:
        screen.emit("extract", {"box": box, "bytes": copied})
    if invocation.verbose:
        screen.note(f"{box}: copied {Size(copied).human()}")


def store_files(
    invocation: Invocation, box: str, name: str, *, file_format: str, snapshot: str | None, description: str
) -> None:
    """Archive the files of a box, and say so."""
    from vmimagemanager.deadline import Stopwatch
    from vmimagemanager.report import deeds

    watch = Stopwatch()
    with invocation.open() as manager, manager.box(box) as held, shown(invocation) as progress:
        archive = held.archive(
            name, file_format=file_format, snapshot=snapshot, description=description, progress=progress
        )
    if invocation.json:
        screen.emit("store", {"box": box, "archive": archive_document(archive)})
    sizes = f"{archive.packed.human()} of {archive.unpacked.human()}"
    invocation.say(f"{box}: its files are {archive.address} in {deeds.seconds(watch.total)}, {archive.format}, {sizes}")
    if not invocation.quiet:
        screen.note(f"{archive.address} holds every secret of the guest: only its owner can read it.")


def archive_document(archive: Archive) -> dict[str, Any]:
    """Return an archive for JSON."""
    return {
        "address": archive.address,
        "name": archive.name,
        "generation": archive.generation,
        "created": archive.created.isoformat(),
        "description": archive.description,
        "format": archive.format.value,
        "stored_from": archive.stored_from,
        "digest": archive.digest,
        "unpacked": archive.unpacked.bytes,
        "on_disk": archive.packed.bytes,
        "path": str(archive.path),
    }


@verb("restore-image", documents=True)
@click.argument("box", type=BOX)
@click.argument("address", metavar="IMAGE[:GENERATION]")
@click.option("--up", "start", is_flag=True, help="Start the box afterwards.")
@YES
@click.pass_obj
def restore_image(invocation: Invocation, box: str, address: str, *, start: bool, yes: bool) -> None:
    """Put what 'store' made back into a box, which is off then; its snapshots stay.

    Of an archive of files, partitions and boot loader are those of the box's image; the root file system is made anew,
    and holds what the archive holds and nothing else. Of a disk, the box gets that generation as its image.
    """
    from vmimagemanager.deadline import Stopwatch
    from vmimagemanager.report import deeds

    watch = Stopwatch()
    invocation.sure(f"Throw away what is on the disk of {box}?", yes=yes)
    with invocation.open() as manager, manager.box(box) as held, shown(invocation) as progress:
        restored = held.restore_image(address, progress=progress)
        seconds = watch.total
        up = held.up() if start else None
    if invocation.json:
        shown_up = None if up is None else deeds.up_document(up)
        screen.emit("restore-image", {"box": box, "restored": restored.address, "up": shown_up})
    invocation.say(f"{box}: restored from {restored.address} in {deeds.seconds(seconds)}, off")
    if up is not None:
        invocation.say(*deeds.up_lines(box, up, watch.total - seconds, verbose=bool(invocation.verbose)))


def _document(kept: Insert) -> dict[str, Any]:
    return {
        "name": kept.name,
        "to": str(kept.folder),
        "source": kept.source,
        "created": kept.created.isoformat(),
        "bytes": kept.packed.bytes,
    }
