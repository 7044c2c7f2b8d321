"""Making a box: its folder and its domain, whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

from vmimagemanager import disks, keys, snapshots
from vmimagemanager.boxes import borrow, seeding
from vmimagemanager.boxes.reach import HOST, LOGIN
from vmimagemanager.boxes.record import BoxRecord
from vmimagemanager.boxes.site import Site
from vmimagemanager.durable import make_folder, publish, remove_tree, replace_file
from vmimagemanager.hypervisor.domainxml import DomainXml
from vmimagemanager.hypervisor.parts import AGENT_CHANNEL, TPM_SOCKET, Boot, Parts
from vmimagemanager.snapshots import Footing
from vmimagemanager.state import BoxFolder, staged_folder


def with_parts(site: Site, record: BoxRecord, base: DomainXml, boot: Boot | None = None) -> DomainXml:
    """Lay over a domain what is the box's own."""
    folder = site.state.box(record.name)
    parts = Parts(
        name=record.name,
        uuid=record.uuid,
        state_directory=site.state.path,
        disk=folder.overlay,
        disks={name: folder.overlay_of(name) for name in record.disks},
        nvram=folder.nvram,
        tpm_socket=_tpm_socket(site, record),
        seed=folder.seed(record.seed) if record.seed else None,
        console_log=folder.console_log,
        mac=record.mac,
        network=record.settings.network,
        boot=boot or Boot(),
        sockets=_sockets(site, record.uuid),
    )
    laid = base.with_parts(parts).with_lan_card(None)
    if record.lan is not None:
        laid = record.lan.laid_over(laid)
    return laid if site.hypervisor.session else laid.with_owner(site.hypervisor.host.qemu_owner)


def _sockets(site: Site, uuid: str) -> Path | None:
    """Return the folder for the sockets of the guest's channels; None where libvirt's own choice will do.

    A session's libvirt puts it so deep into the home folder that the path exceeds what a socket may have (108 bytes).
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if not site.hypervisor.session or not runtime.startswith("/"):
        return None
    path = Path(runtime, "vmimagemanager", uuid)
    return path if len(os.fsencode(path / AGENT_CHANNEL)) < 108 else None


def bare(record: BoxRecord) -> Footing:
    """Return what a box stands on when nothing was done to it."""
    return Footing(disks=record.bases, nvram=Path(record.nvram) if record.nvram else None)


def _tpm_socket(site: Site, record: BoxRecord) -> Path:
    sockets = _sockets(site, record.uuid)
    if sockets is None and not site.hypervisor.session:
        sockets = Path("/run/vmimagemanager", record.uuid)
    return (sockets or site.state.box(record.name).path) / TPM_SOCKET


def remove_sockets(site: Site, uuid: str) -> None:
    sockets = _sockets(site, uuid) or Path("/run/vmimagemanager", uuid)
    if sockets.exists():
        remove_tree(sockets)


def make(
    site: Site,
    record: BoxRecord,
    definition: DomainXml,
    *,
    original: DomainXml | None = None,
    footing: Footing | None = None,
    keys_of: BoxFolder | None = None,
    new_host_key: bool = True,
    furnish: Callable[[BoxFolder], Footing] | None = None,
) -> None:
    """Make the folder and the domain of a new box; on failure nothing of them is left.

    It stands on ``footing``, by default on its bases.  Its keys are new, or those of ``keys_of``, with a new host
    key nevertheless when ``new_host_key`` says so.  ``original`` is the definition that an adopted domain had.
    ``furnish`` lays further files into the folder while nobody sees it, and returns what of them to stand on.
    """
    target = site.state.box(record.name)
    footing = footing or bare(record)
    with staged_folder(target.path) as path:
        path.chmod(0o711)
        folder = BoxFolder(path)
        _give_keys(folder, record.name, {LOGIN: keys_of, HOST: None if new_host_key else keys_of})
        seeding.lay(site.hypervisor, record, folder)
        for empty in (folder.snapshots, folder.layers):
            make_folder(empty, mode=0o711)
        if furnish is not None:
            footing = furnish(folder)
        snapshots.stand_on(site.hypervisor, folder, footing)
        for disk, one in footing.disks.items():
            if one.path.is_relative_to(path):
                disks.rename_backing(folder.overlay_of(disk), target.path / one.path.relative_to(path))
        replace_file(folder.definition, definition.text().encode(), mode=0o600)
        if original is not None:
            replace_file(folder.adopted, original.text().encode(), mode=0o600)
        record.write(folder)
        publish(path, target.path)
    try:
        if original is not None:
            borrow.borrow(borrow.needed(site.hypervisor, borrow.files_of(original)), target)
        store(site, record, definition, target)
    except BaseException:
        _give_back(site, record.name, original)
        borrow.give_back(target)
        remove_tree(target.path)
        raise


def _give_keys(folder: BoxFolder, name: str, sources: Mapping[str, BoxFolder | None]) -> None:
    for kind, source in sources.items():
        if source is None:
            keys.generate(folder.keys / kind, comment=f"vmimagemanager-{name}")
        else:
            keys.duplicate(source.keys / kind, folder.keys / kind)
    line = keys.parse_line((folder.keys / HOST / keys.PUBLIC).read_text())
    keys.KnownHost(alias=keys.host_alias(name), keys=(line,)).write(folder.keys / "known_hosts")


def _give_back(site: Site, name: str, original: DomainXml | None) -> None:
    """Leave libvirt as it was before a box that could not be made."""
    domain = site.hypervisor.find(name)
    if domain is not None and domain.definition(live=False).ownership is not None:
        if original is not None:
            site.hypervisor.define(original)
        else:
            domain.undefine()


def store(site: Site, record: BoxRecord, definition: DomainXml, folder: BoxFolder) -> None:
    """Tell libvirt, and keep what it made of it: machine type, addresses and the like are frozen from here on."""
    domain = site.hypervisor.define(definition)
    replace_file(folder.definition, domain.definition(live=False).text().encode(), mode=0o600)
    record.write(folder)


def new_mac() -> str:
    """Return a MAC address that nobody else has."""
    # 52:54:00 is QEMU's prefix for locally administered addresses
    return ":".join(["52", "54", "00", *(f"{byte:02x}" for byte in secrets.token_bytes(3))])
