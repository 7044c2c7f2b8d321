"""Snapshots that travel: one archive with everything that a snapshot needs, and a box made of one.

An archive holds, in this order, what `MEMBERS` names; which of them are there depends on the snapshot.  QEMU trusts the
memory that it reads, and libvirt the definition: neither is used unless the user trusts the archive's maker.  Disk,
kernel and initrd are data of a guest, which nobody trusts anyway.
"""

from __future__ import annotations

import logging
import re
import secrets
import uuid
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from vmimagemanager import disks, keys, names, snapshots
from vmimagemanager.boxes import define, making
from vmimagemanager.boxes.reach import HOST, LOGIN
from vmimagemanager.boxes.record import BoxRecord
from vmimagemanager.boxes.site import Site
from vmimagemanager.config import BoxSettings, Engine
from vmimagemanager.deadline import Stopwatch
from vmimagemanager.durable import (
    make_folder,
    new_file,
    occupied,
    remove_tree,
    replace_file,
    require_space,
    translate_os_errors,
)
from vmimagemanager.errors import BoxError, HypervisorError, ImageError, SnapshotError, StateError, UsageError
from vmimagemanager.hypervisor import accelerator, launch
from vmimagemanager.hypervisor.domainxml import DomainXml
from vmimagemanager.hypervisor.ramfile import RamFile
from vmimagemanager.images import Image
from vmimagemanager.images.stage import stage
from vmimagemanager.names import Address
from vmimagemanager.progress import Progress
from vmimagemanager.snapshots import Manifest, parcel, seal
from vmimagemanager.snapshots.parcel import Parcel
from vmimagemanager.snapshots.platform import Platform
from vmimagemanager.state import BoxFolder, SnapshotFolder
from vmimagemanager.units import Size

_log = logging.getLogger(__name__)

MANIFEST, DEFINITION = "snapshot/manifest.toml", "snapshot/domain.xml"
KEYS = tuple(f"keys/{kind}/{file}" for kind in (LOGIN, HOST) for file in (keys.PUBLIC, keys.PRIVATE))
KERNEL, INITRD, DISK = "kernel", "initrd", "disk.qcow2"
RAM = "snapshot/ram"
MEMORY = ("snapshot/state", RAM, "snapshot/saved")  # the snapshot folder's other files
MEMBERS = (MANIFEST, DEFINITION, *KEYS, KERNEL, INITRD, DISK, *MEMORY)
_NEEDED = {MANIFEST, DEFINITION, *KEYS, DISK}
_HARMLESS = {MANIFEST, KERNEL, INITRD, DISK}
_NEEDED_BY = {Engine.LIVE: {"snapshot/state", RAM}, Engine.SAVED: {"snapshot/saved"}, Engine.DISK: set()}
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.ASCII)
_SMALL = Size(1 << 20)
_IMPORTED = "Imported from"
# Hooks, XML and stylesheets are files and commands of the host: they stay there.
_SETTINGS = ("description", "ram", "cpus", "network", "user", "boot-timeout", "down-timeout", "ssh-timeout")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """An archive that was written: of which engine's snapshot, its size, and the seconds that it took."""

    path: Path
    engine: Engine
    size: Size
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A box that was made of an archive, with one snapshot; ``image`` is the generation that its disk became."""

    box: str
    snapshot: str
    engine: Engine
    image: str
    seconds: float

    @property
    def address(self) -> Address:
        return Address(self.box, self.snapshot)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Origin:
    """What an archive says of the box that it comes from; checked, not trusted."""

    box: str
    snapshot: str
    uuid: str
    mac: str
    command_line: str
    settings: BoxSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unpacked:
    """What came out of an archive: the snapshot's manifest and, of a trusted one, its definition."""

    manifest: Manifest
    frozen: DomainXml | None


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
    if len(definition.disks()) != 1:
        raise SnapshotError(
            f"The box '{record.name}' has {len(definition.disks())} disks, and a box with one can be exported.",
            hint="Copy the other disks by other means, and take a snapshot of a box without them.",
        )
    for path, what in ((snapshot.nvram, "variables of its UEFI firmware"), (snapshot.tpm, "a TPM's state")):
        if path.exists():
            raise SnapshotError(
                f"The snapshot '{Address(record.name, name)}' cannot be exported: archives do not hold {what}.",
                hint="A box with --firmware bios and without --tpm can be exported.",
            )
    chain = sum(disks.info(link).actual_size.bytes for link in disks.chain(folder.layer(manifest.layer)))
    require_space(site.state.path, Size(chain), purpose="The flattened disk")
    require_space(target.parent, Size(chain + occupied(snapshot.path).bytes), purpose=f"The archive '{target.name}'")
    with stage(site.state.path, purpose=f"exporting '{Address(record.name, name)}'") as own:
        progress("flattening the disk", 0.0)
        disk = own / "disk.qcow2"
        disks.convert(folder.layer(manifest.layer), disk, source_format="qcow2")
        files = _files(folder, snapshot, definition, disk)
        about = {
            "created": datetime.now(UTC).replace(microsecond=0),
            "box": record.name,
            "snapshot": name,
            "uuid": record.uuid,
            "mac": record.mac,
            "command-line": definition.boot.command_line,
            "settings": {key: value for key, value in record.settings.to_record().items() if key in _SETTINGS},
        }
        with new_file(target) as stream:
            parcel.write(stream, about, files, progress)
    _log.info("exported '%s' in %.1f s", Address(record.name, name), watch.total)
    return Exported(path=target, engine=manifest.engine, size=Size(target.stat().st_size), seconds=watch.total)


def origin(archive: Parcel) -> str:
    """Return the name of the box that an archive comes from."""
    return _origin(archive).box


def receive(site: Site, archive: Parcel, name: str, *, trust: bool, progress: Progress) -> Imported:
    """Make the box ``name``, which the caller leases, of an archive; on failure nothing of it is left.

    With ``trust`` memory, definition and keys come in, too, and the snapshot is what it was.  Otherwise the box is
    defined anew on the disk, and the snapshot is one of a box that is off.

    Raises SnapshotError for an archive that is damaged or that this host cannot run, BoxError when the name is taken,
    ImageError for a disk that is none, SpaceError.
    """
    watch = Stopwatch()
    about = _origin(archive)
    if site.taken(name):
        raise BoxError(
            f"There is a box, or a domain of libvirt's, '{name}' already.",
            hint="Give the imported one another name: snapshot-import --as NAME",
        )
    for entry in site.state.boxes.glob(f".{name}.*"):  # of an import that was killed
        if entry.name.removeprefix(f".{name}.").isdecimal():
            remove_tree(entry)
    _refuse_foreign_image(site, name)
    sizes = {member.name: member.size for member in archive.members}
    needed = Size(sum(sizes.values()) + 2 * sizes[DISK])
    require_space(site.state.path, needed, purpose=f"Importing '{name}'")
    with stage(site.state.path, purpose=f"importing '{name}'") as own:
        unpacked = _unpack(site, archive, own, about, trust=trust, progress=progress)
        progress("taking in the disk", 0.8)
        image = _image(site, own, about, name)
        try:
            progress("defining the box", 0.95)
            with site.images.locked():
                _make(site, own, about, unpacked, image=image, name=name)
        except BaseException:
            if not site.state.box(name).path.exists():
                with suppress(ImageError):  # somebody has made a box of it meanwhile
                    site.images.remove(image.address, used_by=lambda: define.blobs_in_use(site))
            raise
    progress("done", 1.0)
    manifest = unpacked.manifest
    _log.info("imported '%s' in %.1f s", Address(name, manifest.name), watch.total)
    engine = manifest.engine if trust else Engine.DISK
    return Imported(box=name, snapshot=manifest.name, engine=engine, image=image.address, seconds=watch.total)


def _files(folder: BoxFolder, snapshot: SnapshotFolder, definition: DomainXml, disk: Path) -> dict[str, Path]:
    places = {
        KERNEL: definition.boot.kernel,
        INITRD: definition.boot.initrd,
        DISK: disk,
        **{key: folder.path / key for key in KEYS},
    }
    places |= {member: _place(snapshot, member) for member in (MANIFEST, DEFINITION, *MEMORY)}
    found = ((member, places[member]) for member in MEMBERS)
    return {member: place for member, place in found if place is not None and place.exists()}


def _place(snapshot: SnapshotFolder, member: str) -> Path:
    return snapshot.path / member.removeprefix("snapshot/")


def _origin(archive: Parcel) -> _Origin:
    record, members = archive.record, [member.name for member in archive.members]
    if members != [name for name in MEMBERS if name in members] or not set(members) >= _NEEDED:
        raise _malformed("it does not have the members of a snapshot, in their order")
    if any(member.size > _SMALL.bytes for member in archive.members if member.name in (MANIFEST, DEFINITION, *KEYS)):
        raise _malformed("one of its records is too large")
    try:
        settings = {key: value for key, value in record["settings"].items() if key in _SETTINGS}
        found = _Origin(
            box=names.box_name(record["box"]),
            snapshot=names.snapshot_name(record["snapshot"]),
            uuid=str(uuid.UUID(record["uuid"])),
            mac=record["mac"],
            command_line=record["command-line"],
            settings=BoxSettings.from_record(settings, source="the archive"),
        )
        if not _MAC.fullmatch(found.mac) or not found.command_line.isprintable():
            raise ValueError("its MAC address or its kernel command line")
    except (KeyError, TypeError, ValueError, AttributeError, UsageError, StateError) as error:
        raise _malformed(f"its manifest does not describe a box: {str(error).rstrip('.')}") from error
    return found


def _unpack(site: Site, archive: Parcel, own: Path, about: _Origin, *, trust: bool, progress: Progress) -> _Unpacked:
    """Unpack an archive to its end; what does not come in is verified, too."""
    for folder in ("snapshot", f"keys/{LOGIN}", f"keys/{HOST}"):
        make_folder(own / folder, mode=0o700)
    manifest, frozen = None, None
    total, done = max(1, sum(member.size for member in archive.members)), 0
    for member in archive.members:
        progress(f"unpacking {member.name}", 0.8 * done / total)
        wanted = trust or member.name in _HARMLESS
        archive.receive(member, own / member.name if wanted else None)
        done += member.size
        if member.name == MANIFEST:
            manifest = _manifest(archive, own, about)
        elif member.name == DEFINITION and trust:
            assert manifest is not None
            frozen = _definition(site, manifest, own)
    archive.finish()
    assert manifest is not None
    return _Unpacked(manifest=manifest, frozen=frozen)


def _manifest(archive: Parcel, own: Path, about: _Origin) -> Manifest:
    try:
        manifest = Manifest.read(SnapshotFolder(own / "snapshot"))
    except StateError as error:
        raise _malformed("the snapshot's manifest cannot be read") from error
    sizes = {member.name: member.file_size for member in archive.members}
    if manifest.name != about.snapshot or not _NEEDED_BY[manifest.engine] <= set(sizes):
        raise _malformed("the snapshot's manifest is that of another one")
    if sizes.get(RAM, manifest.ram.bytes) != manifest.ram.bytes:
        raise _malformed("its RAM has another size than the guest's")
    return manifest


def _definition(site: Site, manifest: Manifest, own: Path) -> DomainXml:
    """Return the definition of a trusted archive; raise SnapshotError unless this host can run it."""
    definition = DomainXml.parse((own / DEFINITION).read_bytes(), source="The archive's definition")
    found = list(snapshots.hindrances(site.hypervisor, manifest, definition.without_host()))
    found += [f"There is no '{path}', which it needs." for path in definition.host_files if not path.exists()]
    if definition.uses_kvm and not found:
        try:
            accelerator.choose("kvm", site.state.cache)
        except HypervisorError as error:
            found.append(str(error))
    if definition.ram != manifest.ram or len(definition.disks()) != 1:
        raise _malformed("its definition is that of another guest")
    if found:
        raise SnapshotError(
            f"The snapshot '{manifest.name}' cannot be brought back on this host: {' '.join(found)}",
            hint="Without --trust its disk alone comes in, on any host.",
        )
    return definition


def _refuse_foreign_image(site: Site, name: str) -> None:
    """Raise ImageError when the disk would become the latest generation of an image that was not imported."""
    own = [image for image in site.images.list() if image.name == name.lower()]
    if any(not image.description.startswith(_IMPORTED) for image in own):
        raise ImageError(
            f"There is an image '{name.lower()}' already, and boxes would be made of the imported one instead.",
            hint="Give the imported box another name: snapshot-import --as NAME",
        )


def _image(site: Site, own: Path, about: _Origin, name: str) -> Image:
    """Make the disk a generation of an image that is named like the box, or find it from an import that was killed."""
    kernel, initrd = (path if (path := own / member).exists() else None for member in (KERNEL, INITRD))
    return site.images.add(
        name.lower(),
        own / DISK,
        disk_format="qcow2",
        kernel=kernel,
        initrd=initrd,
        command_line=about.command_line,
        agent=True,
        user=about.settings.user,
        description=f"{_IMPORTED} {Address(about.box, about.snapshot)}",
        reuse=True,
    )


def _make(site: Site, own: Path, about: _Origin, unpacked: _Unpacked, *, image: Image, name: str) -> None:
    ours = site.configuration.box(name)
    settings = replace(about.settings, image=image.address, engines=ours.engines, xslt=ours.xslt, hooks=ours.hooks)
    record, definition = define.designed(site, name, settings, image)
    frozen, manifest = unpacked.frozen, unpacked.manifest
    if frozen is None:
        reasons = ("The archive was not trusted: its memory was left behind.",) if manifest.running else ()
        manifest = replace(
            manifest,
            engine=Engine.DISK,
            running=False,
            token="",
            boot_id="",
            why_not=(*manifest.why_not, *reasons),
            platform=Platform.of(site.hypervisor, definition),
        )
    else:
        known = site.hypervisor.knows(about.uuid)
        if manifest.engine is Engine.SAVED and (known or name != about.box):
            raise SnapshotError(
                f"A saved snapshot keeps its box's name and UUID, and '{about.box}' cannot be imported as '{name}'"
                + (" beside a domain that has them." if known else "."),
                hint="Without --trust its disk alone comes in.",
            )
        record = replace(
            record,
            uuid=record.uuid if known else about.uuid,
            mac=about.mac,
            accelerator=accelerator.Accelerator(frozen.virtualization),
            accelerator_reason="The imported snapshot has it.",
        )
        definition = making.with_parts(site, record, frozen.without_host(), define.boot(image))

    def furnish(folder: BoxFolder) -> Path:
        layer = secrets.token_hex(8)
        disks.create_overlay(folder.layer(layer), image.disk)
        folder.layer(layer).chmod(0o444)
        snapshot = SnapshotFolder(make_folder(folder.snapshots / manifest.name, mode=0o711))
        kept = definition
        if frozen is not None:
            _move_memory(site, own, snapshot)
            if frozen.ram_file is not None:  # a saved memory knows its RAM by the name that such a file has
                ram = RamFile(path=site.state.box(name).ram, size=frozen.ram, shared=True)
                kept = definition.with_ram_file(ram)
        replace_file(snapshot.definition, kept.text().encode(), mode=0o600)
        replace(manifest, layer=layer, seals=seal.seal(snapshot)).write(snapshot)
        return folder.layer(layer)

    keys_of = BoxFolder(own) if frozen is not None else None
    making.make(site, record, definition, keys_of=keys_of, new_host_key=keys_of is None, furnish=furnish)


def _move_memory(site: Site, own: Path, snapshot: SnapshotFolder) -> None:
    for member in MEMORY:
        source = own / member
        if source.exists():
            with translate_os_errors("move", source):
                source.rename(_place(snapshot, member))
    if snapshot.ram.exists():
        launch.give_to_qemu(site.hypervisor, snapshot.ram)


def _malformed(reason: str) -> SnapshotError:
    return SnapshotError(
        f"This is not an archive of a snapshot, or it is damaged: {reason}.",
        hint="Export the snapshot once more: vmimagemanager snapshot-export",
    )
