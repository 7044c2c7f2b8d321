"""The generations that a state directory has: how they appear, are found, and disappear."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from vmimagemanager.durable import (
    fsync_path,
    make_folder,
    publish,
    remove_tree,
    replace_file,
    translate_os_errors,
)
from vmimagemanager.errors import ImageError, StateError
from vmimagemanager.images import catalogue, chain, manifest
from vmimagemanager.images.blobs import Blobs, digest_of
from vmimagemanager.images.manifest import Image
from vmimagemanager.images.stage import stage
from vmimagemanager.locks import FileLock

_LIMIT = timedelta(minutes=2)
_PIN = "pinned"


class Generations:
    """The folder ``images`` of a state directory, and the blobs that its manifests name; see `ImageStore`."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.blobs = Blobs(state)
        self._images = state / "images"

    def all(self) -> list[Image]:
        """Return every generation of every image, sorted by name and generation."""
        return [self.read(name, generation) for name, generation in self.numbers()]

    def get(self, address: str) -> Image:
        """Return ``name``'s latest generation, or the one of ``name:3``.

        Raises ImageError when it is not there, with a hint that lists what is; UsageError when it could not be a name.
        """
        name, generation = manifest.parse_address(address)
        generations = self._generations(name)
        if not generations or (generation is not None and generation not in generations):
            raise self._missing(name, generation, generations)
        return self.read(name, generation if generation is not None else generations[-1])

    def read(self, name: str, generation: int) -> Image:
        """Return a generation; raise StateError when its manifest is damaged."""
        folder = self._images / name / str(generation)
        image = replace(manifest.read(folder, self.blobs.path), pinned=(folder / _PIN).exists())
        if (image.name, image.generation) != (name, generation):
            raise StateError(f"The manifest in '{folder}' is that of '{image.address}'.")
        return image

    def numbers(self) -> Iterator[tuple[str, int]]:
        """Yield the name and the number of every generation, sorted, be they damaged or not."""
        for name in self._names():
            for generation in self._generations(name):
                yield name, generation

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
        """Make what lies in a stage the newest generation of its name, as `ImageStore.publish` says."""
        if any((self.state / "archives" / image.name).glob("[0-9]*")):  # a kill may have left an empty folder
            raise ImageError(
                f"The archive '{image.name}' holds files: images of disks need a name of their own.",
                hint=f"Call it '{image.name}-disk', for instance.",
            )
        below = below or {}
        with ThreadPoolExecutor(max_workers=1) as beside:  # the long flush before the lock, not under it
            flushed = [beside.submit(_flush, path) for path in {*image.files.values(), *below.values()}]
            digests = {role: self._digest(path, below) for role, path in image.files.items()}
            for each in flushed:
                each.result()
        with self.locked():
            parents: tuple[str, ...] = ()
            if image.disk_format == "qcow2":
                parents = chain.parents(image.disk, lambda digest: below.get(digest, self.blobs.path(digest)))
            places = {
                **{digest: below.get(digest, self.blobs.path(digest)) for digest in parents},
                **{digests[role]: path for role, path in image.files.items()},
            }
            sizes = {digest: path.stat().st_size for digest, path in places.items()}
            image = replace(image, digests=digests, parents=parents, sizes=sizes)
            for digest, path in places.items():
                self.blobs.keep(path, digest)
            if reuse and (same := self._same(image)) is not None:
                return same
            family = make_folder(self._images / image.name)
            generation = max(self._generations(image.name), default=0) + 1
            folder = make_folder(own / "generation")
            manifest.write(folder, replace(image, generation=generation))
            publish(folder, family / str(generation))
            return self.read(image.name, generation)

    def withdraw(self, image: Image) -> None:
        """Remove a generation; its blobs stay."""
        # Out of sight by one rename; a kill during the removal itself leaves a stale folder in the stage, nothing else.
        family = self._images / image.name
        purpose = f"removing the image '{image.address}'"
        with stage(self.state, purpose=purpose) as own, translate_os_errors("remove", family):
            (family / str(image.generation)).rename(own / "generation")
            fsync_path(family)
        if not self._generations(image.name):
            remove_tree(family)

    def pin(self, image: Image, *, pinned: bool) -> Image:
        """Keep a generation from being removed, or let it be removed again, under the lock; return it."""
        mark = self._images / image.name / str(image.generation) / _PIN
        if pinned:
            replace_file(mark, b"")
        else:
            remove_tree(mark)
        return replace(image, pinned=pinned)

    def _digest(self, path: Path, compared: Mapping[str, Path]) -> str:
        return path.name if self.blobs.holds(path) or compared.get(path.name) == path else digest_of(path)

    def _same(self, image: Image) -> Image | None:
        for other in self.all():
            as_other = replace(image, generation=other.generation, created=other.created, disk=other.disk)
            if replace(as_other, kernel=other.kernel, initrd=other.initrd) == other:
                return other
        return None

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
