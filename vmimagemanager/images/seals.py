"""Whether a blob is still what its name says, without reading it each time.

Once on a host the whole content is compared with the digest that names it; then ``cache/sealed/<digest>`` keeps the
file's size, time of last modification and inode number.  From then on a look at these three is enough, as long as none
of them differs: whatever truncates, writes or replaces the file changes one.  When one differs the content is read once
more, and decides.  What is not noticed is a file that was altered by somebody who put its time back, and a disk that
lies: ``fsck --images`` reads everything.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from vmimagemanager import records
from vmimagemanager.deadline import Stopwatch
from vmimagemanager.durable import make_folder, remove_tree, translate_os_errors
from vmimagemanager.errors import ImageError, SpaceError, StateError

FORMAT = 1
HINT = (
    "Boxes made of it cannot be trusted. Build, import or pull the same image again, which puts the file in its place, "
    "or restore it from a backup; 'vmimagemanager fsck --images' reads all of them."
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What tells a file from one that was written to or replaced."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def at(cls, path: Path) -> Look:
        with translate_os_errors("look at", path):
            return cls.of(path.stat())

    @classmethod
    def of(cls, status: os.stat_result) -> Look:
        return cls(size=status.st_size, mtime_ns=status.st_mtime_ns, inode=status.st_ino)


class Seals:
    """The folder ``cache/sealed`` of a state directory; it can be removed at any time, and is made anew."""

    def __init__(self, state: Path) -> None:
        self._folder = state / "cache" / "sealed"

    def close(self, path: Path) -> None:
        """Keep what a blob looks like whose content was just compared with its name."""
        self._keep(path.name, Look.at(path))

    def intact(self, path: Path) -> bool:
        """Say whether a blob looks as it did when its content was compared with its name; it is not read."""
        return self._known(path.name) == Look.at(path)

    def require(self, path: Path, *, read: bool = False) -> None:
        """Raise ImageError when a blob is missing or was changed; with ``read`` its content is compared in any case."""
        if not path.is_file():
            raise ImageError(f"The blob '{path}' is missing.", hint=HINT)
        if not read and self.intact(path):
            return
        watch, before = Stopwatch(), Look.at(path)
        found = digest_of(path)
        _log.info("read the blob '%s' in %.1f s", path.name[:16], watch.total)
        if found != path.name or Look.at(path) != before:
            known = self._known(path.name)
            remove_tree(self._folder / path.name)
            raise ImageError(f"The blob '{path}' is damaged: {_reason(known, before)}.", hint=HINT)
        self._keep(path.name, before)

    def forget(self, digest: str) -> None:
        """Forget a blob that was removed."""
        remove_tree(self._folder / digest)

    def _known(self, digest: str) -> Look | None:
        path = self._folder / digest
        if not path.exists():
            return None
        try:
            record = records.read(path, version=FORMAT)
            return Look(size=record["size"], mtime_ns=record["mtime-ns"], inode=record["inode"])
        except (StateError, KeyError):  # it can be found out again
            return None

    def _keep(self, digest: str, look: Look) -> None:
        cache = make_folder(self._folder.parent)
        try:
            make_folder(self._folder, mode=stat.S_IMODE(cache.stat().st_mode))
            record = {"size": look.size, "mtime-ns": look.mtime_ns, "inode": look.inode}
            records.write(self._folder / digest, record, version=FORMAT)
        except (SpaceError, StateError) as error:  # another admin's, or full: the next one reads the blob again
            _log.debug("what the blob looks like is not kept: %s", error)


def digest_of(path: Path) -> str:
    """Return the SHA-512 of a file's content in hexadecimal."""
    with translate_os_errors("read", path), path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha512").hexdigest()


def _reason(known: Look | None, found: Look) -> str:
    if known is None:
        return "its content is not what its name says"
    if found.size != known.size:
        return f"it has {found.size} bytes, and had {known.size}"
    if found.mtime_ns != known.mtime_ns:
        return "it was written to, and its content is not what its name says any more"
    return "its content is not what its name says any more"
