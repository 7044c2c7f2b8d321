"""Archives of file systems: generations that hold files instead of a disk.

They hold all the secrets of a guest, so nobody but their owner can read them, and lie apart from the blobs, which QEMU
reads as another user::

    archives/<name>/<generation>/manifest.toml   what it is, and the digest of its content
    archives/<name>/<generation>/files           the archive: one file, or for the format rsync a tree

A generation is there when its folder is: it is made in the stage and renamed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from vmimagemanager import records
from vmimagemanager.durable import (
    fsync_path,
    fsync_tree,
    make_folder,
    occupied,
    publish,
    remove_tree,
    translate_os_errors,
)
from vmimagemanager.errors import ImageError, StateError, VmimError
from vmimagemanager.files import tree
from vmimagemanager.files.formats import Format
from vmimagemanager.images import manifest
from vmimagemanager.images.stage import stage
from vmimagemanager.locks import FileLock
from vmimagemanager.progress import Progress, silent
from vmimagemanager.units import Size

FORMAT = 1
_CONTENT = "files"
_LIMIT = timedelta(minutes=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """One generation of an archive.

    ``digest`` is the SHA-512 of its content, ``unpacked`` the length of the tar stream that it was made of, ``packed``
    what it takes on the disk, and ``stored_from`` the box, or the snapshot, that it was made of.
    """

    name: str
    generation: int
    created: datetime
    format: Format
    digest: str
    unpacked: Size
    packed: Size
    stored_from: str
    description: str
    path: Path

    @property
    def address(self) -> str:
        """The name with the generation, which means this very archive for ever: ``web-files:3``."""
        return f"{self.name}:{self.generation}"


class ArchiveStore:
    """The archives of one state directory."""

    def __init__(self, state: Path) -> None:
        self._state = state.absolute()
        self._archives = self._state / "archives"

    def list(self) -> Sequence[Archive]:
        """Return every generation of every archive, sorted by name and generation."""
        return [self._read(name, number) for name in self._names() for number in self._generations(name)]

    def has(self, address: str) -> bool:
        """Tell whether there is an archive of that name."""
        name, _ = manifest.parse_address(address)
        return bool(self._generations(name))

    def get(self, address: str) -> Archive:
        """Return ``name``'s latest generation, or the one of ``name:3``; raise ImageError with what there is."""
        name, generation = manifest.parse_address(address)
        generations = self._generations(name)
        if not generations:
            names = ", ".join(self._names())
            if (self._state / "images" / name).is_dir():
                raise ImageError(
                    f"The image '{name}' holds a disk, not files.",
                    hint=f"vmimagemanager define --update BOX --image {address}, and reset the box",
                )
            raise ImageError(
                f"There is no archive '{name}'.",
                hint=f"There are: {names}." if names else "'vmimagemanager store' makes one: --format tar.zst",
            )
        if generation is not None and generation not in generations:
            listed = ", ".join(map(str, generations))
            raise ImageError(f"The archive '{name}' has no generation {generation}.", hint=f"It has {listed}.")
        return self._read(name, generation if generation is not None else generations[-1])

    def keep(
        self, name: str, kind: Format, make: Callable[[Path], Size], *, stored_from: str, description: str
    ) -> Archive:
        """Keep a new generation of ``name``, whose content ``make`` makes, and return it.

        ``make`` is given the path of what it makes, and returns the length of the tar stream.
        Raises ImageError when there is an image of that name, and what ``make`` raises; nothing is left then.
        """
        self.require_name(name)
        with stage(self._state, purpose=f"archiving as '{name}'") as own:
            folder = make_folder(own / "generation", mode=0o700)
            content = folder / _CONTENT
            unpacked = make(content)
            archive = Archive(
                name=name,
                generation=1,
                created=datetime.now(UTC).replace(microsecond=0),
                format=kind,
                digest=_digest(content),
                unpacked=unpacked,
                packed=occupied(content),
                stored_from=stored_from,
                description=description,
                path=content,
            )
            if content.is_dir():
                fsync_tree(content)
            else:
                fsync_path(content)  # the long flush before the lock, not under it
            with self._locked():
                self.require_name(name)
                family = make_folder(self._archives / name, mode=0o700)
                archive = replace(archive, generation=max(self._generations(name), default=0) + 1)
                _write(folder, archive)
                publish(folder, family / str(archive.generation))
                return self._read(name, archive.generation)

    def verify(self, archive: Archive) -> None:
        """Raise ImageError when the content of an archive is missing, or is not what its digest says."""
        if not archive.path.exists():
            raise ImageError(f"The archive '{archive.address}' is damaged: '{archive.path}' is missing.")
        if _digest(archive.path) != archive.digest:
            raise ImageError(
                f"The archive '{archive.address}' is damaged: its content is not what its digest says.",
                hint=f"Use another generation, or remove it: vmimagemanager image remove {archive.address}",
            )

    def examine(self, progress: Progress = silent) -> Iterator[tuple[str, VmimError]]:
        """Yield what is wrong with archives, each with the address of one; all of them are read."""
        found = [(name, number) for name in self._names() for number in self._generations(name)]
        for count, (name, number) in enumerate(found):
            progress("reading archives", count / len(found))
            try:
                self.verify(self._read(name, number))
            except VmimError as error:
                yield f"{name}:{number}", error

    def remove(self, address: str) -> Sequence[Archive]:
        """Remove ``name:3``, or all generations of ``name``, and return what was removed."""
        name, generation = manifest.parse_address(address)
        with self._locked():
            latest = self.get(address)
            removed = [latest] if generation is not None else [one for one in self.list() if one.name == name]
            for archive in removed:
                family = self._archives / name
                purpose = f"removing the archive '{archive.address}'"
                with stage(self._state, purpose=purpose) as own, translate_os_errors("remove", family):
                    (family / str(archive.generation)).rename(own / "generation")
                    fsync_path(family)
            if not self._generations(name):
                remove_tree(self._archives / name)
            return removed

    def require_name(self, name: str) -> None:
        """Raise ImageError when an archive cannot be called so because there is an image of that name."""
        manifest.parse_name(name)
        if any((self._state / "images" / name).glob("[0-9]*")):  # a kill may have left an empty folder
            raise ImageError(
                f"The image '{name}' holds disks: archives of files need a name of their own.",
                hint=f"Call it '{name}-files', for instance.",
            )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = FileLock(make_folder(self._archives, mode=0o700) / "lock")
        lock.acquire(_LIMIT)
        try:
            yield
        finally:
            lock.release()

    def _names(self) -> Sequence[str]:
        return _entries(self._archives)

    def _generations(self, name: str) -> Sequence[int]:
        return sorted(int(entry) for entry in _entries(self._archives / name) if entry.isdecimal())

    def _read(self, name: str, generation: int) -> Archive:
        folder = self._archives / name / str(generation)
        path = folder / manifest.FILE
        record = records.read(path, version=FORMAT)
        try:
            return Archive(
                name=name,
                generation=generation,
                created=record["created"],
                format=Format(record["format-of-files"]),
                digest=str(record["digest"]),
                unpacked=Size(int(record["unpacked"])),
                packed=Size(int(record["packed"])),
                stored_from=str(record["stored-from"]),
                description=str(record["description"]),
                path=folder / _CONTENT,
            )
        except (KeyError, ValueError, TypeError) as error:
            raise StateError(f"The manifest '{path}' is damaged: {error}.") from error


def _write(folder: Path, archive: Archive) -> None:
    record = {
        "name": archive.name,
        "generation": archive.generation,
        "kind": "files",
        "created": archive.created,
        "format-of-files": archive.format.value,
        "digest": archive.digest,
        "unpacked": archive.unpacked.bytes,
        "packed": archive.packed.bytes,
        "stored-from": archive.stored_from,
        "description": archive.description,
    }
    records.write(folder / manifest.FILE, record, version=FORMAT)


def _entries(folder: Path) -> Sequence[str]:
    if not folder.is_dir():
        return []
    with translate_os_errors("read", folder):
        return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())


def _digest(path: Path) -> str:
    with translate_os_errors("read", path):
        if path.is_dir():
            return tree.digest(path)
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha512").hexdigest()
