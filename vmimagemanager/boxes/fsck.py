"""The state directory against itself and against libvirt: what is damaged, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from vmimagemanager import disks, keys, snapshots
from vmimagemanager.boxes.caretaker import Leftover
from vmimagemanager.boxes.reach import HOST, LOGIN
from vmimagemanager.boxes.record import BoxRecord
from vmimagemanager.boxes.site import Site
from vmimagemanager.errors import LeaseError, StateError, VmimError
from vmimagemanager.hypervisor.connection import require_ownership
from vmimagemanager.hypervisor.domainxml import DomainXml
from vmimagemanager.images.archives import ArchiveStore
from vmimagemanager.leases import Leases
from vmimagemanager.names import Address
from vmimagemanager.progress import Progress, silent
from vmimagemanager.state import BoxFolder

_PURPOSE = "examining the state directory"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is damaged: the box or snapshot, what is wrong with it, and the command to try."""

    where: str
    what: str
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """What `examine` found, what it put right before, and the boxes that others were at work on."""

    findings: tuple[Finding, ...]
    put_right: tuple[Leftover, ...]
    in_use: tuple[str, ...]


def examine(
    site: Site, put_right: tuple[Leftover, ...], *, images: bool = False, progress: Progress = silent
) -> Examination:
    """Examine every box that nobody else leases: its record, definition, domain, keys, disks and snapshots.

    With ``images`` every file of the image store, archives included, is read and compared with its digest.  The content
    of other disks, and that of memory, is not read.
    """
    findings: list[Finding] = []
    if images:
        for where, error in (*site.images.examine(progress), *ArchiveStore(site.state.path).examine(progress)):
            findings.append(Finding(where=where, what=error.message, hint=error.hint or "vmimagemanager image list"))
    in_use: list[str] = []
    for name in site.state.box_names():
        try:
            lease = Leases(site.state).acquire(name, timedelta(0), purpose=_PURPOSE)
        except LeaseError:
            in_use.append(name)
            continue
        try:
            findings += _box(site, name)
        finally:
            lease.release()
    return Examination(findings=tuple(findings), put_right=put_right, in_use=tuple(in_use))


def _box(site: Site, name: str) -> Iterator[Finding]:
    folder = site.state.box(name)
    undefine = f"vmimagemanager undefine --force {name}"
    found: list[Finding] = []
    try:
        record = BoxRecord.read(folder)
    except VmimError as error:
        yield Finding(where=name, what=error.message, hint=error.hint or undefine)
        return
    for check in (_definition, _domain, _keys, _disk, _origin):
        with _told(found, name, undefine):
            check(site, record, folder)
    for entry in snapshots.names(folder):
        address = f"{name}@{entry}"
        with _told(found, address, f"vmimagemanager snapshot-remove {address}"):
            _snapshot(folder, entry)
    yield from found


@contextmanager
def _told(found: list[Finding], where: str, hint: str) -> Iterator[None]:
    try:
        yield
    except VmimError as error:
        found.append(Finding(where=where, what=error.message, hint=error.hint or hint))


def _definition(site: Site, record: BoxRecord, folder: BoxFolder) -> None:
    definition = DomainXml.read(folder.definition)
    ownership = definition.ownership
    ours = ownership is not None and (ownership.box, ownership.state_directory) == (folder.name, str(site.state.path))
    if not ours or definition.uuid != record.uuid or record.name != folder.name:
        raise StateError(f"The definition '{folder.definition}' is not that of this box.")


def _domain(site: Site, record: BoxRecord, folder: BoxFolder) -> None:
    domain = site.hypervisor.find(folder.name)
    if domain is None:  # libvirt is told again when the box is used
        return
    require_ownership(domain, folder.name, str(site.state.path))
    if domain.definition(live=False).uuid != record.uuid:
        raise StateError(f"libvirt's domain '{folder.name}' has another UUID than the box.")


def _keys(site: Site, record: BoxRecord, folder: BoxFolder) -> None:  # noqa: ARG001 - as all checks
    for kind in (LOGIN, HOST):
        keys.load(folder.keys / kind)
        private = folder.keys / kind / keys.PRIVATE
        if private.stat().st_mode & 0o077:
            raise StateError(f"The private key '{private}' can be read by others.", hint=f"chmod 600 '{private}'")


def _disk(site: Site, record: BoxRecord, folder: BoxFolder) -> None:  # noqa: ARG001
    for disk in folder.disks:
        disks.chain(folder.overlay_of(disk))
    for base in (Path(record.base), *(one.path for one in record.disks.values())):
        if not base.exists():
            raise StateError(f"The base '{base}' is missing: the box cannot be reset.")


def _origin(site: Site, record: BoxRecord, folder: BoxFolder) -> None:  # noqa: ARG001
    if record.fork_of:
        address = Address.parse(record.fork_of)
        snapshots.find(site.state.box(address.box), address.snapshot)


def _snapshot(folder: BoxFolder, name: str) -> None:
    snapshot = folder.snapshot(name)
    manifest = snapshots.Manifest.read(snapshot)
    snapshots.require_whole(folder, manifest)
    DomainXml.read(snapshot.definition)
    for disk in manifest.disks:
        disks.chain(folder.layer(manifest.layer, disk))
    snapshots.kept_inventory(snapshot, manifest)
