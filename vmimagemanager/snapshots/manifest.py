"""What a snapshot says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from vmimagemanager import records
from vmimagemanager.config import Engine
from vmimagemanager.errors import StateError
from vmimagemanager.state import FIRST_DISK, SnapshotFolder
from vmimagemanager.units import Size

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One snapshot.

    ``token`` is the value that the guest kept in its memory; ``layer`` names the frozen disks, which are the first one
    and ``further_disks``, and ``why_not`` says why no better engine was used.
    """

    name: str
    engine: Engine
    created: datetime
    owner: str
    description: str
    running: bool
    layer: str
    token: str
    boot_id: str
    ram: Size
    machine: str
    libvirt: str
    qemu: str
    why_not: tuple[str, ...]
    further_disks: tuple[str, ...] = ()

    @property
    def disks(self) -> tuple[str, ...]:
        return (FIRST_DISK, *self.further_disks)

    def write(self, folder: SnapshotFolder) -> None:
        record = {
            "name": self.name,
            "engine": self.engine.value,
            "created": self.created,
            "owner": self.owner,
            "description": self.description,
            "running": self.running,
            "layer": self.layer,
            "token": self.token,
            "boot-id": self.boot_id,
            "ram": self.ram.bytes,
            "machine": self.machine,
            "libvirt": self.libvirt,
            "qemu": self.qemu,
            "why-not": list(self.why_not),
            "further-disks": list(self.further_disks),
        }
        records.write(folder.manifest, record, version=FORMAT, mode=0o600)

    @classmethod
    def read(cls, folder: SnapshotFolder) -> Manifest:
        """Read a snapshot's manifest; raise StateError when it is damaged."""
        record = records.read(folder.manifest, version=FORMAT)
        try:
            return cls(
                name=record["name"],
                engine=Engine(record["engine"]),
                created=record["created"],
                owner=record["owner"],
                description=record["description"],
                running=record["running"],
                layer=record["layer"],
                token=record["token"],
                boot_id=record["boot-id"],
                ram=Size(record["ram"]),
                machine=record["machine"],
                libvirt=record["libvirt"],
                qemu=record["qemu"],
                why_not=tuple(record["why-not"]),
                further_disks=tuple(record.get("further-disks", ())),
            )
        except (KeyError, ValueError, TypeError) as error:
            raise StateError(f"The manifest '{folder.manifest}' is damaged: {error}.") from error
