"""Whether a snapshot can be brought back: its files are there and as they were, and this host can run its memory.

All of it is asked before anything is stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from vmimagemanager import disks
from vmimagemanager.config import Engine
from vmimagemanager.errors import ConfigError, SnapshotError, StateError
from vmimagemanager.hypervisor import launch
from vmimagemanager.hypervisor.connection import Hypervisor
from vmimagemanager.hypervisor.domainxml import DomainXml
from vmimagemanager.names import Address
from vmimagemanager.snapshots import platform, seal
from vmimagemanager.snapshots.manifest import Manifest
from vmimagemanager.state import BoxFolder, SnapshotFolder


def require_whole(folder: BoxFolder, manifest: Manifest) -> None:
    """Raise StateError when a file of a snapshot is missing, SnapshotError when one of its memory was altered."""
    snapshot = folder.snapshot(manifest.name)
    _require_files(folder, snapshot, manifest)
    if manifest.engine is Engine.DISK:
        with suppress(ConfigError):  # a disk alone is booted by the box's own definition
            _require_seed(folder, snapshot, manifest)
        return
    altered = seal.broken(snapshot, manifest.seals)
    if altered:
        address = Address(folder.name, manifest.name)
        raise SnapshotError(f"The snapshot '{address}' was altered: {' '.join(altered)}", hint=_disk_hint(address))
    _require_seed(folder, snapshot, manifest)


def require_platform(hypervisor: Hypervisor, folder: BoxFolder, manifest: Manifest) -> None:
    """Raise SnapshotError unless a snapshot's memory can be brought back here, as far as that can be told beforehand.

    One that consists of a disk alone has none to bring back.
    """
    if manifest.engine is Engine.DISK:
        return
    address = Address(folder.name, manifest.name)
    found = hindrances(hypervisor, manifest, DomainXml.read(folder.snapshot(manifest.name).definition))
    if found:
        message = f"The memory of '{address}' cannot be brought back here: {' '.join(found)}"
        raise SnapshotError(message, hint=_disk_hint(address))


def hindrances(hypervisor: Hypervisor, manifest: Manifest, definition: DomainXml) -> tuple[str, ...]:
    """Return, as whole sentences, why a snapshot cannot be brought back on this host; nothing when it can."""
    found = platform.differences(manifest.platform, hypervisor, definition)
    if manifest.engine is Engine.LIVE and not launch.ram_may_be_a_file(hypervisor):
        return (*found, f"{hypervisor.host.confined_by} keeps QEMU from files that libvirt does not name.")
    return found


def _disk_hint(address: Address) -> str:
    return f"Its disk can be booted: vmimagemanager restore --disk {address}"


def _require_files(folder: BoxFolder, snapshot: SnapshotFolder, manifest: Manifest) -> None:
    """Raise StateError that names the file which a snapshot lacks, if it lacks one."""
    frozen = [folder.layer(manifest.layer, disk) for disk in manifest.disks]
    needed: Sequence[Path] = [*frozen, snapshot.definition]
    if manifest.engine is Engine.LIVE:
        needed = [*needed, snapshot.ram, snapshot.device_state]
    elif manifest.engine is Engine.SAVED:
        needed = [*needed, snapshot.saved]
    for path in needed:
        _require(path, folder, manifest)
    if any(disks.detect_format(layer) is None for layer in frozen):
        raise StateError(
            f"The snapshot '{manifest.name}' of '{folder.name}' is damaged: its disk is not a qcow2 image any more.",
            hint=f"vmimagemanager snapshot-remove {folder.name}@{manifest.name}",
        )


def _require_seed(folder: BoxFolder, snapshot: SnapshotFolder, manifest: Manifest) -> None:
    seed = DomainXml.read(snapshot.definition).seed
    if seed is not None:
        _require(seed, folder, manifest)


def _require(path: Path, folder: BoxFolder, manifest: Manifest) -> None:
    if not path.exists():
        raise StateError(
            f"The snapshot '{manifest.name}' of '{folder.name}' is damaged: '{path}' is missing.",
            hint=f"vmimagemanager snapshot-remove {folder.name}@{manifest.name}",
        )
