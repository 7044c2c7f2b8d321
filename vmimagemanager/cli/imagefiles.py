"""image export, push, pull."""

from __future__ import annotations

from pathlib import Path

import click

from vmimagemanager.cli import screen
from vmimagemanager.cli.generations import ADDRESS
from vmimagemanager.cli.images import image
from vmimagemanager.cli.invocation import Invocation
from vmimagemanager.cli.progress import shown
from vmimagemanager.cli.verb import verb_of

URL = click.argument("url", metavar="URL")


@verb_of(image, "export", documents=True)
@ADDRESS
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--format", "file_format", metavar="FORMAT", help="qcow2, raw, vmdk, vdi, vhdx or ova.")
@click.pass_obj
def export(invocation: Invocation, address: str, file: Path, *, file_format: str | None) -> None:
    """Write the disk of an image to a new file, in the format of its suffix.

    A qcow2 is compressed, a vmdk stream-optimised, and an ova holds such a vmdk with a description of a machine. The
    image is read and compared with its digests first.
    """
    from vmimagemanager.report import images as report

    with invocation.open() as manager, shown(invocation) as progress:
        exported = manager.export_image(address, file, file_format=file_format, progress=progress)
    if invocation.json:
        screen.emit("image-export", report.exported_document(exported))
    invocation.say(report.exported_line(exported))


@verb_of(image, "push", documents=True)
@ADDRESS
@URL
@click.pass_obj
def push(invocation: Invocation, address: str, url: str) -> None:
    """Write a generation into a store that several hosts share; only what is not there travels.

    URL is a folder, or ssh://HOST/FOLDER, or s3://BUCKET/FOLDER where the Python package s3fs is installed.
    """
    from vmimagemanager.report import images as report

    with invocation.open() as manager, shown(invocation) as progress:
        pushed = manager.push_image(address, url, progress=progress)
    if invocation.json:
        screen.emit("image-push", report.pushed_document(pushed))
    invocation.say(report.pushed_line(address, pushed))


@verb_of(image, "pull", documents=True)
@ADDRESS
@URL
@click.pass_obj
def pull(invocation: Invocation, address: str, url: str) -> None:
    """Fetch a generation out of such a store; it becomes the newest one of its name.

    What is here already does not travel, also what other generations have in common with it. All of it is compared with
    its digests before it appears. URL may also be http:// or https://, of a web server that serves the store's folder.
    """
    from vmimagemanager.report import images as report

    with invocation.open() as manager, shown(invocation) as progress:
        pulled = manager.pull_image(address, url, progress=progress)
    if invocation.json:
        screen.emit("image-pull", report.pulled_document(pulled))
    invocation.say(report.pulled_line(address, pulled))
