"""How new generations come in: built by a recipe, or made of a disk, an appliance or a tar of somebody else's."""

from __future__ import annotations

import logging
import shutil
from datetime import UTC, datetime
from pathlib import Path

from vmimagemanager import disks
from vmimagemanager.deadline import Stopwatch
from vmimagemanager.durable import translate_os_errors
from vmimagemanager.errors import ImageError
from vmimagemanager.images import catalogue, debian, imports, intake, manifest, seed
from vmimagemanager.images.catalogue import Recipe
from vmimagemanager.images.generations import Generations
from vmimagemanager.images.imports import Import
from vmimagemanager.images.layout import COMMAND_LINE
from vmimagemanager.images.manifest import Image
from vmimagemanager.images.stage import stage
from vmimagemanager.progress import Progress, silent

_log = logging.getLogger(__name__)


def build(
    generations: Generations,
    name: str,
    recipe: Recipe | None,
    *,
    mirror: str | None,
    progress: Progress,
    description: str | None,
) -> Image:
    """Build a generation by a recipe, as `ImageStore.build` says."""
    manifest.parse_name(name)
    recipe = recipe if recipe is not None else catalogue.recipe(name)
    watch = Stopwatch()
    with stage(generations.state, purpose=f"building the image '{name}'", remove=debian.remove) as own:
        built = debian.build(recipe, own, mirror=mirror, progress=progress)
        progress("storing the image", 0.95)
        image = generations.publish(
            own,
            Image(
                name=name,
                generation=1,
                created=_now(),
                description=description if description is not None else recipe.description,
                disk=built.disk,
                disk_size=disks.info(built.disk).virtual_size if recipe.starts_itself else recipe.size,
                kernel=built.kernel,
                initrd=built.initrd,
                command_line="" if recipe.starts_itself else COMMAND_LINE,
                firmware="uefi" if recipe.uefi else "bios",
                agent=not recipe.cloud,
                seed=seed.NOCLOUD if recipe.cloud else "",
                user=recipe.user,
                digests={},
                packages=built.packages,
                os=recipe.distribution,
                release=recipe.release,
                source=f"recipe {recipe.name}",
            ),
        )
    progress("done", 1.0)
    _log.info("built the image '%s' in %.1f s", image.address, watch.total)
    return image


def import_image(
    generations: Generations, name: str, source: str | Path, wanted: Import, *, progress: Progress
) -> Image:
    """Take in what is at an address or in a file, as `ImageStore.import_image` says."""
    manifest.parse_name(name)
    watch = Stopwatch()
    with stage(generations.state, purpose=f"importing the image '{name}'") as own:
        file = imports.brought(source, own, generations.state / "cache", wanted, progress=progress)
        image = _taken_in(generations, name, file, own, wanted=wanted, named=imports.named(source), progress=progress)
    progress("done", 1.0)
    _log.info("imported the image '%s' in %.1f s", image.address, watch.total)
    return image


def add(generations: Generations, name: str, disk: Path, wanted: Import, *, reuse: bool) -> Image:
    """Copy a disk in, as `ImageStore.add` says."""
    manifest.parse_name(name)
    with stage(generations.state, purpose=f"adding the image '{name}'") as own:
        return _taken_in(generations, name, intake.copied(disk, own), own, wanted=wanted, named=str(disk), reuse=reuse)


def _taken_in(
    generations: Generations,
    name: str,
    file: Path,
    own: Path,
    *,
    wanted: Import,
    named: str,
    reuse: bool = False,
    progress: Progress = silent,
) -> Image:
    kernel, initrd = _copied(wanted.kernel, own / "own-kernel"), _copied(wanted.initrd, own / "own-initrd")
    taken = intake.take_in(
        file,
        own,
        named=named,
        file_format=wanted.format,
        disk_size=wanted.disk_size,
        boots=kernel is None,
        progress=progress,
    )
    direct = (kernel, initrd) if kernel is not None else (taken.kernel, taken.initrd)
    progress("storing the image", 0.95)
    return generations.publish(
        own,
        Image(
            name=name,
            generation=1,
            created=_now(),
            description=wanted.description,
            disk=taken.disk,
            disk_size=taken.disk_size,
            kernel=direct[0],
            initrd=direct[1],
            command_line=wanted.command_line or (COMMAND_LINE if taken.kernel is not None else ""),
            firmware=wanted.firmware,
            agent=wanted.agent,
            user=wanted.user,
            seed=wanted.seed,
            digests={},
            packages=taken.packages,
            source=_called(named),
        ),
        reuse=reuse,
    )


def _called(source: str) -> str:
    """Return what an image is known to come from: an address, or a file's name without its folder."""
    name = source if "://" in source else Path(source).name
    return name if name.isprintable() else ""


def _copied(source: Path | None, target: Path) -> Path | None:
    if source is None:
        return None
    if not source.is_file():
        raise ImageError(f"The file '{source}' does not exist, or is not a file.")
    with translate_os_errors("copy", source):
        shutil.copyfile(source, target)
    return target


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
