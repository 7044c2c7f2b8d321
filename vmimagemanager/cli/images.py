"""image build, import, catalog, list, show, remove; see also `imagefiles` and `generations`."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vmimagemanager.cli import screen
from vmimagemanager.cli.invocation import Invocation
from vmimagemanager.cli.life import YES
from vmimagemanager.cli.progress import shown
from vmimagemanager.cli.values import FORMAT, IMAGE, RECIPE, SIZE
from vmimagemanager.cli.verb import VerbGroup, verb_of

if TYPE_CHECKING:
    from vmimagemanager.deadline import Stopwatch
    from vmimagemanager.images import Image
    from vmimagemanager.images.imports import Import

DESCRIPTION = click.option("--description", metavar="TEXT", help="A line for people.")
PATH = click.Path(path_type=Path)
_OF_A_SOURCE = (
    *("format", "checksums", "disk_size", "kernel", "initrd", "command_line"),
    *("firmware", "agent", "cloud_init", "user"),
)


@click.group("image", cls=VerbGroup)
def image() -> None:
    """Base images: what boxes are made of.

    An image has a name and generations: debian-12 is the latest one, debian-12:3 a certain one.
    """


@verb_of(image, "build", documents=True)
@click.argument("name", type=RECIPE)
@click.option("--recipe", metavar="FILE", type=click.Path(path_type=Path), help="What to build it of: a TOML file.")
@click.option("--mirror", metavar="URL", help="Where to fetch packages from, instead of mmdebstrap's default.")
@DESCRIPTION
@click.pass_obj
def build(
    invocation: Invocation, name: str, *, recipe: Path | None, mirror: str | None, description: str | None
) -> None:
    """Build an image by a recipe file, or one that has a recipe: debian-12, debian-13, ubuntu-24.04, …

    It becomes the latest generation of that name.
    """
    from vmimagemanager.deadline import Stopwatch
    from vmimagemanager.images import recipefile

    watch = Stopwatch()
    chosen = recipefile.read(recipe, name) if recipe is not None else None
    with invocation.open() as manager, shown(invocation) as progress:
        built = manager.images.build(name, recipe=chosen, mirror=mirror, progress=progress, description=description)
    _tell(invocation, built, "built", watch)


@verb_of(image, "import", documents=True)
@click.argument("name", metavar="NAME")
@click.argument("source", metavar="[SOURCE]", required=False)
@click.option("--format", metavar="FORMAT", type=FORMAT, help="What the file is; recognised, but for raw.")
@click.option("--size", metavar="SIZE", type=SIZE, help="How large the file has to be.")
@click.option("--sha256", metavar="HEX", help="What the file's SHA-256 has to be.")
@click.option("--sha512", metavar="HEX", help="What the file's SHA-512 has to be.")
@click.option("--checksums", metavar="URL", help="A list of checksums that has the file's: an address or a file.")
@click.option("--keep-download", is_flag=True, help="Keep what was fetched, for the next time.")
@click.option("--disk-size", metavar="SIZE", type=SIZE, help="How large to make the disk of a root file system (8G).")
@click.option("--kernel", metavar="FILE", type=PATH, help="Start boxes with this kernel.")
@click.option("--initrd", metavar="FILE", type=PATH, help="Start boxes with this initrd.")
@click.option("--command-line", metavar="TEXT", default="", help="What the kernel is told.")
@click.option("--firmware", type=click.Choice(["bios", "uefi"]), default="bios", help="What the disk's loader needs.")
@click.option("--agent", is_flag=True, help="QEMU's guest agent is in it, enabled.")
@click.option("--cloud-init", is_flag=True, help="cloud-init is in it: boxes get a seed that says who they are.")
@click.option("--user", metavar="NAME", default="root", help="Whom to log in as.")
@DESCRIPTION
@click.pass_obj
def import_image(invocation: Invocation, /, name: str, source: str | None, **options: Any) -> None:  # noqa: ANN401 - click's own
    """Take in a disk image, an appliance or the tar of a root file system, from a file or an http(s) address.

    It becomes the latest generation of that name. Nothing of it is trusted: what names other files, is damaged, or
    would fill the disk is refused. Without a source the name is that of a cloud image in the catalogue.
    """
    from vmimagemanager.deadline import Stopwatch

    watch = Stopwatch()
    if source is None:
        source, wanted = _from_catalog(name, options)
    else:
        wanted = _wanted(options)
    with invocation.open() as manager, shown(invocation) as progress:
        imported = manager.images.import_image(name, source, wanted, progress=progress)
    _tell(invocation, imported, "imported", watch)


def _from_catalog(name: str, options: dict[str, Any]) -> tuple[str, Import]:
    from vmimagemanager.images import cloud

    said = click.get_current_context().get_parameter_source
    for key in _OF_A_SOURCE:
        if said(key) is click.core.ParameterSource.COMMANDLINE:
            option = key.replace("_", "-")
            raise click.UsageError(f"--{option} needs a SOURCE: of a cloud image the catalogue says it.")
    source, found = cloud.to_import(cloud.entry(name))
    return source, replace(
        found,
        size=options["size"],
        digests={**found.digests, **_digests(options["sha256"], options["sha512"])},
        keep=options["keep_download"],
        description=options["description"] or found.description,
    )


def _wanted(options: dict[str, Any]) -> Import:
    from vmimagemanager.images.catalogue import DISK_SIZE
    from vmimagemanager.images.imports import Import
    from vmimagemanager.images.seed import NOCLOUD

    return Import(
        format=options["format"],
        size=options["size"],
        digests=_digests(options["sha256"], options["sha512"]),
        checksums=options["checksums"],
        keep=options["keep_download"],
        disk_size=options["disk_size"] or DISK_SIZE,
        kernel=options["kernel"],
        initrd=options["initrd"],
        command_line=options["command_line"],
        firmware=options["firmware"],
        agent=options["agent"],
        user=options["user"],
        seed=NOCLOUD if options["cloud_init"] else "",
        description=options["description"] or "",
    )


def _digests(sha256: str | None, sha512: str | None) -> dict[str, str]:
    digests = {name: text for name, text in (("sha256", sha256), ("sha512", sha512)) if text is not None}
    for name, text in digests.items():
        if not re.fullmatch(rf"[0-9a-fA-F]{{{int(name[3:]) // 4}}}", text):
            raise click.UsageError(f"{text!r} is no {name} in hexadecimal.")
    return digests


def _tell(invocation: Invocation, made: Image, deed: str, watch: Stopwatch) -> None:
    from vmimagemanager.report import deeds
    from vmimagemanager.report import images as report

    if invocation.json:
        screen.emit("image", {"image": report.document(made)})
    size = report.on_disk(made).human()
    packages = f", {len(made.packages)} packages" if made.packages else ""
    invocation.say(f"{made.address}: {deed} in {deeds.seconds(watch.total)}, {size} on disk{packages}")


@verb_of(image, "catalog", documents=True)
@click.argument("words", metavar="[WORD]...", nargs=-1)
@click.pass_obj
def catalog(invocation: Invocation, words: tuple[str, ...]) -> None:
    """List the well-known cloud images, or those that have all words in their names or titles.

    Files of your own add to them: see vmimagemanager-catalog.toml(5).
    """
    from vmimagemanager.images import cloud
    from vmimagemanager.report import catalog as report

    found = cloud.search(cloud.catalog().values(), words)
    if invocation.json:
        screen.emit("catalog", {"images": [report.document(each) for each in found]})
    elif found:
        screen.table(report.HEADER, map(report.row, found))
    elif not invocation.quiet:
        screen.note("The catalogue has no such image: 'vmimagemanager image catalog' lists all of them.")


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
