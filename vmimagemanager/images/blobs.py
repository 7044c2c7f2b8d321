"""Immutable files under the digest of their content."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path

from vmimagemanager.durable import make_folder, occupied, publish, remove_tree, translate_os_errors
from vmimagemanager.errors import ImageError
from vmimagemanager.units import Size


class Blobs:
    """The folder ``blobs/sha512`` of a state directory: mode 0444, named by digest, never changed.

    QEMU of system mode runs as another user and must be able to read them, hence 0444 in folders of 0755.
    """

    def __init__(self, state: Path) -> None:
        self._folder = state / "blobs" / "sha512"

    def path(self, digest: str) -> Path:
        """Return where the file with this digest is, or would be."""
        return self._folder / digest

    def keep(self, staged: Path, digest: str) -> Path:
        """Move a staged file of the same file system in, durably, or drop it when its content is here already."""
        target = self.path(digest)
        make_folder(make_folder(self._folder.parent) / self._folder.name)
        if target.exists():
            staged.unlink()
            return target
        with translate_os_errors("protect", staged):
            staged.chmod(0o444)
        publish(staged, target)
        return target

    def verify(self, digest: str) -> None:
        """Raise ImageError when the file with this digest is missing or has other content."""
        path = self.path(digest)
        hint = "Build the image again ('vmimagemanager image build'): boxes made of a damaged one cannot be trusted."
        if not path.exists():
            raise ImageError(f"The blob '{path}' is missing.", hint=hint)
        if digest_of(path) != digest:
            raise ImageError(f"The blob '{path}' has not the content that its name says: it is damaged.", hint=hint)

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
        return Size(freed)


def digest_of(path: Path) -> str:
    """Return the SHA-512 of a file's content in hexadecimal."""
    with translate_os_errors("read", path), path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha512").hexdigest()
