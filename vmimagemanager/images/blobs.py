"""Immutable files under the digest of their content."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from vmimagemanager.durable import fsync_path, make_folder, occupied, remove_tree, translate_os_errors
from vmimagemanager.errors import ImageError
from vmimagemanager.images.seals import Seals, digest_of
from vmimagemanager.units import Size

__all__ = ["Blobs", "digest_of"]


class Blobs:
    """The folder ``blobs/sha512`` of a state directory: mode 0444, named by digest, never changed.

    QEMU of system mode runs as another user and must be able to read them, hence 0444 in folders of 0755.
    """

    def __init__(self, state: Path) -> None:
        self._folder = state / "blobs" / "sha512"
        self.seals = Seals(state)

    def path(self, digest: str) -> Path:
        """Return where the file with this digest is, or would be."""
        return self._folder / digest

    def keep(self, staged: Path, digest: str) -> Path:
        """Move a staged file of the same file system in, durably, or drop it when its content is here already.

        A file of that name whose content is another one by now is replaced; who has it open keeps that.
        """
        target = self.path(digest)
        if staged == target:
            return target
        make_folder(make_folder(self._folder.parent) / self._folder.name)
        if self._is_whole(digest):
            with translate_os_errors("remove", staged):
                staged.unlink()
            return target
        with translate_os_errors("protect", staged):
            staged.chmod(0o444)
        fsync_path(staged)
        with translate_os_errors("publish", target):
            staged.replace(target)
            fsync_path(target.parent)
        self.seals.close(target)
        return target

    def holds(self, path: Path) -> bool:
        """Say whether a file is one of these blobs."""
        return path.parent == self._folder

    def verify(self, digest: str) -> None:
        """Raise ImageError when the file with this digest is missing or has other content; all of it is read."""
        self.seals.require(self.path(digest), read=True)

    def _is_whole(self, digest: str) -> bool:
        try:
            self.seals.require(self.path(digest))
        except ImageError:
            return False
        return True

    def unneeded(self, needed: Collection[str]) -> tuple[Path, ...]:
        """Return every blob whose digest is not needed."""
        if not self._folder.is_dir():
            return ()
        return tuple(sorted(path for path in self._folder.iterdir() if path.name not in needed))

    def sweep(self, needed: Collection[str]) -> Size:
        """Remove every blob whose digest is not needed and return how much space that gave."""
        freed = 0
        for path in self.unneeded(needed):
            freed += occupied(path).bytes
            remove_tree(path)
            self.seals.forget(path.name)
        return Size(freed)
