"""Storing: a box's disk becomes a generation of an image."""

from __future__ import annotations

import logging
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from vmimagemanager import disks, keys, snapshots
from vmimagemanager.boxes import life, reach
from vmimagemanager.boxes.quiet import Quiet
from vmimagemanager.boxes.reach import LOGIN
from vmimagemanager.boxes.record import BoxRecord
from vmimagemanager.boxes.site import Site
from vmimagemanager.config import Channel, Firmware
from vmimagemanager.deadline import Stopwatch
from vmimagemanager.durable import occupied, require_space, translate_os_errors
from vmimagemanager.errors import BoxError, ImageError, ToolError, UsageError, VmimError
from vmimagemanager.guest.repair import new_token
from vmimagemanager.hypervisor.domain import Domain
from vmimagemanager.hypervisor.domainxml import DomainXml
from vmimagemanager.images import Image, chain, identities, look, seed
from vmimagemanager.images import manifest as manifests
from vmimagemanager.images.stage import stage
from vmimagemanager.leases import owner
from vmimagemanager.names import Address
from vmimagemanager.progress import Progress
from vmimagemanager.state import BoxFolder
from vmimagemanager.units import Size

FORMATS = ("qcow2", "raw")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be stored: under which name, in which of `FORMATS`, and of which snapshot (None: as it is now)."""

    image: str
    disk_format: str
    snapshot: str | None
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A generation that was stored, the disks that it does not hold, by their names, and the seconds of each phase."""

    image: Image
    left_out: tuple[str, ...]
    phases: dict[str, float]


def store(site: Site, record: BoxRecord, domain: Domain | None, wanted: Wanted, *, progress: Progress) -> Stored:
    """Make a box's first disk a new generation of an image; a guest that runs goes on running.

    What tells this box from others is taken out of the copy: see `images.identities`.  Where that cannot be done, a
    warning says so; whatever is left of it, a new box replaces at its first boot, so that the key of this one does not
    open it.  Raises BoxError, SnapshotError, ImageError, SpaceError; no generation is left then.
    """
    manifests.parse_name(wanted.image)
    if wanted.disk_format not in FORMATS:
        raise UsageError(f"'{wanted.disk_format}' is not a format of a stored disk: expected {' or '.join(FORMATS)}.")
    watch = Stopwatch()
    folder = site.state.box(record.name)
    progress("freezing the disk", 0.0)
    source = quiet_disk(site, record, domain, wanted.snapshot)
    watch.lap("snapshot")
    life.require_bases(site, source)
    with stage(site.state.path, purpose=f"storing '{record.name}' as '{wanted.image}'") as own:
        progress("copying the disk", 0.2)
        disk = own / "disk"
        with ThreadPoolExecutor(max_workers=1) as beside:
            packages = beside.submit(_packages, source, own)
            below = _copied(site, source, disk, wanted.disk_format)
            watch.lap("copy")
            progress("taking out the identity", 0.6)
            _make_nobodys(record, folder, disk, wanted.disk_format)
            if below is not None:
                disks.name_backing(disk, below.name)
        watch.lap("identity")
        progress("computing its digest", 0.7)
        described = _described(site, record, disk, wanted)
        image = site.images.publish(own, replace(described, packages=packages.result()))
        watch.lap("publish")
    progress("done", 1.0)
    _log.info("stored '%s' as '%s' in %.1f s", record.name, image.address, watch.total)
    return Stored(image=image, left_out=folder.disks[1:], phases=watch.phases)


def quiet_disk(site: Site, record: BoxRecord, domain: Domain | None, snapshot: str | None) -> Path:
    """Return a disk of the box that nobody writes to while the box is leased."""
    folder = site.state.box(record.name)
    if snapshot is not None:
        layer = folder.layer(snapshots.find(folder, snapshot).layer)
    elif domain is None:
        layer = folder.overlay
    else:
        layer = _frozen_now(site, record, domain)
    if chain.head(layer) is None:
        raise ImageError(f"The disk '{layer}' is damaged, or missing.", hint="vmimagemanager fsck")
    return layer


def _frozen_now(site: Site, record: BoxRecord, domain: Domain) -> Path:
    """Return the disk of a running guest as it is now: the layer that a snapshot leaves when it is removed.

    The snapshot has a hidden name, which the next operation on the box removes if we are killed.
    """
    reach.require_running(domain, record)
    folder = site.state.box(record.name)
    subject = life.subject(site, record)
    if subject.plant is None:
        raise BoxError(
            f"The guest of '{record.name}' runs, and cannot be asked to write out what it has in memory.",
            hint=f"vmimagemanager down {record.name}; or take a snapshot, and store that: --snapshot NAME",
        )
    snapshots.require_engine(subject, domain)
    quiet = Quiet(subject, record)
    hidden = f".store.{os.getpid()}"
    try:
        snapshots.take(quiet.subject, domain, hidden, token=new_token(), owner=owner(), description="")
        layer = folder.layer(snapshots.find(folder, hidden).layer)
    finally:
        left = site.domain(record.name)
        if left is not None:
            quiet.thaw(left)
        if folder.snapshot(hidden).path.exists():
            snapshots.remove(folder, hidden)
    return layer


def _make_nobodys(record: BoxRecord, folder: BoxFolder, disk: Path, disk_format: str) -> None:
    if record.settings.channel is not Channel.AGENT and not record.seed:
        _log.warning(
            "What tells '%s' from other boxes stays in the image that is stored of it: its guest has neither an agent "
            "nor a seed by which it could get another identity.",
            record.name,
        )
        return
    key = keys.load(folder.keys / LOGIN).public
    try:
        taken_out = identities.take_out(disk, disk.parent, disk_format=disk_format, login_keys=[key])
    except (ImageError, ToolError) as error:
        _log.warning("What tells '%s' from other boxes stays in the image that is stored of it: %s", record.name, error)
    else:
        _log.debug("taken out of the disk of '%s': %s", record.name, ", ".join(taken_out))


def _copied(site: Site, source: Path, target: Path, disk_format: str) -> Path | None:
    """Copy a disk as an overlay on the blob that it stands on, which is returned, or alone where that cannot be."""
    links = list(chain.walk(source))
    number = next((at for at, link in enumerate(links) if site.images.blob(link.name) == link), len(links))
    stays = disk_format == "qcow2" and _can_be_stood_on(links, number)
    above = links[:number] if stays else links
    needed = Size(sum(occupied(link).bytes for link in above))
    require_space(target.parent, needed, purpose="Storing the disk")
    if stays:
        disks.convert_above(source, target, links[number])
        return links[number]
    disks.convert(source, target, source_format="qcow2", target_format=disk_format)
    return None


def _can_be_stood_on(links: list[Path], number: int) -> bool:
    """Say whether a new generation can stand on the blob that is the link of this number."""
    if not 0 < len(links) - number < chain.LONGEST:
        return False
    lowest_of_ours = chain.head(links[number - 1])
    return lowest_of_ours is not None and lowest_of_ours.backing_format == "qcow2"


def _described(site: Site, record: BoxRecord, disk: Path, wanted: Wanted) -> Image:
    base = _image_of(site, record)
    boot = DomainXml.read(site.state.box(record.name).definition).boot
    uefi = Firmware.UEFI in (record.settings.firmware, base.firmware if base else None)
    return Image(
        name=wanted.image,
        generation=1,
        created=datetime.now(UTC).replace(microsecond=0),
        description=wanted.description or f"Stored from {_origin(record, wanted)}",
        architecture=base.architecture if base else "x86_64",
        disk=disk,
        disk_format=wanted.disk_format,
        disk_size=_size_of(disk, wanted.disk_format),
        kernel=_kept(site, boot.kernel, disk.with_name("kernel")),
        initrd=_kept(site, boot.initrd, disk.with_name("initrd")),
        command_line=boot.command_line,
        firmware="uefi" if uefi else "bios",
        agent=record.settings.channel is Channel.AGENT,
        user=record.user,
        seed=seed.NOCLOUD if record.seed else "",
        digests={},
        os=base.os if base else "",
        release=base.release if base else "",
        source=base.source if base else "",
        stored_from=_origin(record, wanted),
    )


def _size_of(disk: Path, disk_format: str) -> Size:
    found = chain.head(disk) if disk_format == "qcow2" else None
    return Size(found.size if found is not None else disk.stat().st_size)


def _packages(disk: Path, work: Path) -> dict[str, str]:
    """Return the packages that a disk holds, as far as they can be read from outside."""
    try:
        with look.opened(disk, work) as system:
            return system.packages()
    except VmimError as error:
        _log.info("the packages of '%s' are not known: %s", disk, error)
        return {}


def _origin(record: BoxRecord, wanted: Wanted) -> str:
    return record.name if wanted.snapshot is None else str(Address(record.name, wanted.snapshot))


def _image_of(site: Site, record: BoxRecord) -> Image | None:
    with suppress(VmimError):
        return site.images.get(record.image)
    return None


def _kept(site: Site, path: Path | None, target: Path) -> Path | None:
    """Return a file that is a blob already, or a copy of another one, which its owner could change."""
    if path is None or site.images.blob(path.name) == path:
        return path
    with translate_os_errors("copy", path):
        shutil.copyfile(path, target)
    return target
