"""How two images differ: in their packages, and in the files of their file systems."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vmimagemanager.images import look
from vmimagemanager.images.look import File
from vmimagemanager.images.manifest import Image
from vmimagemanager.images.store import ImageStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Names that the second image has alone, that the first one has alone, and that both have but not the same of."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How ``after`` differs from ``before``, both addresses.

    ``packages`` maps each name that differs to its versions in the two, None where it is not installed; it is None when
    the packages of one of them are not known.  ``files`` is None when they were not asked for.  A file is another one
    when its kind, mode, owner, size, time of last change or link target differs.
    """

    before: str
    after: str
    packages: Mapping[str, tuple[str | None, str | None]] | None
    files: Changes | None


def compare(store: ImageStore, before: Image, after: Image, *, files: bool) -> Difference:
    """Compare two images; with ``files`` both file systems are read, without being mounted.

    Raises ImageError for an image that was changed, or whose file system cannot be read from outside.
    """
    packages = None
    if before.packages and after.packages:
        packages = {
            name: versions
            for name in sorted({*before.packages, *after.packages})
            if (versions := (before.packages.get(name), after.packages.get(name)))[0] != versions[1]
        }
    changes = None
    if files:
        for image in (before, after):
            store.require_whole(image)
        with store.stage("comparing two images") as work:
            changes = _changes(_files(before, work), _files(after, work))
    return Difference(before=before.address, after=after.address, packages=packages, files=changes)


def _files(image: Image, work: Path) -> dict[bytes, File]:
    with look.opened(image.disk, work, disk_format=image.disk_format) as system:
        return system.files()


def _changes(before: Mapping[bytes, File], after: Mapping[bytes, File]) -> Changes:
    return Changes(
        added=_names(after.keys() - before.keys()),
        removed=_names(before.keys() - after.keys()),
        changed=_names({path for path in before.keys() & after.keys() if before[path] != after[path]}),
    )


def _names(paths: set[bytes]) -> tuple[str, ...]:
    return tuple(path.decode("utf-8", "surrogateescape") for path in sorted(paths))
