"""The common network of a fork's clones: which it is on this host, and who has which address in it."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any

from vmimagemanager.errors import BoxError, HypervisorError
from vmimagemanager.hypervisor import lancard
from vmimagemanager.hypervisor.domain import Domain
from vmimagemanager.hypervisor.domainxml import DomainXml
from vmimagemanager.hypervisor.lancard import Claim, LanCard
from vmimagemanager.hypervisor.network import mac_of

MOST = 254
_NUMBERS = 1 << 14
_TRIES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Lan:
    """A clone's place in a common network.

    ``number`` says which of this host's networks it is: group, UDP port and addresses follow from it, so that no two of
    them have any of these in common.  ``address`` is the clone's own, ``hosts`` those of all host names there.
    """

    number: int
    address: str
    hosts: Mapping[str, str]

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Lan:
        return cls(number=record["number"], address=record["address"], hosts=dict(record["hosts"]))

    def to_record(self) -> dict[str, object]:
        return {"number": self.number, "address": self.address, "hosts": dict(self.hosts)}

    @property
    def network(self) -> IPv4Network:
        return _network(self.number)

    @property
    def mac(self) -> str:
        """The MAC address of the clone's card."""
        return mac_of(self.address)

    def laid_over(self, definition: DomainXml) -> DomainXml:
        """Return a definition with the clone's card; raise BoxError when there is no PCI port for it."""
        port = definition.free_pci_port
        if port is None:
            raise BoxError(
                "There is no free PCIe port in the domain for a card in the common network.",
                hint="Add a <controller type='pci' model='pcie-root-port'/> to the box's XML, and snapshot it anew.",
            )
        group, udp_port = _group(self.number)
        return definition.with_lan_card(LanCard(mac=self.mac, group=group, udp_port=udp_port, pci_port=port))


@contextmanager
def planned(host_names: Sequence[str], *, taken: Collection[int]) -> Iterator[tuple[Lan, ...]]:
    """Yield a place for each host name in a network that nobody on this host has, and that nobody else can have now.

    ``taken`` are networks that are not in use now, but may be again.  Raises HypervisorError when none is free.
    """
    for _ in range(_TRIES):
        number = secrets.randbelow(_NUMBERS)
        claim = None if number in taken else Claim.of(*_group(number))
        if claim is not None:
            break
    else:
        raise HypervisorError("No multicast group of this host is free for a common network.")
    try:
        hosts = dict(zip(host_names, map(str, _network(number).hosts()), strict=False))
        yield tuple(Lan(number=number, address=address, hosts=hosts) for address in hosts.values())
    finally:
        claim.close()


def plug(domain: Domain, definition: DomainXml) -> None:
    """Plug the card that a clone's ``definition`` has into its running guest."""
    card = definition.lan_card
    assert card is not None
    lancard.plug(domain.monitor, card)


def _network(number: int) -> IPv4Network:
    return IPv4Network(f"10.{192 + number // 256}.{number % 256}.0/24")


def _group(number: int) -> tuple[str, int]:
    # 239.255.0.0/16 is for networks that do not leave their place (RFC 2365); the ports are below the kernel's own.
    return f"239.255.{number // 256}.{number % 256}", 16384 + number
