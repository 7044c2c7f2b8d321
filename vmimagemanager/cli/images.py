"""image build, list, show, remove; what goes to other places is in `imagefiles`, what thins out in `generations`."""

from __future__ import annotations

import click

from vmimagemanager.cli import screen
from vmimagemanager.cli.invocation import Invocation
from vmimagemanager.cli.life import YES
from vmimagemanager.cli.progress import shown
from vmimagemanager.cli.values import IMAGE, RECIPE
from vmimagemanager.cli.verb import VerbGroup, verb_of


@click.group("image", cls=VerbGroup)
def image() -> None:
    """Base images: what boxes are made of.

    An image has a name and generations: debian-12 is the latest one, debian-12:3 a certain one.
    """


@verb_of(image, "build", documents=True)
@click.argument("name", type=RECIPE)
@click.option("--mirror", metavar="URL", help="Where to fetch packages from, instead of mmdebstrap's default.")
@click.option("--description", metavar="TEXT", help="A line for people.")
@click.pass_obj
def build(invocation: Invocation, name: str, mirror: str | None, description: str | None) -> None:
    """Build an image that has a recipe: debian-12, debian-13, or one of them with -uefi.

    It becomes the latest generation of that name.
    """
    from vmimagemanager.deadline import Stopwatch
    from vmimagemanager.report import deeds
    from vmimagemanager.report import images as report

    watch = Stopwatch()
    with invocation.open() as manager, shown(invocation) as progress:
        built = manager.images.build(name, mirror=mirror, progress=progress, description=description)
    if invocation.json:
        screen.emit("image", {"image": report.document(built)})
    size = report.on_disk(built).human()
    packages = f"{len(built.packages)} packages"
    invocation.say(f"{built.address}: built in {deeds.seconds(watch.total)}, {size} on disk, {packages}")


@verb_of(image, "list", documents=True)
@click.argument("url", metavar="[URL]", required=False)
@click.option("--where", metavar="EXPRESSION", default="", help="Only those: 'os=debian release>=12 packages~gcc'.")
@click.pass_obj
def list_images(invocation: Invocation, url: str | None, where: str) -> None:
    """List every generation of every image, or of those in a shared store.

    With --where only those whose attributes are so: KEY=VALUE, also != ~ !~ < <= > >=, with blanks between them.
    """
    from vmimagemanager.images.selection import Selection
    from vmimagemanager.report import images as report

    selection = Selection.parse(where)
    with invocation.open() as manager:
        listed = manager.images.list() if url is None else manager.shared_images(url)
        found = [each for each in listed if selection.holds(each)]
    if invocation.json:
        screen.emit("images", {"images": [report.document(each) for each in found]})
    elif found:
        screen.table(report.HEADER, map(report.row, found))
    elif not invocation.quiet and (listed or url is not None):
        screen.note("There are no such images.")
    elif not invocation.quiet:
        screen.note("There are no images yet: 'vmimagemanager image build debian-12' makes one.")


@verb_of(image, "archives", documents=True)
@click.pass_obj
def list_archives(invocation: Invocation) -> None:
    """List every generation of every archive of files, which 'store' makes with a format of files."""
    from vmimagemanager.cli.files import archive_document
    from vmimagemanager.report.boxes import moment

    with invocation.open() as manager:
        found = manager.archives.list()
    if invocation.json:
        screen.emit("archives", {"archives": [archive_document(one) for one in found]})
    elif found:
        rows = [
            (
                one.address,
                moment(one.created),
                one.format.value,
                one.unpacked.human(),
                one.packed.human(),
                one.description,
            )
            for one in found
        ]
        screen.table(("ARCHIVE", "STORED", "FORMAT", "FILES", "ON DISK", "DESCRIPTION"), rows)
    elif not invocation.quiet:
        screen.note("There are no archives of files yet: 'vmimagemanager store BOX NAME --format tar.zst' makes one.")


@verb_of(image, "show", documents=True)
@click.argument("address", metavar="NAME[:GENERATION]", type=IMAGE)
@click.pass_obj
def show(invocation: Invocation, address: str) -> None:
    """Show all that is known about an image, its packages included."""
    from vmimagemanager.report import images as report

    with invocation.open() as manager:
        found = manager.images.get(address)
    if invocation.json:
        screen.emit("image", {"image": report.document(found)})
    else:
        screen.say(*report.lines(found))


@verb_of(image, "remove", documents=True)
@click.argument("address", metavar="NAME[:GENERATION]", type=IMAGE)
@YES
@click.pass_obj
def remove(invocation: Invocation, address: str, *, yes: bool) -> None:
    """Remove an image, or an archive, with all its generations, or one generation.

    An image that a box stands on is refused.
    """
    with invocation.open() as manager:
        found = manager.archives.get(address) if manager.archives.has(address) else manager.images.get(address)
        what = found.address if ":" in address else f"every generation of {found.name}"
        invocation.sure(f"Remove {what}?", yes=yes)
        removed = manager.remove_image(address)
    if invocation.json:
        screen.emit("image-remove", {"removed": list(removed)})
    invocation.say(*(f"{each}: removed" for each in removed))
