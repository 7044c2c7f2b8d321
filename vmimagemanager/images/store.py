"""The image store of a state directory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from vmimagemanager.errors import ImageError, VmimError
from vmimagemanager.images import additions, chain, debian, download, removal
from vmimagemanager.images.catalogue import Recipe
from vmimagemanager.images.generations import Generations
from vmimagemanager.images.imports import Import
from vmimagemanager.images.manifest import Image
from vmimagemanager.images.removal import InUse, Pruned
from vmimagemanager.images.stage import stage, stale
from vmimagemanager.progress import Progress, silent
from vmimagemanager.units import Size

__all__ = ["ImageStore", "Pruned"]


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
        self._generations = Generations(self._state)
        self._blobs = self._generations.blobs

    def list(self) -> list[Image]:
        """Return every generation of every image, sorted by name and generation."""
        return self._generations.all()

    def get(self, address: str) -> Image:
        """Return ``name``'s latest generation, or the one of ``name:3``.

        Raises ImageError when it is not there, with a hint that lists what is; UsageError when it could not be a name.
        """
        return self._generations.get(address)

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
        return additions.build(
            self._generations, name, recipe, mirror=mirror, progress=progress, description=description
        )

    def import_image(
        self, name: str, source: str | Path, wanted: Import | None = None, *, progress: Progress = silent
    ) -> Image:
        """Take in a disk image, an appliance or the tar of a root file system, as a new generation of ``name``.

        ``source`` is a file or an http(s) address.  What is fetched and what is in it is trusted in nothing: see
        `images.download` and `images.intake`.  Raises ImageError, SpaceError, DeadlineError when a server stalls, and
        ToolError; the store is then as it was, and only what was fetched so far is kept, for the next attempt.
        """
        return additions.import_image(self._generations, name, source, wanted or Import(), progress=progress)

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
        return additions.add(self._generations, name, disk, wanted, reuse=reuse)

    def remove(self, address: str, *, used_by: InUse) -> tuple[Sequence[Image], Size]:
        """Remove ``name:3``, or all generations of ``name``; return what was removed and the space that it gave.

        ``used_by`` is asked under the lock for the digests that boxes stand on and the addresses of the generations
        that they are made of, each with the names of its users.  A generation that somebody uses, or a digest that only
        the removed ones provide, makes this raise ImageError, and nothing is removed.  Blobs that nobody needs any more
        go too, also those that a killed process left.
        """
        return removal.remove(self._generations, address, used_by=used_by)

    def prune(self, name: str, *, keep: int, used_by: InUse, remove: bool) -> Pruned:
        """Remove all generations of ``name`` but the newest ``keep``, those that are pinned and those in use.

        Without ``remove`` it is only said which those are.  Raises ImageError when there is no image of that name.
        """
        return removal.prune(self._generations, name, keep=keep, used_by=used_by, remove=remove)

    def pin(self, address: str, *, pinned: bool) -> Image:
        """Keep a generation from being removed, or let it be removed again; return it."""
        with self.locked():
            return self._generations.pin(self.get(address), pinned=pinned)

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
        for name, generation in self._generations.numbers():
            try:
                found.append(self._generations.read(name, generation))
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
        return removal.unneeded_blobs(self._generations, used_by, remove=remove)

    def downloads(self, *, remove: bool) -> Sequence[tuple[Path, Size]]:
        """Return what imports fetched, finished or not, and nobody fetches now; remove it if asked to."""
        return download.leftovers(self._state / "cache", remove=remove)

    @contextmanager
    def stage(self, purpose: str) -> Iterator[Path]:
        """Yield a folder for work in progress, which is removed at the end, or by the next one when we are killed."""
        with stage(self._state, purpose=purpose) as own:
            yield own

    def stale_stages(self, *, remove: bool) -> Sequence[tuple[Path, Size]]:
        """Return what killed builds left, with what it takes; remove it if asked to."""
        return stale(self._state, remove=debian.remove if remove else None)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep images from appearing and disappearing, while a box is defined that stands on one, for instance."""
        with self._generations.locked():
            yield

    def publish(
        self, own: Path, image: Image, *, reuse: bool = False, below: Mapping[str, Path] | None = None
    ) -> Image:
        """Make what lies in the stage ``own`` the latest generation of its name, and return it.

        The paths of ``image`` are files of the stage, or blobs that are there already; what it says of generation,
        digests, sizes and parents is found out.  ``below`` are staged files that it consists of, or that its disk
        stands on, by their digests, which are their names and were compared with them.  With ``reuse`` a generation
        that is the same in all but its age is returned instead.

        Raises ImageError when the disk stands on what is not there, or is not in the store, and when there is an
        archive of files of that name.
        """
        return self._generations.publish(own, image, reuse=reuse, below=below)

    def _require_parents(self, image: Image) -> None:
        found = chain.parents(image.disk, self._blobs.path) if image.disk_format == "qcow2" else ()
        if found != image.parents:
            raise ImageError(
                f"The disk of the image '{image.address}' stands on other disks than its manifest says.",
                hint=f"vmimagemanager image remove {image.address}",
            )
