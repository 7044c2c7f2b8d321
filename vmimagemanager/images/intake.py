"""Disks of others, taken in: whatever the format, what comes out is a qcow2 that stands alone.

What is looked at is a copy in our own stage, which its owner can no longer exchange.  Its header is read here before
qemu-img sees it, and qemu-img runs with limits: it could be made to take all memory, all time or the whole disk.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vmimagemanager import disks
from vmimagemanager.durable import free_space, require_space, translate_os_errors
from vmimagemanager.errors import ImageError, SpaceError
from vmimagemanager.images import appliance, foreign, rootfs
from vmimagemanager.images.blobs import digest_of
from vmimagemanager.images.catalogue import DISK_SIZE
from vmimagemanager.images.filesystem import FileSystem
from vmimagemanager.images.packages import installed_packages
from vmimagemanager.images.unpacking import compression
from vmimagemanager.progress import Progress, silent
from vmimagemanager.units import Size

FORMATS = (*foreign.NAMES, "ova", "tar")

# What an import leaves free of the disk, so that boxes that run can go on writing.
_LARGEST_SMALL = 4 << 20
_RESERVE = Size(1 << 30)
_NAMESPACE = uuid.UUID("5c9d6f5b-0a5e-4f0e-9c59-6e0c0e6c7a51")


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenIn:
    """A disk that stands alone; what boots it, and Debian's packages, where they could be read out of it."""

    disk: Path
    disk_size: Size
    kernel: Path | None = None
    initrd: Path | None = None
    packages: dict[str, str]


def copied(source: Path, stage: Path) -> Path:
    """Copy a file of the user's into the stage, and return the copy."""
    if not source.is_file():
        raise ImageError(f"The disk image '{source}' does not exist, or is not a file.")
    if source.stat().st_size > foreign.LARGEST.bytes:
        raise ImageError(
            f"'{source}' is {Size(source.stat().st_size).human()} large, and disks of up to "
            f"{foreign.LARGEST.human()} are taken in."
        )
    copy = stage / "source"
    require_space(stage, Size(source.stat().st_blocks * 512), purpose=f"Copying '{source}'")
    disks.copy(source, copy)
    return copy


def small_file(path: Path) -> bytes:
    """Return the content of a small file of the user's, such as a list of checksums."""
    with translate_os_errors("read", path):
        if not path.is_file() or path.stat().st_size > _LARGEST_SMALL:
            raise ImageError(f"'{path}' is no file, or larger than {Size(_LARGEST_SMALL).human()}.")
        return path.read_bytes()


def take_in(
    source: Path,
    stage: Path,
    *,
    named: str,
    file_format: str | None = None,
    disk_size: Size = DISK_SIZE,
    boots: bool = True,
    progress: Progress = silent,
) -> TakenIn:
    """Make a disk of the file ``source``, which lies in ``stage`` and is removed; ``named`` is what messages call it.

    ``disk_size`` is that of the file system that is made of a tar; with ``boots`` a kernel has to be in it.  Raises
    ImageError for what is damaged, of another format, unreasonably large, or names other files; SpaceError; ToolError.
    """
    found = file_format if file_format is not None else _detected(source, named)
    if found not in FORMATS:
        raise ImageError(f"'{found}' is not a format that is taken in: expected one of {', '.join(FORMATS)}.")
    if found == "tar":
        return _of_tar(source, stage, named=named, disk_size=disk_size, boots=boots, progress=progress)
    if found == "ova":
        progress("taking the disk out of the appliance", 0.6)
        disk = stage / "appliance-disk"
        appliance.take_out(source, disk, named=named)
        source.unlink()
        source, found = disk, foreign.detect(disk) or ""
        if not found:
            raise ImageError(f"The disk of the appliance '{named}' is of no known format.")
    progress(f"looking at the {found} image", 0.65)
    size = foreign.virtual_size(source, found, named=named)
    progress("writing the disk image", 0.7)
    disk = _converted(source, stage, found, size, named=named)
    return TakenIn(disk=disk, disk_size=disks.info(disk).virtual_size, packages={})


def _detected(source: Path, named: str) -> str:
    found = foreign.detect(source)
    if found is not None:
        return found
    with source.open("rb") as stream:
        head = stream.read(512)
    if compression(head) is not None:
        return "tar"
    if head[257:262] == b"ustar":
        name = head[:100].partition(b"\0")[0]
        return "ova" if name.endswith(appliance.DESCRIPTION.encode()) else "tar"
    raise ImageError(
        f"'{named}' cannot be recognised as a disk image of any format.",
        hint="A raw disk image must be called one, because what a guest writes into it can look like anything: "
        "format 'raw'.",
    )


def _of_tar(source: Path, stage: Path, *, named: str, disk_size: Size, boots: bool, progress: Progress) -> TakenIn:
    progress("reading the archive", 0.6)
    identity = uuid.uuid5(_NAMESPACE, f"{disk_size.bytes} {digest_of(source)}")
    wanted = FileSystem(size=disk_size, uuid=str(identity), epoch=1)
    taken = rootfs.take_in(source, stage, named=named, wanted=wanted, boots=boots)
    source.unlink()
    progress("writing the disk image", 0.85)
    return TakenIn(
        disk=_converted(taken.disk, stage, "raw", disk_size, named=named),
        disk_size=disk_size,
        kernel=taken.kernel,
        initrd=taken.initrd,
        packages=installed_packages(taken.status),
    )


def _converted(source: Path, stage: Path, disk_format: str, size: Size, *, named: str) -> Path:
    with _said_of(source, named):
        if disks.info(source, disk_format=disk_format, foreign=True).virtual_size.bytes - size.bytes not in range(512):
            raise ImageError(f"'{named}' is damaged: it says two sizes of its disk.")
        # A small file can hold a large disk: compressed, or the same block many times.
        needed, free = disks.measure(source, disk_format=disk_format), free_space(stage)
    if needed.bytes > free.bytes - _RESERVE.bytes:
        raise SpaceError(
            f"The disk in '{named}' takes up to {needed.human()}, and {free.human()} are free in '{stage.parent}', of "
            f"which {_RESERVE.human()} stay free.",
            hint="Remove snapshots or images that nobody needs: 'vmimagemanager image list'.",
        )
    target = stage / "disk.qcow2"
    with _said_of(source, named):
        if disk_format == "qcow2":
            disks.check(source, foreign=True)
        disks.convert(source, target, source_format=disk_format, at_most=needed)
    source.unlink()
    return target


@contextmanager
def _said_of(path: Path, named: str) -> Iterator[None]:
    try:
        yield
    except ImageError as error:  # it names our copy, which nobody knows
        raise ImageError(error.message.replace(str(path), named), hint=error.hint, detail=error.detail) from error
