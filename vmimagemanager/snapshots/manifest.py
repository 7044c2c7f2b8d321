"""What a snapshot says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from vmimagemanager import records
from vmimagemanager.config import Engine
from vmimagemanager.errors import StateError
from vmimagemanager.snapshots.platform import Platform
from vmimagemanager.snapshots.seal import Seal
from vmimagemanager.state import FIRST_DISK, SnapshotFolder
from vmimagemanager.units import Size

FORMAT = 1
_TYPES = {
    **dict.fromkeys(("name", "engine", "owner", "description", "layer", "token", "boot-id"), str),
    "created": datetime,
    "running": bool,
    "ram": int,
    "why-not": list,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One snapshot.

    ``token`` is the value that the guest kept in its memory; ``layer`` names the frozen disks, which are the first one
    and ``further_disks``, and ``why_not`` says why no better engine was used.  ``platform`` is what its memory needs,
    ``seals`` what its files were.
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
    why_not: tuple[str, ...]
    platform: Platform
    seals: Mapping[str, Seal] = field(hash=False)
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
            "why-not": list(self.why_not),
            "further-disks": list(self.further_disks),
            "platform": self.platform.to_record(),
            "files": {
                name: {"size": one.size, "mtime-ns": one.mtime_ns, "sha512": one.sha512 or None}
                for name, one in self.seals.items()
            },
        }
        records.write(folder.manifest, record, version=FORMAT, mode=0o600)

    @classmethod
    def read(cls, folder: SnapshotFolder) -> Manifest:
        """Read a snapshot's manifest; raise StateError when it is damaged."""
        record = records.read(folder.manifest, version=FORMAT)
        try:
            _require_types(record)
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
                why_not=tuple(record["why-not"]),
                further_disks=tuple(record.get("further-disks", ())),
                platform=Platform.from_record(record.get("platform", {})),  # an older one says nothing of either
                seals={
                    name: Seal(size=one["size"], mtime_ns=one["mtime-ns"], sha512=one.get("sha512", ""))
                    for name, one in record.get("files", {}).items()
                },
            )
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise StateError(f"The manifest '{folder.manifest}' is damaged: {error}.") from error


def _require_types(record: records.Record) -> None:
    for key, kind in _TYPES.items():
        if type(record[key]) is not kind:
            raise TypeError(f"'{key}' is not of type {kind.__name__}")
    if record["created"].tzinfo is None:
        raise ValueError("'created' has no time zone")
    if not all(type(reason) is str for reason in record["why-not"]):
        raise TypeError("'why-not' is not a list of texts")
