"""What was decided when a box was defined; it changes only by ``define --update``."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from vmimagemanager import records
from vmimagemanager.boxes.lan import Lan
from vmimagemanager.config import BoxSettings
from vmimagemanager.disks import Backing, detect_format
from vmimagemanager.errors import StateError
from vmimagemanager.hypervisor.accelerator import Accelerator
from vmimagemanager.names import host_name
from vmimagemanager.state import FIRST_DISK, BoxFolder

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxRecord:
    """One box.

    ``image`` is the address of a generation (empty for an adopted domain) and ``base`` the disk that the box stands on.
    ``disks`` is what its further disks stand on, by their names, and ``nvram`` the file that its firmware's variables
    are copied from, or empty: libvirt makes them anew.
    ``fork_of`` is the address of the snapshot that a clone was made of, or empty; a ``temporary`` box ends with the
    process that leases it.  ``spare`` is the token in the memory of a paused clone that a pool keeps ready, or empty.
    ``lan`` is a clone's place in the common network of its fork.  ``base_format`` is empty in records that are older
    than raw images: there it is told by the base itself.  ``seed`` names the file from which the guest of a cloud image
    learns who it is, or is empty.  ``user`` is whom it is used as.
    """

    name: str
    uuid: str
    mac: str
    image: str
    digests: Mapping[str, str]
    base: str
    accelerator: Accelerator
    accelerator_reason: str
    adopted: bool
    created: datetime
    owner: str
    settings: BoxSettings
    disks: Mapping[str, Backing] = field(default_factory=dict)
    nvram: str = ""
    fork_of: str = ""
    temporary: bool = False
    spare: str = ""
    lan: Lan | None = None
    base_format: str = ""
    seed: str = ""
    user: str = "root"

    @property
    def bases(self) -> dict[str, Backing]:
        """What all of its disks stand on when nothing was written to them."""
        base = Path(self.base)
        return {FIRST_DISK: Backing(path=base, format=self.base_format or detect_format(base) or "raw"), **self.disks}

    @property
    def machine_id(self) -> str:
        """The guest's machine-id, which follows from the domain's UUID.

        It is not that UUID itself: systemd would take that from the firmware unasked, and a guest whose machine-id is
        this one is therefore one that we have given its identity.
        """
        return uuid.uuid5(uuid.UUID(self.uuid), "machine-id").hex

    @property
    def host_name(self) -> str:
        return host_name(self.name)

    @property
    def ssh_port(self) -> int:
        """The port of 127.0.0.1 that is tried first: the same for a box at each start, as long as it is free."""
        return 20000 + uuid.UUID(self.uuid).int % 12000

    def write(self, folder: BoxFolder) -> None:
        record = {
            "name": self.name,
            "uuid": self.uuid,
            "mac": self.mac,
            "image": self.image,
            "base": self.base,
            "base-format": self.base_format or None,
            "accelerator": self.accelerator.value,
            "accelerator-reason": self.accelerator_reason,
            "adopted": self.adopted,
            "created": self.created,
            "owner": self.owner,
            "nvram": self.nvram or None,
            "fork-of": self.fork_of or None,
            "temporary": self.temporary or None,
            "disks": {name: one.to_record() for name, one in self.disks.items()},
            "spare": self.spare or None,
            "seed": self.seed or None,
            "user": self.user,
            "lan": None if self.lan is None else self.lan.to_record(),
            "digests": dict(self.digests),
            "settings": self.settings.to_record(),
        }
        records.write(folder.record, record, version=FORMAT)

    @classmethod
    def read(cls, folder: BoxFolder) -> BoxRecord:
        """Read a box's record; raise StateError when it is damaged."""
        record = records.read(folder.record, version=FORMAT)
        try:
            settings = BoxSettings.from_record(record["settings"], source=str(folder.record))
            return cls(
                name=record["name"],
                uuid=record["uuid"],
                mac=record["mac"],
                image=record["image"],
                base=record["base"],
                base_format=record.get("base-format", ""),
                accelerator=Accelerator(record["accelerator"]),
                accelerator_reason=record["accelerator-reason"],
                adopted=record["adopted"],
                created=record["created"],
                owner=record["owner"],
                digests=record["digests"],
                disks={name: Backing.from_record(one) for name, one in record.get("disks", {}).items()},
                nvram=record.get("nvram", ""),
                fork_of=record.get("fork-of", ""),
                temporary=record.get("temporary", False),
                spare=record.get("spare", ""),
                seed=record.get("seed", ""),
                lan=Lan.from_record(record["lan"]) if "lan" in record else None,
                user=record.get("user") or settings.user or "root",  # older records have it in their settings alone
                settings=settings,
            )
        except (KeyError, ValueError, TypeError) as error:
            raise StateError(f"The record '{folder.record}' is damaged: {error}.") from error
