"""Archiving the files of a box, and putting them back: its file system without its disk."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vmimagemanager import snapshots
from vmimagemanager.boxes import life, offline, storing
from vmimagemanager.boxes.record import BoxRecord
from vmimagemanager.boxes.site import Site
from vmimagemanager.deadline import Stopwatch
from vmimagemanager.errors import BoxError, TransferError
from vmimagemanager.files import formats
from vmimagemanager.files.formats import Format
from vmimagemanager.hypervisor.domain import Domain
from vmimagemanager.images.archives import Archive, ArchiveStore
from vmimagemanager.names import Address
from vmimagemanager.progress import Progress
from vmimagemanager.state import FIRST_DISK
from vmimagemanager.units import Size

_log = logging.getLogger(__name__)
_TOLD = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be archived: under which name, in which format, and of which snapshot (None: as it is now)."""

    name: str
    format: Format
    snapshot: str | None
    description: str


def store(site: Site, record: BoxRecord, domain: Domain | None, wanted: Wanted, *, progress: Progress) -> Archive:
    """Archive the root file system of a box as a new generation; a guest that runs goes on running.

    Raises BoxError when no file system is found that is known, ImageError, SpaceError; no generation is left then.
    """
    watch = Stopwatch()
    archives = ArchiveStore(site.state.path)
    archives.require_name(wanted.name)
    progress("freezing the disk", None)
    disk = storing.quiet_disk(site, record, domain, wanted.snapshot)
    life.require_bases(site, disk)

    def make(target: Path) -> Size:
        count = 0

        def told(read: int) -> None:
            nonlocal count
            if read // _TOLD != count // _TOLD:
                progress(f"archiving, {Size(read).human()}", None)
            count = read

        def keep(stream: BinaryIO) -> None:
            formats.keep(stream, wanted.format, target, told)

        progress("starting the appliance", None)
        offline.archive(site, record, disk, keep)
        progress("computing the digest", None)
        return Size(count)

    stored_from = record.name if wanted.snapshot is None else str(Address(record.name, wanted.snapshot))
    description = wanted.description or f"Files of {stored_from}"
    archive = archives.keep(wanted.name, wanted.format, make, stored_from=stored_from, description=description)
    _log.info("archived '%s' as '%s' in %.1f s", stored_from, archive.address, watch.total)
    return archive


def is_archive(site: Site, address: str) -> bool:
    """Tell whether there is an archive of files at an address, as there may be an image."""
    return ArchiveStore(site.state.path).has(address)


def put_back(site: Site, record: BoxRecord, address: str, progress: Progress) -> Archive:
    """Give a box a fresh disk with the files of an archive on it, and nothing else; the box is off then.

    The disk is that of the box's image, with its partitions and its boot loader; only its root file system is made
    anew.  Snapshots stay.  Raises ImageError for an archive that was altered, BoxError, SpaceError; the box is as it
    was then, and it goes on running until its new disk is ready.
    """
    watch = Stopwatch()
    archives = ArchiveStore(site.state.path)
    archive = archives.get(address)
    base = Path(record.base)
    if not base.exists():
        raise BoxError(
            f"The box '{record.name}' cannot get a new disk: its base '{base}' is gone.",
            hint="vmimagemanager image list",
        )
    progress("comparing the digest", 0.05)
    archives.verify(archive)
    progress("putting the files back", 0.2)

    def feed(stream: BinaryIO) -> None:
        formats.send(archive.path, archive.format, stream)

    try:
        disk = offline.filled(site, record, feed)
    except TransferError as error:
        raise BoxError(error.message, hint=error.hint, detail=error.detail) from error
    folder = site.state.box(record.name)
    life.kill(site, record)
    snapshots.put_in_place({FIRST_DISK: disk}, folder)
    snapshots.sweep(folder)
    progress("done", 1.0)
    _log.info("put '%s' back onto '%s' in %.1f s", archive.address, record.name, watch.total)
    return archive
