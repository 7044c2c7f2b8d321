"""What makes the network of a clone its own, in its guest."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

from vmimagemanager.boxes.lan import Lan
from vmimagemanager.boxes.reach import agent, check_alive, console_tail
from vmimagemanager.deadline import Deadline
from vmimagemanager.guest import lan as guest_lan
from vmimagemanager.guest.agent import Agent
from vmimagemanager.hypervisor.domain import Domain
from vmimagemanager.state import BoxFolder

_LIMIT = timedelta(seconds=20)


def join(domain: Domain, folder: BoxFolder, lan: Lan) -> None:
    """Have the guest take its address in the common network on the card that it has, and the names of the others."""
    address = f"{lan.address}/{lan.network.prefixlen}"
    alive = partial(check_alive, domain, folder)
    ready = _ready_agent(domain, folder)
    guest_lan.join(ready, mac=lan.mac, address=address, hosts=lan.hosts, limit=_LIMIT, check=alive)


def _ready_agent(domain: Domain, folder: BoxFolder) -> Agent:
    found = agent(domain)
    found.wait(Deadline(_LIMIT), partial(check_alive, domain, folder), detail=lambda: console_tail(folder))
    return found
