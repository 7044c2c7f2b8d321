"""What an archive of a snapshot holds, and what it says of the box that it comes from.

QEMU trusts the memory that it reads, and libvirt the definition: neither is used unless the user trusts the archive's
maker.  Disks, firmware variables, kernel and initrd are data of a guest, which nobody trusts anyway.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from vmimagemanager import keys, names
from vmimagemanager.boxes.reach import HOST, LOGIN
from vmimagemanager.boxes.record import BoxRecord
from vmimagemanager.config import BoxSettings, Channel, Engine
from vmimagemanager.errors import SnapshotError, StateError, UsageError
from vmimagemanager.images import seed
from vmimagemanager.snapshots import Manifest
from vmimagemanager.snapshots.parcel import Parcel
from vmimagemanager.state import FIRST_DISK
from vmimagemanager.units import Size

SNAPSHOT = "snapshot/"  # what lies in the snapshot's folder
MANIFEST, DEFINITION = f"{SNAPSHOT}manifest.toml", f"{SNAPSHOT}domain.xml"
NVRAM, TPM = f"{SNAPSHOT}nvram", f"{SNAPSHOT}tpm/"
STATE, RAM, SAVED = (f"{SNAPSHOT}{name}" for name in ("state", "ram", "saved"))
KEYS = tuple(f"keys/{kind}/{file}" for kind in (LOGIN, HOST) for file in (keys.PUBLIC, keys.PRIVATE))
KERNEL, INITRD = "kernel", "initrd"
_SINGLE = {MANIFEST, DEFINITION, NVRAM, STATE, RAM, SAVED, *KEYS, KERNEL, INITRD}
_DISK = re.compile(r"disk(?:-(?P<name>[a-z0-9]{1,15}))?\.qcow2", re.ASCII)
_OF_TPM = re.compile(rf"{TPM}\.?[A-Za-z0-9][A-Za-z0-9._-]{{0,63}}", re.ASCII)
_NEEDED_BY = {Engine.LIVE: {STATE, RAM}, Engine.SAVED: {SAVED}, Engine.DISK: set()}
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.ASCII)
_SMALL = Size(1 << 20)
# Hooks, XML and stylesheets are files and commands of the host: they stay there.
_SETTINGS = (
    *("description", "ram", "cpus", "network", "user", "channel", "firmware", "tpm"),
    *("boot-timeout", "down-timeout", "ssh-timeout"),
)


def belongs(member: str) -> bool:
    """Tell whether an archive may have a member of this name."""
    return member in _SINGLE or _DISK.fullmatch(member) is not None or _OF_TPM.fullmatch(member) is not None


def disk_member(disk: str) -> str:
    """Return the name of the member that a disk of the box is."""
    return f"disk-{disk}.qcow2" if disk else "disk.qcow2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What an archive says of the box that it comes from; checked, not trusted."""

    box: str
    snapshot: str
    uuid: str
    mac: str
    command_line: str
    settings: BoxSettings
    seed: str = ""

    @classmethod
    def of(cls, record: BoxRecord, snapshot: str, *, settings: BoxSettings, command_line: str, seeded: bool) -> Origin:
        return cls(
            box=record.name,
            snapshot=snapshot,
            uuid=record.uuid,
            mac=record.mac,
            command_line=command_line,
            settings=settings,
            seed=seed.NOCLOUD if seeded else "",
        )

    def to_record(self) -> dict[str, Any]:
        return {
            "created": datetime.now(UTC).replace(microsecond=0),
            "box": self.box,
            "snapshot": self.snapshot,
            "uuid": self.uuid,
            "mac": self.mac,
            "command-line": self.command_line,
            "seed": self.seed or None,
            "settings": _travelling(self.settings.to_record()),
        }

    @classmethod
    def read(cls, archive: Parcel) -> Origin:
        """Read what an archive says; raise SnapshotError unless it describes a box and has what one needs."""
        record, members = archive.record, [member.name for member in archive.members]
        needed = {MANIFEST, DEFINITION, *KEYS, disk_member(FIRST_DISK)}
        if members[:2] != [MANIFEST, DEFINITION] or not set(members) >= needed:
            raise malformed("it does not have the members of a snapshot, in their order")
        small = [one for one in archive.members if one.name in {MANIFEST, DEFINITION, *KEYS}]
        if any(member.size > _SMALL.bytes for member in small):
            raise malformed("one of its records is too large")
        try:
            found = cls(
                box=names.box_name(record["box"]),
                snapshot=names.snapshot_name(record["snapshot"]),
                uuid=str(uuid.UUID(record["uuid"])),
                mac=record["mac"],
                command_line=record["command-line"],
                settings=BoxSettings.from_record(_travelling(record["settings"]), source="the archive"),
                seed=record.get("seed", ""),
            )
            if not _MAC.fullmatch(found.mac) or not found.command_line.isprintable():
                raise ValueError("its MAC address or its kernel command line")
            if found.seed not in seed.KINDS:
                raise ValueError("its seed")
        except (KeyError, TypeError, ValueError, AttributeError, UsageError, StateError) as error:
            raise malformed(f"its manifest does not describe a box: {str(error).rstrip('.')}") from error
        return found

    def comes_in(self, member: str, *, trust: bool) -> bool:
        """Tell whether a member is taken in; what is not is verified all the same."""
        if trust or member in {MANIFEST, KERNEL, INITRD, NVRAM} or _DISK.fullmatch(member):
            return True
        # A guest without an agent lets nobody in but by the keys that it knows.
        return member in KEYS and self.settings.channel is not Channel.AGENT

    def require_own(self, archive: Parcel, manifest: Manifest) -> None:
        """Raise SnapshotError when an archive has another snapshot's manifest, or not the members that it needs."""
        sizes = {member.name: member.file_size for member in archive.members}
        disks = {name for name in sizes if _DISK.fullmatch(name)}
        if manifest.name != self.snapshot or not _NEEDED_BY[manifest.engine] <= set(sizes):
            raise malformed("the snapshot's manifest is that of another one")
        if disks != {disk_member(disk) for disk in manifest.disks}:
            raise malformed("the snapshot's manifest names other disks")
        if sizes.get(RAM, manifest.ram.bytes) != manifest.ram.bytes:
            raise malformed("its RAM has another size than the guest's")


def malformed(reason: str) -> SnapshotError:
    return SnapshotError(
        f"This is not an archive of a snapshot, or it is damaged: {reason}.",
        hint="Export the snapshot once more: vmimagemanager snapshot-export",
    )


def _travelling(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key in _SETTINGS}
