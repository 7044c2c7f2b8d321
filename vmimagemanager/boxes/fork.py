"""Clones: boxes made of one live snapshot, which run at once and share its memory until they write to it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TypeVar

from vmimagemanager import snapshots
from vmimagemanager.boxes import lan, life, making, network, seeding
from vmimagemanager.boxes.define import undefine
from vmimagemanager.boxes.lan import Lan
from vmimagemanager.boxes.reach import attach
from vmimagemanager.boxes.record import BoxRecord
from vmimagemanager.boxes.site import Site
from vmimagemanager.config import Channel, Engine
from vmimagemanager.deadline import Stopwatch
from vmimagemanager.errors import BoxError, GuestError, SnapshotError, SpaceError, StateError
from vmimagemanager.guest.repair import CloneIdentity, new_token
from vmimagemanager.hypervisor import launch, memory
from vmimagemanager.hypervisor.domain import Domain
from vmimagemanager.hypervisor.domainxml import DomainXml
from vmimagemanager.hypervisor.network import mac_of
from vmimagemanager.hypervisor.ramfile import RamFile
from vmimagemanager.leases import Leases, owner
from vmimagemanager.names import Address, host_name
from vmimagemanager.snapshots import Manifest
from vmimagemanager.state import BoxFolder
from vmimagemanager.units import Size

_OF_QEMU = Size(160 << 20)  # its own memory, and its translations under emulation
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Forked:
    """One clone that was made, the seconds of each phase, and its place in the common network, if there is one.

    One of a guest that nothing can be asked of is neither ``proven`` nor has it an identity of its own.
    """

    name: str
    phases: dict[str, float]
    place: Lan | None = None
    proven: bool = True


def require_memory(count: int, ram: Size) -> None:
    """Raise SpaceError when ``count`` clones, each of which writes to all of its ``ram``, exceed the host's memory."""
    free = memory.available()
    needed = Size(count * (ram.bytes + _OF_QEMU.bytes))
    if free is not None and needed > free:
        raise SpaceError(
            f"{count} clones may need {needed.human()} of memory, and {free.human()} are available.",
            hint="They share what they do not write to: --overcommit forks all the same.",
        )


def forkable(site: Site, record: BoxRecord, snapshot: str) -> Manifest:
    """Return a snapshot that can be forked; raise SnapshotError, or BoxError, that says why one cannot."""
    manifest = snapshots.find(site.state.box(record.name), snapshot)
    if manifest.engine is not Engine.LIVE:
        address = Address(record.name, snapshot)
        what = "it was taken of a box that was off" if not manifest.running else f"it is a {manifest.engine} one"
        raise SnapshotError(
            f"The snapshot '{address}' cannot be forked: {what}, and clones need the memory of a live one.",
            hint=f"vmimagemanager restore {address}, and take another snapshot of the box while it runs",
        )
    snapshots.require_whole(site.state.box(record.name), manifest)
    snapshots.require_platform(site.hypervisor, site.state.box(record.name), manifest)
    life.require_bases(site, site.state.box(record.name).layer(manifest.layer))
    frozen = DomainXml.read(site.state.box(record.name).snapshot(snapshot).definition)
    if frozen.lan_card is not None:
        raise SnapshotError(
            f"The snapshot '{Address(record.name, snapshot)}' cannot be forked: its guest has a card in the common "
            "network of a fork, and its clones would all have its address there.",
            hint=f"vmimagemanager fork {record.fork_of} makes clones of what it is a clone of.",
        )
    if frozen.has_more_shared_cards:
        raise SnapshotError(
            f"The snapshot '{Address(record.name, snapshot)}' cannot be forked: its guest has more than one network "
            "card, and its clones would all have the address of the second one.",
            hint="Give the box one card alone (<interface>), and snapshot it anew.",
        )
    return manifest


def fork(
    site: Site, record: BoxRecord, manifest: Manifest, names: Sequence[str], *, new_host_keys: bool, common: bool
) -> tuple[Forked, ...]:
    """Make a running, proven clone of a live snapshot under each of ``names``; on failure none of them is left.

    Each has a host name, a machine-id and a generation id of its own; on a libvirt network a MAC address and an
    address, too, and in a network of its own the snapshot's MAC address: with a new one its DHCP client would ask for
    another address.  It is opened by the box's key, and known by the box's host key, or by a new one, which takes its
    SSH server some seconds under emulation.  In a ``common`` network they reach each other, by address and by name.

    Raises BoxError when there is a box of such a name, SnapshotError when a guest that came up is not the snapshot.
    """
    if new_host_keys and record.settings.channel is not Channel.AGENT:
        raise BoxError(
            f"Clones of '{record.name}' cannot get host keys of their own: those are given through the guest's agent.",
            hint="They are known by the host key of the box: fork without --new-host-keys.",
        )
    with _places(site, names, common=common) as places:

        def clone(name: str) -> Forked:
            return _clone(site, record, manifest, name, new_host_key=new_host_keys, place=places.get(name))

        try:
            return tuple(in_parallel(clone, names))
        except BaseException:
            remove(site, [name for name in names if site.state.box(name).record.exists()])
            raise


def keep(site: Site, record: BoxRecord) -> None:
    """Let a clone outlive the process that made it."""
    replace(record, temporary=False).write(site.state.box(record.name))


def remove(site: Site, names: Iterable[str]) -> None:
    """Remove clones, whatever state they are in."""
    tuple(in_parallel(lambda name: undefine(site, name, force=True), names))


def clones_of(site: Site, box: str, snapshot: str | None = None) -> tuple[str, ...]:
    """Return the names of the clones of a box, or of one of its snapshots."""
    found = []
    for name in site.state.box_names():
        parent, _, taken = _fork_of(site, name).partition("@")
        if parent == box and snapshot in (None, taken):
            found.append(name)
    return tuple(found)


def clones_first(site: Site, names: Iterable[str]) -> dict[str, str]:
    """Return names with the one of them that each stands on in the end, clones before what they are clones of."""
    given = set(names)
    ways = {name: [name] for name in given}
    for way in ways.values():
        while (parent := _fork_of(site, way[-1]).partition("@")[0]) in given - set(way):
            way.append(parent)
    return {name: ways[name][-1] for name in sorted(given, key=lambda name: (-len(ways[name]), name))}


def is_clone(site: Site, name: str) -> bool:
    """Tell whether a box was made by a fork."""
    return _fork_of(site, name) != ""


def refuse_clones(site: Site, box: str, snapshot: str | None = None) -> None:
    """Raise BoxError that names the clones which stand on a box, or on one of its snapshots, or who makes more."""
    what = f"box '{box}'" if snapshot is None else f"snapshot '{Address(box, snapshot)}'"
    for pool, holder in Leases(site.state).pools(box).items():
        if snapshot is None or pool == str(Address(box, snapshot)):
            raise BoxError(
                f"The {what} cannot be removed: a pool of spares is held by {holder}.",
                hint=f"End it first: kill {holder.pid}",
            )
    clones = clones_of(site, box, snapshot)
    if clones:
        raise BoxError(
            f"The {what} cannot be removed: {', '.join(clones)} {'stands' if len(clones) == 1 else 'stand'} on it.",
            hint=f"vmimagemanager undefine --force {' '.join(clones)}",
        )


def in_parallel(deed: Callable[[Item], Result], items: Iterable[Item]) -> Iterable[Result]:
    """Do a deed to all items, some at once, to the end of all of them; then raise the first error, if there was one."""
    with ThreadPoolExecutor(max_workers=max(2, os.cpu_count() or 1)) as pool:
        return [future.result() for future in [pool.submit(deed, item) for item in items]]


def _fork_of(site: Site, name: str) -> str:
    try:
        return BoxRecord.read(site.state.box(name)).fork_of
    except StateError:  # it is damaged, or was just removed: told by whatever needs that box
        return ""


@contextmanager
def _places(site: Site, names: Sequence[str], *, common: bool) -> Iterator[Mapping[str, Lan]]:
    """Yield each clone's place in a common network, if there is to be one."""
    if not common:
        yield {}
        return
    known = (BoxRecord.read(site.state.box(name)) for name in site.state.box_names() if is_clone(site, name))
    taken = {record.lan.number for record in known if record.lan is not None}
    with lan.planned([host_name(name) for name in names], taken=taken) as places:
        yield dict(zip(names, places, strict=True))


def _clone(
    site: Site, record: BoxRecord, manifest: Manifest, name: str, *, new_host_key: bool, place: Lan | None
) -> Forked:
    watch = Stopwatch()
    folder, own = site.state.box(record.name), site.state.box(name)
    clone, definition = _made(site, record, manifest, name, new_host_key=new_host_key, place=place)
    watch.lap("define")
    snapshot = folder.snapshot(manifest.name)
    frozen = DomainXml.read(snapshot.definition)
    domain = launch.wake(
        site.hypervisor,
        making.with_parts(site, clone, frozen).with_lan_card(None),  # its state knows of none
        RamFile(path=snapshot.ram, size=frozen.ram, shared=False),
        snapshot.device_state,
        limit=snapshots.STATE_LIMIT,
        connected=not network.is_shared(clone),
    )
    attach(domain, clone)
    watch.lap("start")
    if not manifest.token:
        return Forked(name=name, phases=watch.phases, proven=False)
    _become(domain, clone, own, manifest.token)
    watch.lap("proof, repair and identity")
    if network.is_shared(clone):
        network.move(site, domain, clone, old_mac=frozen.mac or record.mac)
        watch.lap("address")
    if new_host_key:
        life.identify(domain, clone, own)
        watch.lap("host key")
    if place is not None:
        lan.plug(domain, definition)
        network.join(domain, own, place)
        watch.lap("common network")
    return Forked(name=name, phases=watch.phases, place=place)


def _made(
    site: Site, record: BoxRecord, manifest: Manifest, name: str, *, new_host_key: bool, place: Lan | None
) -> tuple[BoxRecord, DomainXml]:
    """Make a clone's folder and domain, and return its record and definition."""
    folder = site.state.box(record.name)
    footing = snapshots.footing_of(manifest, folder, record.disks)
    clone = replace(
        record,
        name=name,
        uuid=str(uuid.uuid4()),
        adopted=False,
        created=datetime.now(UTC).replace(microsecond=0),
        owner=owner(),
        fork_of=str(Address(record.name, manifest.name)),
        temporary=True,
        lan=place,
        # A disk that the box had then and has no more is the clone's, too: its memory knows it.
        disks={disk: record.disks.get(disk, one) for disk, one in footing.disks.items() if disk},
    )
    definition = making.with_parts(site, clone, DomainXml.read(folder.definition))
    making.make(site, clone, definition, footing=footing, keys_of=folder, new_host_key=new_host_key)
    if network.is_shared(clone):
        clone = replace(clone, mac=mac_of(network.keep_address(site, clone)))
        seeding.lay(site.hypervisor, clone, site.state.box(name))  # with that address; nobody has read it yet
        definition = making.with_parts(site, clone, definition)
        making.store(site, clone, definition, site.state.box(name))
    return clone, definition


def _become(domain: Domain, clone: BoxRecord, own: BoxFolder, token: str) -> None:
    """Give a clone's guest its name and machine-id; raise SnapshotError unless its memory has the snapshot's token."""
    identity = CloneIdentity(host_name=clone.host_name, machine_id=clone.machine_id)
    proof = life.prove(domain, clone, own, new_token(), identity=identity)
    if proof.token != token:
        raise SnapshotError(f"The guest of '{clone.name}' runs, but it is not the snapshot '{clone.fork_of}'.")
    if proof.identity != "yes":
        raise GuestError(f"The guest of '{clone.name}' did not take its own host name and machine-id.")
