"""A store of images that several hosts share::

    vmimagemanager.toml                        format
    index.toml                                 the generations of each image, for who cannot list a folder
    images/<name>/<generation>-<id>.toml       manifests, as in a state directory
    blobs/<digest>                             a blob's chunks in their order, see `chunks`
    chunks/<first two digits>/<digest>         the chunks, compressed

Nothing in it is ever changed but the index; what stands on something else is written after it, so that a pusher that
is killed leaves nothing that anybody sees.  Two who push generations of one number at once see that when they look once
more, and move theirs on.

Who pulls believes nothing: a manifest's names, digests and sizes are checked, each chunk is compared with its digest
and the whole file with the blob's, and disks must stand on one another as the manifest says, before a generation
appears.
"""

from __future__ import annotations

import hashlib
import logging
import random
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from vmimagemanager import records
from vmimagemanager.deadline import Stopwatch, pause
from vmimagemanager.errors import ImageError, StateError
from vmimagemanager.images import chunks, manifest
from vmimagemanager.images.chunks import Chunk, Pieces
from vmimagemanager.images.manifest import Image
from vmimagemanager.images.store import ImageStore
from vmimagemanager.images.transport import Transport
from vmimagemanager.progress import Progress
from vmimagemanager.units import Size

FORMAT = 1
MARKER, INDEX = "vmimagemanager.toml", "index.toml"
_LARGEST_MANIFEST = 8 << 20
_LARGEST_LIST = 1 << 30
_FILE = re.compile(r"([1-9][0-9]{0,8})-([0-9a-f]{16})\.toml", re.ASCII)
_TRIES = 20
Item = TypeVar("Item")
Result = TypeVar("Result")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """A generation that a shared store has: its address there, the bytes that travelled, and those of its files.

    ``was_there`` says that it was there already, and nothing travelled.
    """

    address: str
    travelled: Size
    size: Size
    was_there: bool
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A generation in a shared store: its number there, and what tells it from another one of that number."""

    name: str
    generation: int
    identity: str

    @property
    def path(self) -> str:
        return f"images/{self.name}/{self.file}"

    @property
    def file(self) -> str:
        return f"{self.generation}-{self.identity}.toml"


class Shared:
    """A shared store that is there; raise ImageError when there is none, or it is of a newer format."""

    def __init__(self, url: str, *, make: bool = False) -> None:
        self.transport = Transport(url)
        found = self.transport.read(MARKER, most=_LARGEST_MANIFEST)
        if found is None and make:
            self.transport.write(MARKER, records.dump({"format": FORMAT}).encode())
        elif found is None:
            raise ImageError(
                f"There is no shared store of images at '{self.transport.url}'.",
                hint=f"The first push makes one: vmimagemanager image push IMAGE {self.transport.url}",
            )
        elif (version := self._record(found, MARKER).get("format")) != FORMAT:
            raise ImageError(
                f"The shared store '{self.transport.url}' has format {version!r:.20}, and this program knows {FORMAT}."
            )

    def entries(self, name: str | None = None) -> list[Entry]:
        """Return what there is, or what there is of one name, sorted by name and generation."""
        listed = self._indexed() if self.transport.read_only else self._listed(name)
        found = []
        for image, files in listed.items():
            for file in files:
                match = _FILE.fullmatch(file)
                if match and name in {None, image} and manifest.is_name(image):
                    found.append(Entry(name=image, generation=int(match[1]), identity=match[2]))
        return sorted(found, key=lambda entry: (entry.name, entry.generation, entry.identity))

    def find(self, address: str) -> Entry:
        """Return the entry of ``web`` (its newest generation) or ``web:3``; raise ImageError when it is not clear."""
        name, generation = manifest.parse_address(address)
        entries = self.entries(name)
        if not entries:
            names = sorted({entry.name for entry in self.entries()})
            raise ImageError(
                f"There is no image '{name}' in the shared store '{self.transport.url}'.",
                hint=f"There are: {', '.join(names)}." if names else "It is empty.",
            )
        number = generation or entries[-1].generation
        chosen = [entry for entry in entries if entry.generation == number]
        if not chosen:
            numbers = ", ".join(str(entry.generation) for entry in entries)
            raise ImageError(f"The image '{name}' has no generation {number} there.", hint=f"It has {numbers}.")
        if len(chosen) > 1:
            raise ImageError(
                f"Two generations are called '{name}:{number}' in the shared store: they were pushed at the same time.",
                hint="Push one of them once more, which gives it another number.",
            )
        return chosen[0]

    def image(self, entry: Entry, blob: Callable[[str], Path]) -> Image:
        """Return what a manifest says, of which nothing but its form is certain; ``blob`` is as for `manifest.read`."""
        content = self.transport.read(entry.path, most=_LARGEST_MANIFEST)
        if content is None:
            raise self.damaged(entry.path, "it is missing")
        record = self._record(content, entry.path)
        if record.pop("format", None) != manifest.VERSION:
            raise self.damaged(entry.path, "its format is not known")
        try:
            image = manifest.from_record(record, blob, source=entry.path)
        except StateError as error:
            raise self.damaged(entry.path, error.message.rstrip(".")) from error
        if (image.name, image.generation) != (entry.name, entry.generation):
            raise self.damaged(entry.path, f"it is that of '{image.address}'")
        return image

    def pieces(self, digest: str) -> Pieces:
        """Return the chunks of a blob; raise ImageError when it is not there."""
        path = f"blobs/{digest}"
        content = self.transport.read(path, most=_LARGEST_LIST)
        if content is None:
            raise self.damaged(path, "it is missing")
        return chunks.parse(content, sha512=digest, source=f"{self.transport.url}/{path}")

    def fetch(self, chunk: Chunk) -> tuple[bytes, int]:
        """Return a chunk's content, which was compared with its digest, and the bytes that travelled."""
        path = _place(chunk)
        packed = self.transport.read(path, most=chunks.LARGEST_PACKED)
        if packed is None:
            raise self.damaged(path, "it is missing")
        try:
            return chunks.unpack(packed, chunk), len(packed)
        except ValueError as error:
            raise self.damaged(path, str(error)) from error

    def put(self, entry: Entry, record: records.Record) -> None:
        """Write a manifest."""
        content = {"format": manifest.VERSION, **record, "generation": entry.generation}
        self.transport.write(entry.path, records.dump(content).encode())

    def write_index(self) -> None:
        """Write down what there is, until that is what there is when we look once more."""
        for attempt in range(_TRIES):
            listed = {name: sorted(files) for name, files in sorted(self._listed(None).items())}
            if self._indexed() == {name: frozenset(files) for name, files in listed.items()}:
                return
            if attempt:
                pause(random.uniform(0, 0.2))  # noqa: S311 - another pusher is writing it, too
            self.transport.write(INDEX, records.dump({"format": FORMAT, "images": listed}).encode())

    def damaged(self, path: str, reason: str) -> ImageError:
        return ImageError(
            f"'{path}' in the shared store '{self.transport.url}' is damaged: {reason}.",
            hint="Push the image there once more, from a host that has it.",
        )

    def _listed(self, name: str | None) -> dict[str, frozenset[str]]:
        names = [name] if name is not None else sorted(self.transport.names("images"))
        return {each: self.transport.names(f"images/{each}") for each in names}

    def _indexed(self) -> dict[str, frozenset[str]]:
        content = self.transport.read(INDEX, most=_LARGEST_LIST)
        if content is None:
            return {}
        images = self._record(content, INDEX).get("images")
        if not isinstance(images, dict) or not all(isinstance(files, list) for files in images.values()):
            raise self.damaged(INDEX, "it lists no images")
        return {name: frozenset(file for file in files if isinstance(file, str)) for name, files in images.items()}

    def _record(self, content: bytes, path: str) -> records.Record:
        try:
            return records.parse(content.decode(), source=path)
        except (UnicodeDecodeError, StateError) as error:
            raise self.damaged(path, "it is not TOML") from error


def push(store: ImageStore, image: Image, url: str, *, progress: Progress) -> Pushed:
    """Make a generation one of a shared store, which is made when it is new; only what is not there travels.

    Raises ImageError when the store cannot be reached or a file of the image was changed.  What was interrupted can be
    done once more, and goes on where it was.
    """
    watch = Stopwatch()
    store.require_whole(image)
    shared = Shared(url, make=True)
    size = Size(sum(store.blob(digest).stat().st_size for digest in image.needed))
    record = manifest.to_record(image)
    identity = _identity(record)
    there = next((entry for entry in shared.entries(image.name) if entry.identity == identity), None)
    if there is not None:
        shared.write_index()  # whoever pushed it may have been killed before
        return Pushed(
            address=f"{there.name}:{there.generation}",
            travelled=Size(0),
            size=size,
            was_there=True,
            seconds=watch.total,
        )
    travelled = 0
    needed = sorted(image.needed)
    for number, digest in enumerate(needed):

        def tell(fraction: float, done: int = number) -> None:
            progress("pushing", (done + fraction) / len(needed))

        travelled += _push_blob(shared, store.blob(digest), tell)
    entry = _claim(shared, image.name, identity, record)
    shared.write_index()
    progress("done", 1.0)
    _log.info("pushed '%s' to '%s' in %.1f s", image.address, url, watch.total)
    return Pushed(
        address=f"{entry.name}:{entry.generation}",
        travelled=Size(travelled),
        size=size,
        was_there=False,
        seconds=watch.total,
    )


def listing(store: ImageStore, url: str) -> list[Image]:
    """Return the generations of a shared store, as their manifests describe them; their files are not here."""
    shared = Shared(url)
    return in_parallel(shared, lambda entry: shared.image(entry, store.blob), shared.entries())


def in_parallel(shared: Shared, deed: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Do a deed to all items, as many at once as the store likes; the first error ends it."""
    with ThreadPoolExecutor(max_workers=shared.transport.at_once) as pool:
        futures = [pool.submit(deed, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            raise


def _push_blob(shared: Shared, path: Path, tell: Callable[[float], None]) -> int:
    """Write what is not there of a blob; return the bytes that travelled."""
    if shared.transport.exists(f"blobs/{path.name}"):
        return 0
    pieces = chunks.cut(path)
    if pieces.sha512 != path.name:
        raise ImageError(f"The blob '{path}' is damaged.", hint="vmimagemanager fsck --images")
    prefixes = sorted({chunk.digest[:2] for chunk in pieces.chunks})
    folders = in_parallel(shared, lambda prefix: shared.transport.names(f"chunks/{prefix}"), prefixes)
    present = frozenset().union(*folders)
    missing = {chunk.digest: (at, chunk) for at, chunk in pieces.placed() if chunk.digest not in present}
    done = 0

    def upload(place: tuple[int, Chunk]) -> int:
        nonlocal done
        at, chunk = place
        with path.open("rb") as stream:
            stream.seek(at)
            packed = chunks.pack(stream.read(chunk.size))
        shared.transport.write(_place(chunk), packed)
        done += 1
        tell(done / len(missing))
        return len(packed)

    travelled = sum(in_parallel(shared, upload, missing.values()))
    text = pieces.text().encode()
    shared.transport.write(f"blobs/{path.name}", text)
    return travelled + len(text)


def _claim(shared: Shared, name: str, identity: str, record: records.Record) -> Entry:
    """Write the manifest under the next number; where somebody else has it, too, move on."""
    for _ in range(_TRIES):
        number = max((entry.generation for entry in shared.entries(name)), default=0) + 1
        entry = Entry(name=name, generation=number, identity=identity)
        shared.put(entry, record)
        others = [one for one in shared.entries(name) if one.generation == number and one != entry]
        if not others:
            return entry
        shared.transport.remove(entry.path)
        pause(random.uniform(0, 0.5))  # noqa: S311
    raise ImageError(f"Too many push generations of '{name}' to '{shared.transport.url}' at the same time.")


def _identity(record: Mapping[str, object]) -> str:
    """Return what tells a generation from all others, whatever its number is."""
    content = records.dump({key: value for key, value in record.items() if key != "generation"})
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def _place(chunk: Chunk) -> str:
    return f"chunks/{chunk.digest[:2]}/{chunk.digest}"
