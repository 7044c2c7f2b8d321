"""Where files out of a guest arrive on the host: staged beside their target, and renamed when all are there."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from vmimagemanager.durable import remove_tree, translate_os_errors
from vmimagemanager.errors import TransferError
from vmimagemanager.files.unpack import Unpacked, unpack


class Arrival:
    """A staged folder for what a guest sends, in the order of ``places``, where it is to be in the end."""

    def __init__(self, staged: Path, places: Sequence[Path]) -> None:
        self._staged = staged
        self._places = places
        self._unpacked = Unpacked()

    def receive(self, stream: BinaryIO) -> None:
        """Unpack a tar stream; raise TransferError, or SpaceError."""
        try:
            self._unpacked = unpack(stream, self._staged)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                with translate_os_errors("write", self._staged.parent):
                    raise
            raise TransferError(f"What the guest sent cannot be laid down: {error.strerror or error}.") from error

    def land(self) -> int:
        """Rename what has arrived to its places; return the bytes of its files."""
        tops = self._unpacked.tops
        if len(tops) != len(self._places):
            raise TransferError(
                f"The guest sent {len(tops)} files or folders where {len(self._places)} were asked for.",
                hint="Copy what has the same name in the guest one by one.",
            )
        for top, place in zip(tops, self._places, strict=True):
            with translate_os_errors("write", place):
                _move(self._staged / top, place)
        return self._unpacked.bytes


@contextmanager
def prepared(names: Sequence[str], target: Path) -> Iterator[Arrival]:
    """Yield what takes files of these names in; ``target`` is a new path for one, or a folder that exists.

    Raises TransferError, before anything is made, for a place that cannot be had: an existing file is replaced by
    `Arrival.land`, an existing folder is not.  Nothing that did not land is left.
    """
    if "" in names:
        raise TransferError("The root folder cannot be copied as a whole.", hint="Name what is in it.")
    if target.is_dir():
        places = [target / name for name in names]
    elif len(names) == 1:
        places = [target]
    else:
        raise TransferError(f"There is no folder '{target}' on the host.", hint=f"mkdir -p '{target}'")
    for place in places:
        if places.count(place) > 1:
            raise TransferError(f"Two of the files are called '{place.name}'.", hint="Copy them one by one.")
        if place.is_dir() and not place.is_symlink():
            raise TransferError(f"The folder '{place}' exists already on the host.", hint="Choose another target.")
        if not place.parent.is_dir():
            raise TransferError(f"There is no folder '{place.parent}' on the host.", hint=f"mkdir -p '{place.parent}'")
    staged = places[0].with_name(f".{places[0].name[:200]}.{os.getpid()}.part")
    with translate_os_errors("write", staged):
        staged.mkdir(mode=0o700)
    try:
        yield Arrival(staged, places)
    finally:
        _make_removable(staged)
        remove_tree(staged)


def _move(staged: Path, place: Path) -> None:
    if staged.is_symlink() or not staged.is_dir():
        staged.replace(place)
        return
    mode = staged.stat().st_mode
    staged.chmod(0o700)  # or its owner could not give it another place
    staged.rename(place)
    place.chmod(stat.S_IMODE(mode))


def _make_removable(folder: Path) -> None:
    for path, names, _ in os.walk(folder):
        for name in names:
            entry = Path(path, name)
            if not entry.is_symlink():
                entry.chmod(0o700)
