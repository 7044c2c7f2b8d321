"""The image store of a state directory."""

from __future__ import annotations

import difflib
import logging
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
    replace_file,
    translate_os_errors,
)
from vmimagemanager.errors import ImageError, StateError, VmimError
from vmimagemanager.images import catalogue, chain, debian, download, imports, intake, manifest, seed
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
_PIN = "pinned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """The generations that were removed, or would be; those that were spared, and why; and the space that it gives."""

    removed: tuple[Image, ...]
    spared: Mapping[Image, str]
    freed: Size


class ImageStore:
    """The images of one state directory::

        blobs/sha512/<digest>                     immutable files, 0444, shared by all generations that have them
        images/<name>/<generation>/manifest.toml  names its blobs; the highest generation is the latest
        images/<name>/<generation>/pinned         there when the generation is not to be removed
        images/lock                               held while something appears or disappears
        stage/images/<token>/                     builds in progress, see stage.py

    A generation is there when its manifest is: blobs are moved in first and the folder with the manifest is renamed
    last, both under the lock.  A process that is killed in between leaves blobs that no manifest names; the next
    `remove` takes them away.  A disk can be an overlay on another blob, which it names by its digest (see `chain`): a
    blob stays as long as a generation, or a box, stands on it.
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
                source=_called(named),
            ),
            reuse=reuse,
        )

    def remove(self, address: str, *, used_by: InUse) -> tuple[Sequence[Image], Size]:
        """Remove ``name:3``, or all generations of ``name``; return what was removed and the space that it gave.

        ``used_by`` is asked under the lock for the digests that boxes stand on and the addresses of the generations
        that they are made of, each with the names of its users.  A generation that somebody uses, or a digest that only
        the removed ones provide, makes this raise ImageError, and nothing is removed.  Blobs that nobody needs any more
        go too, also those that a killed process left.
        """
        name, generation = manifest.parse_address(address)
        with self.locked():
            latest = self.get(address)
            removed = [latest] if generation is not None else [each for each in self.list() if each.name == name]
            for image in removed:
                if image.pinned:
                    raise ImageError(
                        f"The image '{image.address}' is pinned.",
                        hint=f"vmimagemanager image unpin {image.address}",
                    )
            used = used_by()
            users = self._users(removed, used)
            if users:
                raise ImageError(
                    f"The image '{address}' is in use by {', '.join(users)}.",
                    hint=f"Undefine what stands on it first: vmimagemanager undefine {users[0]}",
                )
            return removed, self._remove(removed, used)

    def prune(self, name: str, *, keep: int, used_by: InUse, remove: bool) -> Pruned:
        """Remove all generations of ``name`` but the newest ``keep``, those that are pinned and those in use.

        Without ``remove`` it is only said which those are.  Raises ImageError when there is no image of that name.
        """
        with self.locked():
            latest = self.get(manifest.parse_name(name))
            family = [image for image in self.list() if image.name == latest.name]
            used = used_by()
            spared, going = {}, []
            for image in family[: -keep or None]:
                users = self._users([image], used)
                if image.pinned or users:
                    spared[image] = "pinned" if image.pinned else f"in use by {', '.join(users)}"
                else:
                    going.append(image)
            blobs = self._going(going) - set(used)
            freed = Size(sum(occupied(self._blobs.path(digest)).bytes for digest in blobs))
            if remove:
                freed = self._remove(going, used)
            return Pruned(removed=tuple(going), spared=spared, freed=freed)

    def pin(self, address: str, *, pinned: bool) -> Image:
        """Keep a generation from being removed, or let it be removed again; return it."""
        with self.locked():
            image = self.get(address)
            mark = self._images / image.name / str(image.generation) / _PIN
            if pinned:
                replace_file(mark, b"")
            else:
                remove_tree(mark)
        return replace(image, pinned=pinned)

    def blob(self, digest: str) -> Path:
        """Return where the file with this digest is, or would be."""
        return self._blobs.path(digest)

    def has(self, digest: str) -> bool:
        """Say whether there is a blob with this digest, and it was not changed."""
        try:
            self._blobs.seals.require(self._blobs.path(digest))
        except ImageError:
            return False
        return True

    def verify(self, image: Image) -> None:
        """Raise ImageError when a file of the image, or one that it stands on, is missing or was changed.

        All of them are read, which takes a second for each half gigabyte or so.
        """
        for digest in sorted(image.needed):
            self._blobs.verify(digest)
        self._require_parents(image)

    def examine(self, progress: Progress = silent) -> Iterator[tuple[str, VmimError]]:
        """Yield what is wrong with images, each with the address of one; every file of theirs is read."""
        found: list[Image] = []
        for name in self._names():
            for generation in self._generations(name):
                try:
                    found.append(self._read(name, generation))
                except VmimError as error:
                    yield f"{name}:{generation}", error
        users: dict[str, list[str]] = {}
        for image in found:
            for digest in image.needed:
                users.setdefault(digest, []).append(image.address)
        for number, digest in enumerate(sorted(users)):
            progress("reading images", number / len(users))
            try:
                self._blobs.verify(digest)
            except VmimError as error:
                yield ", ".join(users[digest]), error
        for image in found:
            try:
                self._require_parents(image)
            except VmimError as error:
                yield image.address, error

    def require_whole(self, image: Image) -> None:
        """Raise ImageError when a file of the image is missing, was changed, or stands on what it should not.

        A file is read only when it was not yet read on this host, or looks as if it had been written to since.
        """
        for digest in sorted(image.needed):
            self._blobs.seals.require(self._blobs.path(digest))
        self._require_parents(image)

    def require_intact(self, paths: Iterable[Path]) -> None:
        """Raise ImageError when one of those paths that are blobs was changed; others are not looked at."""
        for path in paths:
            if self._blobs.holds(path):
                self._blobs.seals.require(path)

    def unneeded_blobs(self, used_by: InUse, *, remove: bool) -> Sequence[tuple[Path, Size]]:
        """Return the blobs that no image has and nothing stands on, with what they take; remove them if asked to.

        ``used_by`` is asked as for `remove`.
        """
        with self.locked():
            needed = {digest for image in self.list() for digest in image.needed} | set(used_by())
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

    def publish(
        self, own: Path, image: Image, *, reuse: bool = False, below: Mapping[str, Path] | None = None
    ) -> Image:
        """Make what lies in the stage ``own`` the latest generation of its name, and return it.

        The paths of ``image`` are files of the stage, or blobs that are there already; what it says of generation,
        digests, sizes and parents is found out.  ``below`` are staged files that it consists of, or that its disk
        stands on, by their digests, which are their names and were compared with them.  With ``reuse`` a generation
        that is the same in all but its age is returned instead.

        Raises ImageError when the disk stands on what is not there, or is not in the store.
        """
        return self._publish(own, image, reuse=reuse, below=below)

    def _publish(
        self, own: Path, image: Image, *, reuse: bool = False, below: Mapping[str, Path] | None = None
    ) -> Image:
        below = below or {}
        with ThreadPoolExecutor(max_workers=1) as beside:  # the long flush before the lock, not under it
            flushed = [beside.submit(_flush, path) for path in {*image.files.values(), *below.values()}]
            digests = {role: self._digest(path, below) for role, path in image.files.items()}
            for each in flushed:
                each.result()
        with self.locked():
            parents: tuple[str, ...] = ()
            if image.disk_format == "qcow2":
                parents = chain.parents(image.disk, lambda digest: below.get(digest, self._blobs.path(digest)))
            places = {
                **{digest: below.get(digest, self._blobs.path(digest)) for digest in parents},
                **{digests[role]: path for role, path in image.files.items()},
            }
            sizes = {digest: path.stat().st_size for digest, path in places.items()}
            image = replace(image, digests=digests, parents=parents, sizes=sizes)
            for digest, path in places.items():
                self._blobs.keep(path, digest)
            if reuse and (same := self._same(image)) is not None:
                return same
            family = make_folder(self._images / image.name)
            generation = max(self._generations(image.name), default=0) + 1
            folder = make_folder(own / "generation")
            manifest.write(folder, replace(image, generation=generation))
            publish(folder, family / str(generation))
            return self._read(image.name, generation)

    def _digest(self, path: Path, compared: Mapping[str, Path]) -> str:
        return path.name if self._blobs.holds(path) or compared.get(path.name) == path else digest_of(path)

    def _require_parents(self, image: Image) -> None:
        found = chain.parents(image.disk, self._blobs.path) if image.disk_format == "qcow2" else ()
        if found != image.parents:
            raise ImageError(
                f"The disk of the image '{image.address}' stands on other disks than its manifest says.",
                hint=f"vmimagemanager image remove {image.address}",
            )

    def _users(self, removed: Collection[Image], used: Mapping[str, Collection[str]]) -> Sequence[str]:
        """Return who uses one of these generations, or a file that nothing else needs."""
        asked = {image.address for image in removed} | self._going(removed)
        return sorted({user for each in asked for user in used.get(each, ())})

    def _going(self, removed: Collection[Image]) -> set[str]:
        """Return the digests that nothing but the ``removed`` generations needs."""
        addresses = {image.address for image in removed}
        kept = {digest for image in self.list() if image.address not in addresses for digest in image.needed}
        return {digest for image in removed for digest in image.needed} - kept

    def _remove(self, removed: Iterable[Image], used: Mapping[str, Collection[str]]) -> Size:
        for image in removed:
            self._unpublish(image)
        needed = {digest for image in self.list() for digest in image.needed}
        return self._blobs.sweep(needed | set(used))

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
        image = replace(manifest.read(folder, self._blobs.path), pinned=(folder / _PIN).exists())
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


def _flush(path: Path) -> None:
    with translate_os_errors("flush", path):
        fsync_path(path)


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
