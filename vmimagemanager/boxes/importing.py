"""Making a box of an archive: whole, or not at all."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from vmimagemanager import disks, snapshots
from vmimagemanager.boxes import archive, define, login, making
from vmimagemanager.boxes.archive import Origin, malformed
from vmimagemanager.boxes.record import BoxRecord
from vmimagemanager.boxes.site import Site
from vmimagemanager.config import LARGEST_DISK, SMALLEST_DISK, Engine
from vmimagemanager.deadline import Stopwatch
from vmimagemanager.disks import Backing
from vmimagemanager.durable import make_folder, remove_tree, replace_file, require_space, translate_os_errors
from vmimagemanager.errors import BoxError, HypervisorError, ImageError, SnapshotError, StateError
from vmimagemanager.hypervisor import accelerator, launch
from vmimagemanager.hypervisor.domainxml import DomainXml
from vmimagemanager.hypervisor.ramfile import RamFile
from vmimagemanager.images import Image
from vmimagemanager.images.stage import stage
from vmimagemanager.names import Address
from vmimagemanager.progress import Progress
from vmimagemanager.snapshots import Footing, Manifest, seal
from vmimagemanager.snapshots.parcel import Parcel
from vmimagemanager.snapshots.platform import Platform
from vmimagemanager.state import FIRST_DISK, BoxFolder, SnapshotFolder
from vmimagemanager.units import Size

_log = logging.getLogger(__name__)

_IMPORTED = "Imported from"


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
class _Unpacked:
    """What came out of an archive into a stage: the snapshot's manifest and, of a trusted one, its definition."""

    folder: Path
    manifest: Manifest
    frozen: DomainXml | None

    @property
    def snapshot(self) -> SnapshotFolder:
        return SnapshotFolder(self.folder / archive.SNAPSHOT)

    def disk(self, disk: str) -> Path:
        return self.folder / archive.disk_member(disk)


def origin(parcel: Parcel) -> str:
    """Return the name of the box that an archive comes from."""
    return Origin.read(parcel).box


def receive(site: Site, parcel: Parcel, name: str, *, trust: bool, progress: Progress) -> Imported:
    """Make the box ``name``, which the caller leases, of an archive; on failure nothing of it is left.

    With ``trust`` memory, definition and keys come in, too, and the snapshot is what it was.  Otherwise the box is
    defined anew on the disks, and the snapshot is one of a box that is off.

    Raises SnapshotError for an archive that is damaged or that this host cannot run, BoxError when the name is taken,
    ImageError for a disk that is none, SpaceError.
    """
    watch = Stopwatch()
    about = Origin.read(parcel)
    if site.taken(name):
        raise BoxError(
            f"There is a box, or a domain of libvirt's, '{name}' already.",
            hint="Give the imported one another name: snapshot-import --as NAME",
        )
    for entry in site.state.boxes.glob(f".{name}.*"):  # of an import that was killed
        if entry.name.removeprefix(f".{name}.").isdecimal():
            remove_tree(entry)
    _refuse_foreign_image(site, name)
    sizes = {member.name: member.size for member in parcel.members}
    needed = Size(sum(sizes.values()) + 2 * sizes[archive.disk_member(FIRST_DISK)])
    require_space(site.state.path, needed, purpose=f"Importing '{name}'")
    with stage(site.state.path, purpose=f"importing '{name}'") as own:
        unpacked = _unpack(site, parcel, own, about, trust=trust, progress=progress)
        progress("taking in the disk", 0.8)
        further = [_checked(unpacked.disk(disk)) for disk in unpacked.manifest.further_disks]
        image = _image(site, unpacked, about, name)
        try:
            progress("defining the box", 0.95)
            with site.images.locked():
                _make(site, about, unpacked, image=image, sizes=further, name=name)
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


def _unpack(site: Site, parcel: Parcel, own: Path, about: Origin, *, trust: bool, progress: Progress) -> _Unpacked:
    """Unpack an archive to its end; what does not come in is verified, too."""
    manifest, frozen = None, None
    total, done = max(1, sum(member.size for member in parcel.members)), 0
    for member in parcel.members:
        progress(f"unpacking {member.name}", 0.8 * done / total)
        target = own / member.name if about.comes_in(member.name, trust=trust) else None
        if target is not None:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        parcel.receive(member, target)
        done += member.size
        if member.name == archive.MANIFEST:
            manifest = _manifest(parcel, own, about)
        elif member.name == archive.DEFINITION and trust:
            assert manifest is not None
            frozen = _definition(site, manifest, own)
    parcel.finish()
    assert manifest is not None
    return _Unpacked(folder=own, manifest=manifest, frozen=frozen)


def _manifest(parcel: Parcel, own: Path, about: Origin) -> Manifest:
    try:
        manifest = Manifest.read(SnapshotFolder(own / archive.SNAPSHOT))
    except StateError as error:
        raise malformed("the snapshot's manifest cannot be read") from error
    about.require_own(parcel, manifest)
    return manifest


def _definition(site: Site, manifest: Manifest, own: Path) -> DomainXml:
    """Return the definition of a trusted archive; raise SnapshotError unless this host can run it."""
    definition = DomainXml.parse((own / archive.DEFINITION).read_bytes(), source="The archive's definition")
    found = list(snapshots.hindrances(site.hypervisor, manifest, definition.without_host()))
    found += [f"There is no '{path}', which it needs." for path in definition.host_files if not path.exists()]
    if definition.uses_kvm and not found:
        try:
            accelerator.choose("kvm", site.state.cache)
        except HypervisorError as error:
            found.append(str(error))
    if definition.ram != manifest.ram or set(definition.further_disks()) != set(manifest.further_disks):
        raise malformed("its definition is that of another guest")
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


def _image(site: Site, unpacked: _Unpacked, about: Origin, name: str) -> Image:
    """Make the disk a generation of an image that is named like the box, or find it from an import that was killed."""
    members = (archive.KERNEL, archive.INITRD)
    kernel, initrd = (path if (path := unpacked.folder / member).exists() else None for member in members)
    return site.images.add(
        name.lower(),
        unpacked.disk(FIRST_DISK),
        disk_format="qcow2",
        kernel=kernel,
        initrd=initrd,
        command_line=about.command_line,
        agent=not about.seed,
        seed=about.seed,
        user=about.settings.user or login.ROOT,
        description=f"{_IMPORTED} {Address(about.box, about.snapshot)}",
        reuse=True,
    )


def _checked(disk: Path) -> Size:
    """Return the size of a disk; raise ImageError unless it is whole, stands alone, and a box can have it."""
    disks.refuse_outside_files(disk)
    disks.check(disk)
    size = disks.info(disk).virtual_size
    if not SMALLEST_DISK <= size <= LARGEST_DISK:
        raise ImageError(
            f"A disk of the archive has {size.human()}: expected {SMALLEST_DISK.human()} to {LARGEST_DISK.human()}."
        )
    return size


def _make(site: Site, about: Origin, unpacked: _Unpacked, *, image: Image, sizes: Sequence[Size], name: str) -> None:
    ours = site.configuration.box(name)
    settings = replace(about.settings, image=image.address, disks=tuple(sizes), engines=ours.engines)
    settings = replace(settings, xslt=ours.xslt, hooks=ours.hooks)
    record, definition = define.designed(site, name, settings, image)
    frozen, layer = unpacked.frozen, secrets.token_hex(8)
    sources = unpacked.manifest.further_disks
    # A new domain names the disks by itself, a frozen one as it did.
    further = sources if frozen is not None else tuple(record.disks)[: len(sources)]
    bases = {disk: Backing(path=site.state.box(name).layer(layer, disk)) for disk in further}
    if frozen is None:
        record = replace(record, disks={**record.disks, **bases})
        manifest = _of_a_box_that_is_off(unpacked.manifest, Platform.of(site.hypervisor, definition))
    else:
        record = _as_it_was(site, replace(record, disks=bases), about, manifest=unpacked.manifest, frozen=frozen)
        manifest = unpacked.manifest
        definition = making.with_parts(site, record, frozen.without_host(), define.boot(image))
    manifest = replace(manifest, layer=layer, further_disks=further)

    def furnish(folder: BoxFolder) -> Footing:
        disks.create_overlay(folder.layer(layer), image.disk)
        for disk, source in zip(further, sources, strict=True):
            _move(unpacked.disk(source), folder.layer(layer, disk))
        for path in folder.layers.iterdir():
            path.chmod(0o444)
        snapshot = SnapshotFolder(make_folder(folder.snapshots / manifest.name, mode=0o711))
        for path in unpacked.snapshot.path.iterdir():
            if path not in {unpacked.snapshot.manifest, unpacked.snapshot.definition}:
                _move(path, snapshot.path / path.name)
        kept = definition
        if snapshot.ram.exists():
            launch.give_to_qemu(site.hypervisor, snapshot.ram)
        if frozen is not None and frozen.ram_file is not None:
            # A saved memory knows its RAM by the name that such a file has.
            kept = definition.with_ram_file(RamFile(path=site.state.box(name).ram, size=frozen.ram, shared=True))
        replace_file(snapshot.definition, kept.text().encode(), mode=0o600)
        replace(manifest, seals=seal.seal(snapshot)).write(snapshot)
        return snapshots.footing_of(manifest, folder, record.disks)

    keys_of = BoxFolder(unpacked.folder) if (unpacked.folder / archive.KEYS[0]).exists() else None
    making.make(site, record, definition, keys_of=keys_of, new_host_key=keys_of is None, furnish=furnish)


def _of_a_box_that_is_off(manifest: Manifest, platform: Platform) -> Manifest:
    reasons = ("The archive was not trusted: its memory was left behind.",) if manifest.running else ()
    return replace(
        manifest,
        engine=Engine.DISK,
        running=False,
        token="",
        boot_id="",
        why_not=(*manifest.why_not, *reasons),
        platform=platform,
    )


def _as_it_was(site: Site, record: BoxRecord, about: Origin, *, manifest: Manifest, frozen: DomainXml) -> BoxRecord:
    """Return the record with what the memory of a frozen guest knows of itself."""
    known = site.hypervisor.knows(about.uuid)
    if manifest.engine is Engine.SAVED and (known or record.name != about.box):
        raise SnapshotError(
            f"A saved snapshot keeps its box's name and UUID, and '{about.box}' cannot be imported as '{record.name}'"
            + (" beside a domain that has them." if known else "."),
            hint="Without --trust its disk alone comes in.",
        )
    return replace(
        record,
        uuid=record.uuid if known else about.uuid,
        mac=about.mac,
        accelerator=accelerator.Accelerator(frozen.virtualization),
        accelerator_reason="The imported snapshot has it.",
    )


def _move(source: Path, target: Path) -> None:
    with translate_os_errors("move", source):
        source.rename(target)
