"""A card in a network of guests of this host alone, without root: each frame is a datagram to a multicast group.

libvirt's own word for it, ``<interface type='mcast'>``, can neither be plugged into a running guest nor be kept off the
host's real network cards.  So the card is QEMU's alone: plugged through the monitor, or given on the command line to a
guest that has it when it starts (qemu(1), -netdev socket).
"""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmimagemanager.hypervisor import qemuline

if TYPE_CHECKING:
    from vmimagemanager.hypervisor.monitor import Monitor
    from vmimagemanager.hypervisor.xmltree import Element

_NETWORK, _CARD = "vmim-lan", "vmim-lan-card"
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class LanCard:
    """One guest's card: its MAC address, the group and the UDP port of its network, and the PCI port that it is in."""

    mac: str
    group: str
    udp_port: int
    pci_port: str

    @property
    def network(self) -> dict[str, str]:
        return {"type": "socket", "id": _NETWORK, "mcast": f"{self.group}:{self.udp_port}", "localaddr": _LOOPBACK}

    @property
    def device(self) -> dict[str, str]:
        # Without a ROM to boot from, which a migration stream would hold.  Without an address QEMU would put it into a
        # port that is taken, where no guest finds it, and say nothing.
        where = {"bus": self.pci_port, "addr": "0x0"}
        return {"driver": "virtio-net-pci", "id": _CARD, "netdev": _NETWORK, "mac": self.mac, "romfile": "", **where}


def add(root: Element, card: LanCard) -> None:
    """Give the domain the card from its start on, in place."""
    kind = card.network
    qemuline.add(root, "-netdev", ",".join([kind.pop("type"), *(f"{key}={value}" for key, value in kind.items())]))
    # As libvirt writes its own: QEMU makes devices that are given in its older syntax before the ports they are put in.
    qemuline.add(root, "-device", json.dumps(card.device))


def remove(root: Element) -> None:
    """Take what `add` added out of the domain again, in place."""
    qemuline.remove(root, lambda _, value: _options(value).get("id") in (_NETWORK, _CARD))


def find(root: Element) -> LanCard | None:
    """Return the card that the domain has from its start on, or None."""
    found = {options.get("id"): options for options in map(_options, qemuline.values(root))}
    if _CARD not in found or _NETWORK not in found:
        return None
    group, _, port = found[_NETWORK]["mcast"].partition(":")
    return LanCard(mac=found[_CARD]["mac"], group=group, udp_port=int(port), pci_port=found[_CARD]["bus"])


def free_pci_port(root: Element) -> str | None:
    """Return the last PCIe port in which the domain has no device: libvirt fills them from the first on."""
    taken = {int(address.get("bus", "0"), 0) for address in root.iterfind("devices//address[@type='pci']")}
    ports = {int(port.get("index", "0")) for port in root.iterfind("devices/controller[@model='pcie-root-port']")}
    free = ports - taken
    return f"pci.{max(free)}" if free else None


def plug(monitor: Monitor, card: LanCard) -> None:
    """Plug the card into a running guest; raise HypervisorError where QEMU refuses."""
    monitor.command("netdev_add", **card.network)
    monitor.command("device_add", **card.device)


class Claim:
    """The right to a group and a port on this host, until it is closed; QEMUs may join meanwhile, other claims not.

    It is a socket that was bound alone, and lets only those in that are willing to share.
    """

    def __init__(self, bound: socket.socket) -> None:
        self._bound = bound

    @classmethod
    def of(cls, group: str, udp_port: int) -> Claim | None:
        """Claim a group and a port; return None when any process of this host has them."""
        bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            bound.bind((group, udp_port))
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        except OSError:
            bound.close()
            return None
        return cls(bound)

    def close(self) -> None:
        self._bound.close()


def _options(argument: str) -> dict[str, str]:
    if not argument.startswith("{"):
        return qemuline.parsed(argument)
    try:
        return dict(json.loads(argument))
    except ValueError:  # somebody else's, and QEMU says what is wrong with it
        return {}
