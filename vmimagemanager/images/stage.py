"""Folders for work in progress: each is owned by a lock, and what a killed process left is swept by the next one.

``stage/images/<token>/lock`` is held as long as its process lives.  ``stage/images/lock`` is held for the moment in
which a folder is made and its lock taken, and while stale ones are looked for, so that nobody sweeps a folder whose
owner has not locked it yet.  ``<token>/outside``, where there is one, is a symbolic link to a folder in /var/tmp that
belongs to the stage: what a build needs when other user ids cannot reach the state directory.
"""

from __future__ import annotations

import logging
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from vmimagemanager.durable import make_folder, occupied, remove_tree, translate_os_errors
from vmimagemanager.errors import StateError
from vmimagemanager.locks import FileLock
from vmimagemanager.units import Size

_log = logging.getLogger(__name__)
_LIMIT = timedelta(minutes=2)
_OUTSIDE = Path("/var/tmp")  # noqa: S108 - the name below it is random and made with mkdir
_PREFIX = "vmimagemanager-stage-"

Remover = Callable[[Path], None]


@contextmanager
def stage(state: Path, *, purpose: str, remove: Remover = remove_tree) -> Iterator[Path]:
    """Make a folder for one piece of work, and remove it with all that is in it at the end, however that comes.

    ``remove`` removes trees, also those whose files belong to other user ids.
    """
    folder = make_folder(make_folder(state / "stage") / "images")
    guard = FileLock(folder / "lock", purpose=purpose)
    guard.acquire(_LIMIT)
    try:
        _swept(folder, remove)
        own = make_folder(folder / secrets.token_hex(8))
        lock = FileLock(own / "lock", purpose=purpose)
        lock.try_acquire()
    finally:
        guard.release()
    try:
        yield own
    finally:
        _remove(own, remove)
        lock.release()


def reachable_folder(own: Path) -> Path:
    """Make a folder of the stage ``own`` that every user id can reach and write to, and return it.

    It is inside the stage, or in /var/tmp when a folder above the stage is closed to others (a home of mode 0700).
    """
    if all(parent.stat().st_mode & stat.S_IXOTH for parent in (own, *own.resolve().parents)):
        place = own / "reachable"
    else:
        place = _OUTSIDE / f"{_PREFIX}{os.getuid()}-{secrets.token_hex(8)}"
        with translate_os_errors("link", own / "outside"):
            (own / "outside").symlink_to(place)  # before the folder exists: a kill between the two leaks nothing
    with translate_os_errors("make the folder", place):
        place.mkdir(mode=0o700)
        place.chmod(0o1777)
    return place


def stale(state: Path, *, remove: Remover | None) -> Sequence[tuple[Path, Size]]:
    """Return the stages whose owners are gone, with what they take on the disk, and ``remove`` them when it is given.

    What cannot be removed is left, with a warning.
    """
    folder = state / "stage" / "images"
    if not folder.is_dir():
        return ()
    guard = FileLock(folder / "lock", purpose="looking for stale stages")
    guard.acquire(_LIMIT)
    try:
        return _swept(folder, remove)
    finally:
        guard.release()


def _swept(folder: Path, remove: Remover | None) -> Sequence[tuple[Path, Size]]:
    found = []
    for entry in folder.iterdir():
        if not entry.is_dir() or entry.is_symlink():
            continue
        lock = FileLock(entry / "lock")
        try:
            if lock.try_acquire():
                found.append((entry, occupied(entry)))
                if remove is not None:
                    _log.info("removing what an interrupted build left in '%s'", entry)
                    _remove(entry, remove)
        except StateError as error:
            _log.warning("what an interrupted build left cannot be removed: %s", error)
        finally:
            lock.release()
    return found


def _remove(own: Path, remove: Remover) -> None:
    link = own / "outside"
    if link.is_symlink():
        place = link.readlink()
        # Believed only as far as it could have been made above: others may write in a shared state directory.
        if place.parent == _OUTSIDE and place.name.startswith(_PREFIX) and _is_own_folder(place):
            remove(place)
    remove(own)


def _is_own_folder(place: Path) -> bool:
    try:
        status = place.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
