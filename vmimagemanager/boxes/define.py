"""Defining, changing, taking over and undefining boxes."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from vmimagemanager import disks, snapshots
from vmimagemanager.boxes import borrow, login, making, network, seeding
from vmimagemanager.boxes.record import BoxRecord
from vmimagemanager.boxes.site import Site
from vmimagemanager.config import BoxSettings, Firmware, Moment, Place
from vmimagemanager.disks import Backing
from vmimagemanager.durable import fsync_path, make_folder, remove_tree
from vmimagemanager.errors import BoxError, ConfigError, ForeignDomainError, ImageError
from vmimagemanager.hypervisor import accelerator
from vmimagemanager.hypervisor.connection import require_ownership
from vmimagemanager.hypervisor.domainxml import DomainXml
from vmimagemanager.hypervisor.parts import Boot
from vmimagemanager.images import Image, chain
from vmimagemanager.leases import owner
from vmimagemanager.names import box_name
from vmimagemanager.state import BoxFolder, staged_folder
from vmimagemanager.units import Size


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """What ``define --update`` changed: keys with their old and new values, and what they still wait for."""

    keys: Mapping[str, tuple[object, object]]
    waits_for: str


def define(site: Site, name: str, settings: BoxSettings) -> BoxRecord:
    """Make a new box, switched off.  On failure nothing of it is left.

    Raises BoxError when there is one of that name, ImageError without its image, ForeignDomainError when libvirt has a
    domain of that name that is not ours, ConfigError for XML or a stylesheet that cannot be used.
    """
    box_name(name)
    if site.state.box(name).record.exists():
        raise BoxError(
            f"There is a box '{name}' already.",
            hint=f"Change it: vmimagemanager define --update {name}; or remove it: vmimagemanager undefine {name}",
        )
    _check_hooks(settings)
    _take_away_leftover(site, name)
    with site.images.locked():  # the image may not go while it is built upon
        image = _image(site, name, settings)
        record, definition = designed(site, name, settings, image)
        making.make(site, record, definition)
    return record


def designed(site: Site, name: str, settings: BoxSettings, image: Image) -> tuple[BoxRecord, DomainXml]:
    """Return the record and the definition of a new box that stands on ``image``."""
    choice = accelerator.choose(site.configuration.host.accelerator.value, site.state.cache)
    record = BoxRecord(
        name=name,
        uuid=str(uuid.uuid4()),
        mac=making.new_mac(),
        image=image.address,
        digests=dict(image.digests),
        base=str(image.disk),
        base_format=image.disk_format,
        accelerator=choice.accelerator,
        accelerator_reason=choice.reason,
        adopted=False,
        created=datetime.now(UTC).replace(microsecond=0),
        owner=owner(),
        settings=seeding.told_by_seed(settings, image),
        user=login.user_of(settings, image),
    )
    record, base = _asked_for(site, seeding.with_seed(record, image), image)
    return record, making.with_parts(site, record, base, boot(image))


def adopt(site: Site, name: str, settings: BoxSettings) -> BoxRecord:
    """Make a box of an existing domain that is off: its disk becomes the read-only base of the box's overlay.

    Raises BoxError when it runs or has no disk that can be stood on; the domain is then as it was.
    """
    box_name(name)
    if site.state.box(name).record.exists():
        raise BoxError(f"There is a box '{name}' already.", hint=f"vmimagemanager show {name}")
    domain = site.hypervisor.find(name)
    if domain is None:
        raise BoxError(f"libvirt has no domain '{name}' to adopt.", hint="virsh list --all")
    if domain.active:
        raise BoxError(
            f"The domain '{name}' runs: it can be adopted only when it is off.", hint=f"virsh shutdown {name}"
        )
    original = domain.definition(live=False)
    if original.ownership is not None:
        raise ForeignDomainError(
            f"The domain '{name}' belongs to a box already, of '{original.ownership.state_directory}'."
        )
    files = original.disks()
    if original.tpm_kind == "emulator":
        raise BoxError(f"The domain '{name}' cannot be adopted: it has a TPM, whose state a box would change.")
    if not files or not files[0].is_file():
        raise BoxError(f"The domain '{name}' cannot be adopted: its first disk is not a file that exists.")
    _check_hooks(settings)
    record = BoxRecord(
        name=name,
        uuid=original.uuid,
        mac=original.mac or making.new_mac(),
        image="",
        digests={},
        base=str(files[0]),
        accelerator=accelerator.Accelerator.KVM if original.uses_kvm else accelerator.Accelerator.TCG,
        accelerator_reason="The adopted domain has it.",
        adopted=True,
        created=datetime.now(UTC).replace(microsecond=0),
        owner=owner(),
        settings=replace(settings, network=original.network or settings.network, ram=original.ram),
        user=login.user_of(settings, None),
        disks=_further_disks(original),
        nvram=_variables(original),
    )
    making.make(site, record, making.with_parts(site, record, _transformed(original, settings)), original=original)
    return record


def update(site: Site, record: BoxRecord, settings: BoxSettings, *, newest: bool = False) -> Changed:
    """Apply changed settings to a box; a running guest gets them at its next start, a new image at the next reset.

    With ``newest`` it goes to the newest generation of its image; else it keeps its own.
    """
    _check_hooks(settings)
    before, after = record.settings.to_record(), settings.to_record()
    keys_changed = {
        key: (before.get(key), after.get(key)) for key in sorted({*before, *after}) if before.get(key) != after.get(key)
    }
    folder = site.state.box(record.name)
    if "network" in keys_changed:
        network.give_back(site, record.name, DomainXml.read(folder.definition))
    if record.adopted:
        changed = replace(record, settings=settings, user=login.user_of(settings, None))
        definition = making.with_parts(site, changed, _transformed(DomainXml.read(folder.adopted), settings))
        making.store(site, changed, definition, folder)
        return Changed(keys=keys_changed, waits_for="the next start" if site.domain(record.name) else "")
    with site.images.locked():
        # An image that was not asked for anew stays the generation that it is.
        pinned = settings.image == record.settings.image and not newest
        image = _image(site, record.name, replace(settings, image=record.image) if pinned else settings)
        changed = replace(
            record,
            settings=settings,
            image=image.address,
            base=str(image.disk),
            base_format=image.disk_format,
            digests=dict(image.digests),
            user=login.user_of(settings, image),
        )
        if image.seed and not record.seed:
            changed = replace(changed, settings=seeding.told_by_seed(settings, image))
        changed = seeding.with_seed(changed, image, before=record)
        changed, base = _asked_for(site, changed, image)
        if "disks" not in keys_changed:
            changed = replace(changed, disks={**changed.disks, **_imported(record, folder, changed.disks)})
        seeding.ensure(site.hypervisor, changed, folder)
        snapshots.add_disks(site.hypervisor, folder, changed.disks)
        making.store(site, changed, making.with_parts(site, changed, base, boot(image)), folder)
        if site.domain(record.name) is None:  # a guest that runs may be snapshotted with the seed that it has
            seeding.sweep(folder)
    if any(one != record.disks.get(name, one) for name, one in changed.disks.items()):
        return Changed(keys=keys_changed, waits_for="the next reset")
    if image.address != record.image:
        keys_changed["image"] = (record.image, image.address)
        return Changed(keys=keys_changed, waits_for="the next reset")
    return Changed(keys=keys_changed, waits_for="the next start" if keys_changed and site.domain(record.name) else "")


def undefine(site: Site, name: str, *, force: bool = False) -> None:
    """Remove a box with its domain, disk, keys and snapshots; an adopted domain gets its own definition back.

    Its record is not asked: it may be damaged.  Raises BoxError when it runs and ``force`` is not given.
    """
    folder = site.state.box(name)
    domain = site.hypervisor.domain(name, str(site.state.path))
    if domain is not None:
        if domain.active:
            if not force:
                raise BoxError(f"The box '{name}' runs.", hint=f"vmimagemanager down {name}, or undefine --force")
            domain.end()
        definition = domain.definition(live=False)
        making.remove_sockets(site, definition.uuid)
        network.give_back(site, name, definition)
        if folder.adopted.exists():
            site.hypervisor.define(DomainXml.read(folder.adopted))
        else:
            domain.undefine()
    borrow.give_back(folder)
    with staged_folder(folder.path) as doomed:
        folder.path.rename(doomed / name)
    remove_tree(site.state.holds / f"{name}.toml")


def ensure_defined(site: Site, record: BoxRecord) -> DomainXml:
    """Return the box's definition, telling libvirt again where it has forgotten the domain."""
    folder = site.state.box(record.name)
    definition = DomainXml.read(folder.definition)
    if site.hypervisor.domain(record.name, str(site.state.path)) is None:
        site.hypervisor.define(definition)
    return definition


def blobs_in_use(site: Site) -> dict[str, Collection[str]]:
    """Return the digests of the blobs that boxes stand on, and the addresses of the images that they are made of.

    Each is there with the names of those boxes.
    """
    users: dict[str, set[str]] = {}
    for name in site.state.box_names():
        folder = site.state.box(name)
        record = BoxRecord.read(folder)
        digests = {record.image, *record.digests.values(), *(link.name for link in _below(record))}
        tops = [folder.overlay, *(folder.layers.iterdir() if folder.layers.is_dir() else ())]
        for top in tops:
            if top.exists():
                if chain.head(top) is None:
                    raise ImageError(
                        f"The disk '{top}' is damaged, so that nobody knows what it stands on.",
                        hint="vmimagemanager fsck",
                    )
                digests |= {link.name for link in chain.walk(top)}
        for digest in digests:
            users.setdefault(digest, set()).add(name)
    return {digest: tuple(sorted(names)) for digest, names in users.items()}


def to_newest(site: Site, record: BoxRecord) -> Changed:
    """Let a box go to the newest generation of its image at its next reset.

    Raises BoxError for an adopted domain, ConfigError for a box whose settings name a certain generation.
    """
    if record.adopted or record.settings.image is None:
        raise BoxError(f"The box '{record.name}' was made of a domain: there is no newer image of it.")
    if ":" in record.settings.image:
        name = record.settings.image.partition(":")[0]
        raise ConfigError(
            f"The box '{record.name}' is defined with the generation '{record.settings.image}', and stays on it.",
            hint=f"vmimagemanager define --update {record.name} --image {name}",
        )
    return update(site, record, record.settings, newest=True)


def _below(record: BoxRecord) -> tuple[Path, ...]:
    """Return what the base of a box stands on, itself included; of a raw one nothing is believed."""
    base = Path(record.base)
    return (base,) if record.base_format == "raw" or record.adopted else tuple(chain.walk(base))


def _image(site: Site, name: str, settings: BoxSettings) -> Image:
    if settings.image is None:
        raise ConfigError(
            f"No image is given for the box '{name}'.",
            hint=f"vmimagemanager define {name} --image debian-12; or set 'image' in the configuration",
        )
    image = site.images.get(settings.image)
    site.images.require_whole(image)
    return image


def _asked_for(site: Site, record: BoxRecord, image: Image) -> tuple[BoxRecord, DomainXml]:
    """Return the domain that a box's settings ask for, and the record with what follows from it."""
    settings = record.settings
    base = _base(record)
    if settings.xml is not None:
        record = _as_the_xml_says(record, base)
    base = base.with_disks([_empty_disk(site, size) for size in settings.disks])
    if Firmware.UEFI in (settings.firmware, image.firmware):
        base = base.with_uefi()
    if settings.tpm:
        base = base.with_tpm()
    if record.seed:
        base = base.with_seed()
    definition = _transformed(base, settings)
    record = replace(record, disks=_further_disks(definition), nvram=_variables(definition))
    for name, one in record.disks.items():
        if borrow.needed(site.hypervisor, [one.path]):
            raise ConfigError(
                f"The disk '{name}' cannot be stood on: the user that QEMU runs as may not read '{one.path}'.",
                hint=f"chmod o+r '{one.path}'",
            )
    return record, definition


def _empty_disk(site: Site, size: Size) -> Path:
    """Return the empty disk of that size, which all boxes share."""
    path = site.state.empty / f"{size.bytes}.qcow2"
    if not path.exists():
        with staged_folder(make_folder(path.parent, mode=0o755) / path.name) as stage:
            made = stage / path.name
            disks.create_empty(made, size)
            made.chmod(0o444)
            fsync_path(made)
            made.replace(path)
    return path


def _imported(record: BoxRecord, folder: BoxFolder, names: Collection[str]) -> dict[str, Backing]:
    """Return what the disks of these names stand on that came with the box's archive."""
    mine = {name: one for name, one in record.disks.items() if one.path.is_relative_to(folder.path)}
    return {name: one for name, one in mine.items() if name in names}


def _further_disks(definition: DomainXml) -> dict[str, Backing]:
    found = {}
    for name, (path, file_format) in definition.further_disks().items():
        if not path.is_file():
            raise ConfigError(f"The disk '{name}' of the domain XML does not exist: '{path}'.")
        found[name] = Backing(path=path, format=file_format)
    return found


def _variables(definition: DomainXml) -> str:
    """Return the file of firmware variables that the owner's XML brings, or an empty text."""
    path = definition.nvram
    return str(path) if path is not None and path.is_file() else ""


def _transformed(base: DomainXml, settings: BoxSettings) -> DomainXml:
    return base if settings.xslt is None else base.transformed(settings.xslt)


def _base(record: BoxRecord) -> DomainXml:
    settings = record.settings
    if settings.xml is not None:
        return DomainXml.read(settings.xml)
    return DomainXml.plain(ram=settings.ram, cpus=settings.cpus, accelerator=record.accelerator)


def boot(image: Image) -> Boot:
    """Return what a box on this image boots directly, if it does."""
    return Boot(kernel=image.kernel, initrd=image.initrd, command_line=image.command_line)


def _as_the_xml_says(record: BoxRecord, definition: DomainXml) -> BoxRecord:
    """Return the record with the accelerator of the owner's XML: time limits follow from it."""
    chosen = accelerator.Accelerator.KVM if definition.uses_kvm else accelerator.Accelerator.TCG
    return replace(record, accelerator=chosen, accelerator_reason="The box's own XML has it.")


def _take_away_leftover(site: Site, name: str) -> None:
    domain = site.hypervisor.find(name)
    if domain is None:
        return
    require_ownership(domain, name, str(site.state.path))
    if domain.active:  # its box was removed by hand, without us
        domain.end()
    domain.undefine()


def _check_hooks(settings: BoxSettings) -> None:
    for hook in settings.hooks:
        if hook.script is not None and not hook.script.is_file():
            raise ConfigError(f"The hook script '{hook.script}' does not exist, or is not a file.")
        if hook.moment is Moment.AFTER_DEFINE and hook.where is Place.GUEST:
            raise ConfigError(
                "A hook at 'after-define' cannot run in the guest, which is off then.", hint='Set where = "host".'
            )
