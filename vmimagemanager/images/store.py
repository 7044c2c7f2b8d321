"""The image store of a state directory."""

from __future__ import annotations

import difflib
import logging
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from vmimagemanager import disks
from vmimagemanager.deadline import Stopwatch
from vmimagemanager.durable import (
    fsync_path,
    make_folder,
    occupied,
    publish,
    remove_tree,
    translate_os_errors,
)
from vmimagemanager.errors import ImageError, StateError
from vmimagemanager.images import catalogue, debian, download, imports, intake, manifest, seed
from vmimagemanager.images.blobs import Blobs, digest_of
from vmimagemanager.images.catalogue import Recipe
from vmimagemanager.images.imports import Import
from vmimagemanager.images.layout import COMMAND_LINE
from vmimagemanager.images.manifest import Image
from vmimagemanager.images.stage import stage, stale
from vmimagemanager.locks import FileLock
from vmimagemanager.progress import Progress, silent
from vmimagemanager.units import Size

_log = logging.getLogger(__name__)
_LIMIT = timedelta(minutes=2)

InUse = Callable[[], Mapping[str, Collection[str]]]


class ImageStore:
    """The images of one state directory::

        blobs/sha512/<digest>                     immutable files, 0444, shared by all generations that have them
        images/<name>/<generation>/manifest.toml  names its blobs; the highest generation is the latest
        images/lock                               held while something appears or disappears
        stage/images/<token>/                     builds in progress, see stage.py

    A generation is there when its manifest is: blobs are moved in first and the folder with the manifest is renamed
    last, both under the lock.  A process that is killed in between leaves blobs that no manifest names; the next
    `remove` takes them away.
    """

    def __init__(self, state: Path) -> None:
        self._state = state.absolute()
        self._images = self._state / "images"
        self._blobs = Blobs(self._state)

    def list(self) -> list[Image]:
        """Return every generation of every image, sorted by name and generation."""
        return [self._read(name, generation) for name in self._names() for generation in self._generations(name)]

    def get(self, address: str) -> Image:
        """Return ``name``'s latest generation, or the one of ``name:3``.

        Raises ImageError when it is not there, with a hint that lists what is; UsageError when it could not be a name.
        """
        name, generation = manifest.parse_address(address)
        generations = self._generations(name)
        if not generations or (generation is not None and generation not in generations):
            raise self._missing(name, generation, generations)
        return self._read(name, generation if generation is not None else generations[-1])

    def build(
        self,
        name: str,
        *,
        recipe: Recipe | None = None,
        mirror: str | None = None,
        progress: Progress = silent,
        description: str | None = None,
    ) -> Image:
        """Build a new generation of an image by ``recipe``, or by the one that there is of that name, and return it.

        Two builds of one name at the same time both succeed and become two generations.  An interrupted one leaves
        nothing that can be seen; what a killed one left in ``stage/`` is removed by the next.
        """
        manifest.parse_name(name)
        recipe = recipe if recipe is not None else catalogue.recipe(name)
        watch = Stopwatch()
        with stage(self._state, purpose=f"building the image '{name}'", remove=debian.remove) as own:
            built = debian.build(recipe, own, mirror=mirror, progress=progress)
            progress("storing the image", 0.95)
            image = self._publish(
                own,
                Image(
                    name=name,
                    generation=1,
                    created=_now(),
                    description=description if description is not None else recipe.description,
                    disk=built.disk,
                    disk_size=disks.info(built.disk).virtual_size if recipe.uefi else recipe.size,
                    kernel=built.kernel,
                    initrd=built.initrd,
                    command_line="" if recipe.uefi else COMMAND_LINE,
                    firmware="uefi" if recipe.uefi else "bios",
                    agent=not recipe.cloud,
                    seed=seed.NOCLOUD if recipe.cloud else "",
                    user=recipe.user,
                    digests={},
                    packages=built.packages,
                ),
            )
        progress("done", 1.0)
        _log.info("built the image '%s' in %.1f s", image.address, watch.total)
        return image

    def import_image(
        self, name: str, source: str | Path, wanted: Import | None = None, *, progress: Progress = silent
    ) -> Image:
        """Take in a disk image, an appliance or the tar of a root file system, as a new generation of ``name``.

        ``source`` is a file or an http(s) address.  What is fetched and what is in it is trusted in nothing: see
        `images.download` and `images.intake`.  Raises ImageError, SpaceError, DeadlineError when a server stalls, and
        ToolError; the store is then as it was, and only what was fetched so far is kept, for the next attempt.
        """
        manifest.parse_name(name)
        wanted = wanted if wanted is not None else Import()
        watch = Stopwatch()
        with stage(self._state, purpose=f"importing the image '{name}'") as own:
            file = imports.brought(source, own, self._state / "cache", wanted, progress=progress)
            image = self._taken_in(name, file, own, wanted, named=imports.named(source), progress=progress)
        progress("done", 1.0)
        _log.info("imported the image '%s' in %.1f s", image.address, watch.total)
        return image

    def add(
        self,
        name: str,
        disk: Path,
        *,
        disk_format: str | None = None,
        kernel: Path | None = None,
        initrd: Path | None = None,
        command_line: str = "",
        agent: bool = False,
        user: str = "root",
        firmware: str = "bios",
        seed: str = "",
        description: str = "",
        reuse: bool = False,
    ) -> Image:
        """Copy a disk image of the user's into the store as a new generation of ``name``.

        ``firmware`` is what its own boot loader needs, ``seed`` is ``nocloud`` for a system with cloud-init.  With
        ``reuse`` a generation of that name that is the same in all but its age is returned instead.

        A raw image must be called one (``disk_format="raw"``): what a guest wrote into it can look like a qcow2.
        Raises what `import_image` does.
        """
        manifest.parse_name(name)
        wanted = Import(
            format=disk_format,
            kernel=kernel,
            initrd=initrd,
            command_line=command_line,
            agent=agent,
            user=user,
            firmware=firmware,
            seed=seed,
            description=description,
        )
        with stage(self._state, purpose=f"adding the image '{name}'") as own:
            return self._taken_in(name, intake.copied(disk, own), own, wanted, named=str(disk), reuse=reuse)

    def _taken_in(
        self,
        name: str,
        file: Path,
        own: Path,
        wanted: Import,
        *,
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
        return self._publish(
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
            ),
            reuse=reuse,
        )

    def remove(self, address: str, *, used_by: InUse) -> tuple[Sequence[Image], Size]:
        """Remove ``name:3``, or all generations of ``name``; return what was removed and the space that it gave.

        ``used_by`` is asked under the lock for the digests that boxes stand on, each with the names of its users.  A
        digest that only the removed generations provide and somebody uses makes this raise ImageError, and nothing is
        removed.  Blobs that nobody needs any more go too, also those that a killed process left.
        """
        name, generation = manifest.parse_address(address)
        with self.locked():
            latest = self.get(address)
            removed = [latest] if generation is not None else [each for each in self.list() if each.name == name]
            addresses = {image.address for image in removed}
            kept = {
                digest for image in self.list() if image.address not in addresses for digest in image.digests.values()
            }
            used = used_by()
            going = {digest for image in removed for digest in image.digests.values()} - kept
            users = sorted({user for digest in going for user in used.get(digest, ())})
            if users:
                raise ImageError(
                    f"The image '{address}' is in use by {', '.join(users)}.",
                    hint=f"Undefine what stands on it first: vmimagemanager undefine {users[0]}",
                )
            for image in removed:
                self._unpublish(image)
            return removed, self._blobs.sweep(kept | set(used))

    def verify(self, image: Image) -> None:
        """Raise ImageError when a file of the image is missing or has not the content that its digest says."""
        for digest in image.digests.values():
            self._blobs.verify(digest)

    def unneeded_blobs(self, used_by: InUse, *, remove: bool) -> Sequence[tuple[Path, Size]]:
        """Return the blobs that no image has and nothing stands on, with what they take; remove them if asked to.

        ``used_by`` is asked as for `remove`.
        """
        with self.locked():
            needed = {digest for image in self.list() for digest in image.digests.values()} | set(used_by())
            found = [(path, occupied(path)) for path in self._blobs.unneeded(needed)]
            if remove:
                self._blobs.sweep(needed)
            return found

    def downloads(self, *, remove: bool) -> Sequence[tuple[Path, Size]]:
        """Return what imports fetched, finished or not, and nobody fetches now; remove it if asked to."""
        return download.leftovers(self._state / "cache", remove=remove)

    def stale_stages(self, *, remove: bool) -> Sequence[tuple[Path, Size]]:
        """Return what killed builds left, with what it takes; remove it if asked to."""
        return stale(self._state, remove=debian.remove if remove else None)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep images from appearing and disappearing, while a box is defined that stands on one, for instance."""
        make_folder(self._images)
        lock = FileLock(self._images / "lock")
        lock.acquire(_LIMIT)
        try:
            yield
        finally:
            lock.release()

    def _publish(self, own: Path, image: Image, *, reuse: bool = False) -> Image:
        digests = {role: digest_of(path) for role, path in image.files.items()}
        for path in image.files.values():
            fsync_path(path)  # the long flush before the lock, not under it
        with self.locked():
            if reuse and (same := self._same(replace(image, digests=digests))) is not None:
                return same
            for role, path in image.files.items():
                self._blobs.keep(path, digests[role])
            family = make_folder(self._images / image.name)
            generation = max(self._generations(image.name), default=0) + 1
            folder = make_folder(own / "generation")
            manifest.write(folder, replace(image, generation=generation, digests=digests))
            publish(folder, family / str(generation))
            return self._read(image.name, generation)

    def _same(self, image: Image) -> Image | None:
        for other in self.list():
            as_other = replace(image, generation=other.generation, created=other.created, disk=other.disk)
            if replace(as_other, kernel=other.kernel, initrd=other.initrd) == other:
                return other
        return None

    def _unpublish(self, image: Image) -> None:
        # Out of sight by one rename; a kill during the removal itself leaves a stale folder in the stage, nothing else.
        family = self._images / image.name
        purpose = f"removing the image '{image.address}'"
        with stage(self._state, purpose=purpose) as own, translate_os_errors("remove", family):
            (family / str(image.generation)).rename(own / "generation")
            fsync_path(family)
        if not self._generations(image.name):
            remove_tree(family)

    def _names(self) -> Sequence[str]:
        if not self._images.is_dir():
            return []
        with translate_os_errors("read", self._images):
            return sorted(entry.name for entry in self._images.iterdir() if entry.is_dir())

    def _generations(self, name: str) -> Sequence[int]:
        family = self._images / name
        if not family.is_dir():
            return []
        with translate_os_errors("read", family):
            return sorted(int(entry.name) for entry in family.iterdir() if entry.name.isdecimal())

    def _read(self, name: str, generation: int) -> Image:
        folder = self._images / name / str(generation)
        image = manifest.read(folder, self._blobs.path)
        if (image.name, image.generation) != (name, generation):
            raise StateError(f"The manifest in '{folder}' is that of '{image.address}'.")
        return image

    def _missing(self, name: str, generation: int | None, generations: Sequence[int]) -> ImageError:
        if generations:
            return ImageError(
                f"The image '{name}' has no generation {generation}.",
                hint=f"It has {', '.join(str(each) for each in generations)}.",
            )
        names = self._names()
        near = difflib.get_close_matches(name, [*names, *catalogue.RECIPES], n=1)
        advice = [f"Did you mean '{near[0]}'?"] if near and near[0] != name else []
        advice.append(f"There are: {', '.join(names)}." if names else "There are no images yet.")
        to_build = name if name in catalogue.RECIPES else next(iter(catalogue.RECIPES))
        advice.append(f"'vmimagemanager image build {to_build}' makes " + ("it." if to_build == name else "one."))
        return ImageError(f"There is no image '{name}'.", hint=" ".join(advice))


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
