"""Named inserts: files that are kept in the state directory, to be laid into guests whenever they are wanted.

::

    inserts/<name>/manifest.toml   where it came from, and which folder of a guest it is laid over
    inserts/<name>/files.tar.zst   its content; it may hold keys, so nobody but its owner can read it
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from vmimagemanager import records
from vmimagemanager.durable import fsync_path, make_folder, occupied, publish, translate_os_errors
from vmimagemanager.errors import BoxError, StateError, TransferError, UsageError
from vmimagemanager.files import formats, pack
from vmimagemanager.files.pack import Laying
from vmimagemanager.images.stage import stage
from vmimagemanager.names import RULE, is_name
from vmimagemanager.units import Size

FORMAT = 1
ROOT = PurePosixPath("/")
_MANIFEST, _CONTENT = "manifest.toml", "files.tar.zst"


@dataclass(frozen=True, slots=True, kw_only=True)
class Insert:
    """A named insert: the folder of a guest that it is laid over, what it was made of and when, and its size here."""

    name: str
    folder: PurePosixPath
    source: str
    created: datetime
    packed: Size


class Inserts:
    """The named inserts of one state directory."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._folder = state / "inserts"

    def add(self, name: str, source: Path, folder: PurePosixPath = ROOT) -> Insert:
        """Keep a copy of a folder's content, a file or an archive, by a new name.

        Raises UsageError for what cannot be a name, BoxError when there is one of that name, TransferError, SpaceError.
        """
        if not is_name(name):
            raise UsageError(f"{name!r} is not the name of an insert: {RULE}.")
        require_absolute(folder)
        target = self._folder / name
        if target.exists():
            raise BoxError(
                f"There is an insert '{name}' already.", hint=f"Remove it first: vmimagemanager insert remove {name}"
            )
        laying = pack.laying(source.absolute(), folder)
        make_folder(self._folder, mode=0o700)
        with stage(self._state, purpose=f"keeping the insert '{name}'") as own:
            staged = make_folder(own / name, mode=0o700)
            formats.pack(staged / _CONTENT, lambda stream: _read(source, laying, stream))
            created = datetime.now(UTC).replace(microsecond=0)
            record = {"source": str(source.absolute()), "folder": str(folder), "created": created}
            records.write(staged / _MANIFEST, record, version=FORMAT)
            try:
                publish(staged, target)
            except (FileExistsError, StateError) as error:
                if not target.exists():
                    raise
                raise BoxError(
                    f"There is an insert '{name}' already.", hint="Somebody else has just kept it."
                ) from error
        return self.get(name)

    def list(self) -> Sequence[Insert]:
        """Return all of them, sorted by name."""
        return [self.get(name) for name in self._names()]

    def get(self, name: str) -> Insert:
        """Return an insert; raise BoxError that says which there are when there is none of that name."""
        folder = self._folder / name
        if not is_name(name) or not (folder / _MANIFEST).is_file():
            names = ", ".join(self._names())
            raise BoxError(
                f"There is no insert '{name}'.",
                hint=f"There are: {names}." if names else f"vmimagemanager insert add {name} FILE",
            )
        record = records.read(folder / _MANIFEST, version=FORMAT)
        try:
            return Insert(
                name=name,
                folder=PurePosixPath(record["folder"]),
                source=str(record["source"]),
                created=record["created"],
                packed=occupied(folder / _CONTENT),
            )
        except (KeyError, TypeError) as error:
            raise StateError(f"The manifest '{folder / _MANIFEST}' is damaged: {error}.") from error

    def remove(self, name: str) -> Insert:
        """Remove an insert; what was laid into guests stays there."""
        insert = self.get(name)
        purpose = f"removing the insert '{name}'"
        with stage(self._state, purpose=purpose) as own, translate_os_errors("remove", self._folder):
            (self._folder / name).rename(own / name)
            fsync_path(self._folder)
        return insert

    def laying(self, name: str, folder: PurePosixPath | None = None) -> Laying:
        """Return how an insert is laid into a guest, into its own folder or another one."""
        insert = self.get(name)
        content = self._folder / name / _CONTENT

        def feed(stream: BinaryIO) -> None:
            pack.send_archive(content, stream)

        return Laying(feed=feed, folder=folder or insert.folder)

    def resolve(self, source: str, folder: PurePosixPath | None) -> Laying:
        """Return how a source is laid: a file or folder of the host, or else the insert of that name.

        Raises UsageError for a word that could mean both, TransferError or BoxError for one that means neither.
        """
        kept = is_name(source) and (self._folder / source).is_dir()
        if kept and Path(source).exists():
            raise UsageError(f"'{source}' is an insert and a file of this folder, too.", hint=f"The file: ./{source}")
        if kept or (is_name(source) and not Path(source).exists() and self._names()):
            return self.laying(source, folder)
        return pack.laying(Path(source).absolute(), folder or ROOT)

    def _names(self) -> Sequence[str]:
        if not self._folder.is_dir():
            return []
        with translate_os_errors("read", self._folder):
            return sorted(entry.name for entry in self._folder.iterdir() if is_name(entry.name))


def require_absolute(folder: PurePosixPath) -> None:
    """Raise UsageError for a folder of a guest that is not named from its root on."""
    if not folder.is_absolute() or ".." in folder.parts:
        raise UsageError(f"'{folder}' is not a folder of a guest: expected a path that begins with '/'.")


def _read(source: Path, laying: Laying, stream: BinaryIO) -> None:
    try:
        laying.feed(stream)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):  # it is not the source that cannot be read
            raise
        raise TransferError(f"'{source}' cannot be read: {error.strerror or error}.") from error
