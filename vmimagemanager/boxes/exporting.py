"""Writing a snapshot into an archive."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from vmimagemanager import disks, snapshots
from vmimagemanager.boxes import archive
from vmimagemanager.boxes.archive import Origin
from vmimagemanager.boxes.record import BoxRecord
from vmimagemanager.boxes.site import Site
from vmimagemanager.config import Engine, Firmware
from vmimagemanager.deadline import Stopwatch
from vmimagemanager.durable import new_file, occupied, require_space
from vmimagemanager.errors import StateError
from vmimagemanager.hypervisor.domainxml import DomainXml
from vmimagemanager.images.stage import stage
from vmimagemanager.names import Address
from vmimagemanager.progress import Progress
from vmimagemanager.snapshots import Manifest, parcel
from vmimagemanager.state import BoxFolder, SnapshotFolder
from vmimagemanager.units import Size

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """An archive that was written: of which engine's snapshot, its size, and the seconds that it took."""

    path: Path
    engine: Engine
    size: Size
    seconds: float


def export(site: Site, record: BoxRecord, name: str, target: Path, *, progress: Progress) -> Exported:
    """Write a snapshot to the archive ``target``, which only its owner can read, while the box goes on running.

    It holds the guest's memory and the box's keys, hence every secret in them.  Raises SnapshotError, StateError when
    there is a file already, or SpaceError; no archive is left then.
    """
    watch = Stopwatch()
    folder = site.state.box(record.name)
    manifest, snapshot = snapshots.find(folder, name), folder.snapshot(name)
    if target.exists() or target.is_symlink():
        raise StateError(f"There is a file '{target}' already.", hint="Choose another name, or remove it.")
    snapshots.require_whole(folder, manifest)
    definition = DomainXml.read(snapshot.definition)
    frozen = [folder.layer(manifest.layer, disk) for disk in manifest.disks]
    chains = sum(disks.info(link).actual_size.bytes for top in frozen for link in disks.chain(top))
    require_space(site.state.path, Size(chains), purpose="The flattened disk")
    require_space(target.parent, Size(chains + occupied(snapshot.path).bytes), purpose=f"The archive '{target.name}'")
    with stage(site.state.path, purpose=f"exporting '{Address(record.name, name)}'") as own:
        progress("flattening the disk", 0.0)
        for layer, disk in zip(frozen, manifest.disks, strict=True):
            disks.convert(layer, own / archive.disk_member(disk), source_format="qcow2")
        files = _files(folder, snapshot, definition, _disks(own, manifest))
        settings = replace(
            record.settings,
            user=record.user,
            firmware=Firmware.UEFI if archive.NVRAM in files else Firmware.BIOS,
            tpm=any(member.startswith(archive.TPM) for member in files),
        )
        about = Origin.of(
            record,
            name,
            settings=settings,
            command_line=definition.boot.command_line,
            seeded=definition.seed is not None,
        )
        with new_file(target) as stream:
            parcel.write(stream, about.to_record(), files, progress)
    _log.info("exported '%s' in %.1f s", Address(record.name, name), watch.total)
    return Exported(path=target, engine=manifest.engine, size=Size(target.stat().st_size), seconds=watch.total)


def _disks(own: Path, manifest: Manifest) -> dict[str, Path]:
    return {member: own / member for member in map(archive.disk_member, manifest.disks)}


def _files(
    folder: BoxFolder, snapshot: SnapshotFolder, definition: DomainXml, flattened: dict[str, Path]
) -> dict[str, Path]:
    """Return what goes into the archive, by the names that it gets there: what memory needs last."""
    before = (archive.MANIFEST, archive.DEFINITION)
    after = (archive.NVRAM, *_tpm(snapshot), archive.STATE, archive.RAM, archive.SAVED)
    places = {
        **{member: snapshot.path / member.removeprefix(archive.SNAPSHOT) for member in before},
        **{member: folder.path / member for member in archive.KEYS},
        archive.KERNEL: definition.boot.kernel,
        archive.INITRD: definition.boot.initrd,
        **flattened,
        **{member: snapshot.path / member.removeprefix(archive.SNAPSHOT) for member in after},
    }
    return {member: place for member, place in places.items() if place is not None and place.exists()}


def _tpm(snapshot: SnapshotFolder) -> list[str]:
    found = sorted(snapshot.tpm.iterdir()) if snapshot.tpm.exists() else []
    return [member for path in found if archive.belongs(member := f"{archive.TPM}{path.name}")]
