"""Pulling a generation out of a shared store.

A file that is being fetched lies in ``cache/pulls/<digest>``: who comes back after an interruption finds there what was
fetched before.  What a disk has in common with one that is here already does not travel: the pieces of the image's own
disks are looked at first.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from vmimagemanager import disks
from vmimagemanager.deadline import Stopwatch
from vmimagemanager.durable import (
    make_folder,
    occupied,
    remove_tree,
    replace_file,
    require_space,
    translate_os_errors,
)
from vmimagemanager.errors import ImageError, SpaceError
from vmimagemanager.images import chain, chunks
from vmimagemanager.images.chunks import Chunk, Pieces
from vmimagemanager.images.manifest import Image
from vmimagemanager.images.share import Shared, in_parallel
from vmimagemanager.images.stage import stage
from vmimagemanager.images.store import ImageStore
from vmimagemanager.locks import FileLock
from vmimagemanager.progress import Progress
from vmimagemanager.units import Size

_LIMIT = timedelta(hours=12)  # somebody else who pulls the same is waited for
_DONORS = 3  # disks that are looked at for pieces, the newest first

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """A generation that was pulled: the bytes that travelled, and those of its files; whether it was here already."""

    image: Image
    travelled: Size
    size: Size
    was_here: bool
    seconds: float


def pull(store: ImageStore, state: Path, address: str, url: str, *, progress: Progress) -> Pulled:
    """Make a generation of a shared store the newest one of its name here, and return it.

    Raises ImageError when there is no such generation, when anything of it is not what it should be, or when the store
    cannot be reached; SpaceError.  No generation appears then, and what was fetched is used by the next try.
    """
    watch = Stopwatch()
    shared = Shared(url)
    entry = shared.find(address)
    announced = shared.image(entry, store.blob)
    missing = [digest for digest in sorted(announced.needed) if not store.has(digest)]
    for image in store.list():
        if not missing and image.name == announced.name and _is_same(image, announced):
            size = Size(sum(image.sizes.values()))
            return Pulled(image=image, travelled=Size(0), size=size, was_here=True, seconds=watch.total)
    lists = {digest: shared.pieces(digest) for digest in missing}
    _require_announced(shared, announced, lists)
    needed = Size(sum(pieces.size for pieces in lists.values()))
    require_space(state, needed, purpose=f"Pulling '{announced.address}'")
    with stage(state, purpose=f"pulling '{announced.address}'") as own:
        fetcher = _Fetcher(shared, make_folder(state / "cache" / "pulls"), progress, total=max(1, needed.bytes))
        fetcher.learn(_donors(store, state, announced))
        fetched: dict[str, Path] = {}
        for digest in missing:
            fetched[digest] = own / digest
            fetcher.fetch(lists[digest], own / digest)
        progress("storing the image", 0.97)
        _require_chain(store, own, announced, fetched)
        here = replace(
            announced,
            disk=fetched.get(announced.digests["disk"], announced.disk),
            kernel=_here(announced, "kernel", fetched, announced.kernel),
            initrd=_here(announced, "initrd", fetched, announced.initrd),
        )
        image = store.publish(own, here, below=fetched, reuse=True)  # one that was damaged is whole again
    progress("done", 1.0)
    _log.info("pulled '%s' as '%s' in %.1f s", announced.address, image.address, watch.total)
    return Pulled(
        image=image,
        travelled=Size(fetcher.travelled),
        size=Size(sum(image.sizes.values())),
        was_here=False,
        seconds=watch.total,
    )


def stale(state: Path, *, remove: bool) -> list[tuple[Path, Size]]:
    """Return what interrupted pulls left that nobody goes on with now, with what it takes; remove it if asked to."""
    found = []
    folder = state / "cache" / "pulls"
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix == ".lock":
            continue
        lock = FileLock(path.with_suffix(".lock"))
        if lock.try_acquire():
            found.append((path, occupied(path)))
            if remove:
                remove_tree(path)
                lock.remove()
            lock.release()
    return found


class _Fetcher:
    """Puts files together: of what is here already, and of what travels."""

    def __init__(self, shared: Shared, folder: Path, progress: Progress, *, total: int) -> None:
        self._shared = shared
        self._folder = folder
        self._progress = progress
        self._total = total
        self._known: dict[str, tuple[Path, int]] = {}
        self._done = 0
        self.travelled = 0

    def learn(self, donors: Mapping[Path, Pieces]) -> None:
        """Remember where chunks lie in files that are here."""
        for path, pieces in donors.items():
            for at, chunk in pieces.placed():
                self._known.setdefault(chunk.digest, (path, at))

    def fetch(self, pieces: Pieces, target: Path) -> None:
        """Make ``target`` the file that ``pieces`` make; raise ImageError when it is not what its digest says."""
        with self._partial(pieces.sha512) as partial:
            try:
                resumed = partial.exists()
                with translate_os_errors("write", partial):
                    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    self._fill(descriptor, pieces, partial, resumed=resumed)
                finally:
                    os.close(descriptor)
                self._require_digest(partial, pieces.sha512)
            except SpaceError:
                remove_tree(partial)
                raise
            with translate_os_errors("move", partial):
                partial.rename(target)

    @contextmanager
    def _partial(self, digest: str) -> Iterator[Path]:
        lock = FileLock(self._folder / f"{digest}.lock", purpose="pulling an image")
        lock.acquire(_LIMIT)
        try:
            yield self._folder / digest
        finally:
            lock.remove()

    def _fill(self, descriptor: int, pieces: Pieces, partial: Path, *, resumed: bool) -> None:
        def place(position: tuple[int, Chunk]) -> int:
            at, chunk = position
            cost = 0
            if not (resumed and _is_at(descriptor, at, chunk)):
                content = self._near(chunk)
                if content is None:
                    content, cost = self._shared.fetch(chunk)
                with translate_os_errors("write", partial):
                    os.pwrite(descriptor, content, at)
            self._done += chunk.size
            self._progress("pulling", 0.95 * min(1.0, self._done / self._total))
            return cost

        with translate_os_errors("write", partial):
            os.ftruncate(descriptor, pieces.size)
        self.travelled += sum(in_parallel(self._shared, place, pieces.placed()))

    def _near(self, chunk: Chunk) -> bytes | None:
        path, at = self._known.get(chunk.digest, (None, 0))
        if path is None:
            return None
        with translate_os_errors("read", path), path.open("rb") as stream:
            stream.seek(at)
            content = stream.read(chunk.size)
        return content if chunks.digest_of(content) == chunk.digest else None

    def _require_digest(self, partial: Path, digest: str) -> None:
        with translate_os_errors("read", partial), partial.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha512").hexdigest()
        if found != digest:
            remove_tree(partial)
            raise self._shared.damaged(f"blobs/{digest}", "its pieces do not make the file that its name says")


def _donors(store: ImageStore, state: Path, announced: Image) -> dict[Path, Pieces]:
    """Return the pieces of disks that are here and may have some in common with the one that comes."""
    own = [image for image in store.list() if image.name == announced.name]
    digests = [image.digests["disk"] for image in reversed(own)]
    digests += [digest for digest in announced.parents if store.has(digest)]
    chosen = [store.blob(digest) for digest in dict.fromkeys(digests)][:_DONORS]
    return {path: _pieces_of(path, state) for path in chosen if store.has(path.name)}


def _pieces_of(path: Path, state: Path) -> Pieces:
    """Cut a blob, or remember how it was cut."""
    kept = make_folder(state / "cache" / "chunks") / path.name
    if kept.exists():
        with translate_os_errors("read", kept):
            content = kept.read_bytes()
        try:
            return chunks.parse(content, sha512=path.name, source=str(kept))
        except ImageError:
            _log.debug("'%s' is damaged, and made anew", kept)
    pieces = chunks.cut(path)
    replace_file(kept, pieces.text().encode())
    return pieces


def _is_at(descriptor: int, at: int, chunk: Chunk) -> bool:
    return chunks.digest_of(os.pread(descriptor, chunk.size, at)) == chunk.digest


def _is_same(image: Image, announced: Image) -> bool:
    return (image.digests, image.parents, image.created) == (announced.digests, announced.parents, announced.created)


def _here(announced: Image, role: str, fetched: Mapping[str, Path], otherwise: Path | None) -> Path | None:
    return fetched.get(announced.digests.get(role, ""), otherwise)


def _require_announced(shared: Shared, announced: Image, lists: Mapping[str, Pieces]) -> None:
    """Raise ImageError when the sizes of blobs are not those that the manifest announces."""
    for digest, pieces in lists.items():
        if announced.sizes.get(digest, pieces.size) != pieces.size:
            raise shared.damaged(f"blobs/{digest}", "it has another size than the manifest says")
    if announced.disk_format == "raw" and announced.parents:
        raise shared.damaged(announced.address, "a raw disk cannot stand on another one")


def _require_chain(store: ImageStore, own: Path, announced: Image, fetched: Mapping[str, Path]) -> None:
    """Raise ImageError unless the disk is what the manifest says, stands on what it says, and is sound."""
    if announced.disk_format == "raw":
        return

    def place(digest: str) -> Path:
        return fetched.get(digest, store.blob(digest))

    disk = place(announced.digests["disk"])
    found = chain.head(disk)
    if found is None or found.size != announced.disk_size.bytes or chain.parents(disk, place) != announced.parents:
        raise ImageError(
            f"The disk of '{announced.address}' in the shared store is not the one that its manifest speaks of.",
            hint="Push the image there once more, from a host that has it.",
        )
    for digest in announced.parents:  # a disk is looked for beside the one that stands on it
        if digest not in fetched:
            (own / digest).symlink_to(store.blob(digest))
    for digest in (*reversed(announced.parents), announced.digests["disk"]):
        if digest in fetched:
            disks.check(fetched[digest])
