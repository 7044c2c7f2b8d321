"""What is known about a box."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from vmimagemanager import keys, snapshots
from vmimagemanager.boxes import reach
from vmimagemanager.boxes.lan import Lan
from vmimagemanager.boxes.site import Site
from vmimagemanager.config import BoxSettings
from vmimagemanager.errors import ImageError, VmimError
from vmimagemanager.leases import Hold, Leases
from vmimagemanager.locks import Holder


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What `Box.show` tells: the record, libvirt's state of the domain, who leases or holds it, its SSH port.

    ``user`` is whom it is used as, its image's where the settings say nothing.
    """

    name: str
    state: str
    image: str
    settings: BoxSettings
    accelerator: str
    accelerator_reason: str
    created: datetime
    owner: str
    adopted: bool
    snapshot: str
    leased_by: Holder | None
    held_by: Hold | None
    fork_of: str
    spare: bool
    lan: Lan | None
    ssh: tuple[str, int] | None
    host_key: str
    drift: tuple[str, ...]
    user: str

    @property
    def free(self) -> bool:
        """Whether nobody leases or holds the box, and no pool keeps it."""
        return self.leased_by is None and self.held_by is None and not self.spare


def status(site: Site, leases: Leases, name: str) -> Status:
    """Return what is known about a box, from its record and from libvirt."""
    record = site.record(name)
    folder = site.state.box(name)
    domain = site.domain(name)
    ssh, standing_on = None, ""
    with suppress(ImageError):  # a damaged disk is told by whatever needs it
        standing_on = snapshots.standing_on(folder)
    if domain is not None:
        with suppress(VmimError):
            access = reach.access(domain, record, folder)
            ssh = (access.host, access.port)
    asked = site.configuration.box(name).to_record()
    frozen = record.settings.to_record()
    tables = site.configuration.box_tables.get(name, {})
    return Status(
        name=name,
        state=domain.state().value if domain is not None else "off",
        image=record.image,
        settings=record.settings,
        accelerator=record.accelerator.value,
        accelerator_reason=record.accelerator_reason,
        created=record.created,
        owner=record.owner,
        adopted=record.adopted,
        snapshot=standing_on,
        leased_by=leases.holder(name),
        held_by=leases.hold(name),
        fork_of=record.fork_of,
        spare=record.spare != "",
        lan=record.lan,
        ssh=ssh,
        host_key=keys.parse_line(reach.host_key(folder)).fingerprint,
        user=record.user,
        drift=tuple(key for key in tables if asked.get(key) != frozen.get(key)),
    )
