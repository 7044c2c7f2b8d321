"""What makes the network of a clone its own: an address that is kept for it, and its guest's part."""

from __future__ import annotations

import logging
from datetime import timedelta
from functools import partial

from vmimagemanager.boxes.lan import Lan
from vmimagemanager.boxes.reach import agent, check_alive, console_tail
from vmimagemanager.boxes.record import BoxRecord
from vmimagemanager.boxes.site import Site
from vmimagemanager.deadline import Deadline
from vmimagemanager.errors import BoxError, HypervisorError
from vmimagemanager.guest import address as guest_address
from vmimagemanager.guest import lan as guest_lan
from vmimagemanager.guest.agent import Agent
from vmimagemanager.hypervisor.domain import Domain
from vmimagemanager.hypervisor.domainxml import DomainXml
from vmimagemanager.hypervisor.network import Network, address_of
from vmimagemanager.names import host_name
from vmimagemanager.state import BoxFolder

_log = logging.getLogger(__name__)
_SHARED = "libvirt:"
_LIMIT = timedelta(seconds=20)


def is_shared(record: BoxRecord) -> bool:
    """Tell whether a box's card is on a network with others, where each needs an address of its own."""
    return record.settings.network.startswith(_SHARED)


def keep_address(site: Site, record: BoxRecord) -> str:
    """Have a box's libvirt network keep a free address for it alone, until `give_back`; return it.

    Raises BoxError when none is free, HypervisorError when the network is not there or cannot keep any.
    """
    found, called = _network(site, record.settings.network), host_name(record.name)
    found.give_back(called)  # of a box that somebody removed by hand
    for address in found.free():
        if found.keep(called, address):
            return address
    raise BoxError(
        f"The network '{found.name}' has no free address for '{record.name}'.",
        hint=f"virsh net-dhcp-leases {found.name}",
    )


def give_back(site: Site, name: str, definition: DomainXml) -> None:
    """Keep a box's address no longer, if one was kept; a network that is gone keeps none."""
    network = definition.network or "none"
    if network.startswith(_SHARED):
        try:
            _network(site, network).give_back(host_name(name))
        except HypervisorError as error:
            _log.debug("no address of '%s' to give back: %s", name, error)


def move(site: Site, domain: Domain, record: BoxRecord, *, old_mac: str) -> None:
    """Have the guest of a clone that is not connected yet take its own MAC address and address, and connect it."""
    folder = site.state.box(record.name)
    prefix = _network(site, record.settings.network).prefix_length
    guest_address.move(
        _ready_agent(domain, folder),
        old_mac=old_mac,
        mac=record.mac,
        address=f"{address_of(record.mac)}/{prefix}",
        limit=_LIMIT,
        check=partial(check_alive, domain, folder),
    )
    domain.set_link(up=True)


def join(domain: Domain, folder: BoxFolder, lan: Lan) -> None:
    """Have the guest take its address in the common network on the card that it has, and the names of the others."""
    address = f"{lan.address}/{lan.network.prefixlen}"
    alive = partial(check_alive, domain, folder)
    ready = _ready_agent(domain, folder)
    guest_lan.join(ready, mac=lan.mac, address=address, hosts=lan.hosts, limit=_LIMIT, check=alive)


def _network(site: Site, network: str) -> Network:
    return site.hypervisor.network(network.removeprefix(_SHARED))


def _ready_agent(domain: Domain, folder: BoxFolder) -> Agent:
    found = agent(domain)
    found.wait(Deadline(_LIMIT), partial(check_alive, domain, folder), detail=lambda: console_tail(folder))
    return found
