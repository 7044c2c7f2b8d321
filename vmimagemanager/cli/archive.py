"""snapshot-export, snapshot-import."""

from __future__ import annotations

from pathlib import Path

import click

from vmimagemanager.cli import screen
from vmimagemanager.cli.invocation import Invocation
from vmimagemanager.cli.progress import shown
from vmimagemanager.cli.values import BOX, SNAPSHOT
from vmimagemanager.cli.verb import verb
from vmimagemanager.names import Address

FILE = click.argument("file", metavar="FILE", type=click.Path(path_type=Path))


@verb("snapshot-export", documents=True)
@click.argument("address", metavar="BOX@SNAPSHOT", type=SNAPSHOT)
@FILE
@click.pass_obj
def snapshot_export(invocation: Invocation, address: Address, file: Path) -> None:
    """Write a snapshot into one archive, for another host: disk, memory, devices, and the box's keys.

    The box goes on running. The archive holds every secret of the guest's memory; it is readable by its owner alone.
    """
    from vmimagemanager.report import archives as report

    with invocation.open() as manager, manager.box(address.box) as box, shown(invocation) as progress:
        exported = box.export_snapshot(address.snapshot, file, progress=progress)
    if invocation.json:
        screen.emit("snapshot-export", report.exported_document(str(address), exported))
    invocation.say(report.exported_line(str(address), exported))
    if not invocation.quiet:
        screen.note(
            f"{file} holds the keys that open the box, and what the guest's disk and memory hold: keep it a secret."
        )


@verb("snapshot-import", documents=True)
@FILE
@click.option("--as", "name", metavar="NAME", type=BOX, help="What to call the box, instead of the name that it had.")
@click.option("--trust", is_flag=True, help="Take in memory and definition, too: QEMU believes what it reads.")
@click.pass_obj
def snapshot_import(invocation: Invocation, file: Path, *, name: str | None, trust: bool) -> None:
    """Make a box of an archive, with its snapshot.

    Without --trust its disk comes in, as an image, and the snapshot is one of a box that is off. With it the snapshot
    is what it was: restoring it brings the guest back, running. Only trust an archive whose maker you would let in.
    """
    from vmimagemanager.report import archives as report

    with invocation.open() as manager, shown(invocation) as progress:
        imported = manager.import_snapshot(file, name=name, trust=trust, progress=progress)
    if invocation.json:
        screen.emit("snapshot-import", report.imported_document(imported))
    invocation.say(report.imported_line(imported))
