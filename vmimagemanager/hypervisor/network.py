"""One libvirt network: the addresses that its DHCP server gives, and keeping one for a guest.

See https://libvirt.org/formatnetwork.html#addressing.  A kept address is a ``<host>`` of its ``<dhcp>``, added and
removed while the network runs, and in its definition, so that it outlives a restart of libvirt.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from typing import TYPE_CHECKING

import libvirt
from lxml import etree

from vmimagemanager.errors import HypervisorError
from vmimagemanager.hypervisor import xmltree
from vmimagemanager.hypervisor.translate import translated

if TYPE_CHECKING:
    from vmimagemanager.hypervisor.xmltree import Element

_ADD = libvirt.VIR_NETWORK_UPDATE_COMMAND_ADD_LAST
_REMOVE = libvirt.VIR_NETWORK_UPDATE_COMMAND_DELETE


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """An address that the network's DHCP server gives to one guest alone."""

    name: str
    mac: str
    address: str


def mac_of(address: str) -> str:
    """Return the MAC address of whoever gets ``address`` from us: its last four bytes are the address.

    So two guests with different addresses have different ones, one that comes after another with its address has the
    same as that, and what is kept of the one (leases, neighbours) is right for the other.
    """
    return ":".join(["52", "54", *(f"{byte:02x}" for byte in IPv4Address(address).packed)])


def address_of(mac: str) -> str:
    """Return the address that `mac_of` made a MAC address of."""
    return str(IPv4Address(bytes.fromhex(mac.replace(":", ""))[2:]))


class Network:
    """A network that runs.  All methods raise HypervisorError when libvirt refuses."""

    def __init__(self, network: libvirt.virNetwork) -> None:
        self._network = network
        self.name: str = network.name()

    @property
    def prefix_length(self) -> int:
        """The length of the network's prefix; HypervisorError where it has no DHCP server of libvirt's."""
        with_server = self._with_server()
        mask = with_server.get("prefix") or with_server.get("netmask", "")
        return IPv4Interface(f"{with_server.get('address')}/{mask}").network.prefixlen

    def free(self) -> Iterator[str]:
        """Yield the addresses that the DHCP server may give and that nobody has; one that we gave before is free."""
        with_server = self._with_server()
        taken = {one.address for one in self.kept()} | {with_server.get("address", "")}
        leased = self._leased()
        for span in with_server.iterfind("dhcp/range"):
            first, last = (IPv4Address(span.get(end, "")) for end in ("start", "end"))
            for address in map(str, map(IPv4Address, range(int(first), int(last) + 1))):
                if address not in taken and leased.get(address) in (None, mac_of(address)):
                    yield address

    def kept(self) -> tuple[Kept, ...]:
        """Return the addresses that are kept for guests, whoever did it."""
        return tuple(
            Kept(name=host.get("name", ""), mac=host.get("mac", "").lower(), address=host.get("ip", ""))
            for host in self._definition().iterfind("ip/dhcp/host")
        )

    def keep(self, name: str, address: str) -> bool:
        """Keep an address for the guest ``name``, whose MAC address is `mac_of` it; tell whether it was still free."""
        one = Kept(name=name, mac=mac_of(address), address=address)
        try:
            self._update(_ADD, one)
        except HypervisorError:
            if any(other.address == address for other in self.kept()):
                return False
            raise
        if self._leased().get(address) in (None, one.mac):
            return True
        self._update(_REMOVE, one)
        return False

    def give_back(self, name: str) -> None:
        """Keep no address any more for a guest for which we have kept one."""
        for one in self.kept():
            if one.name == name and one.mac == mac_of(one.address):
                self._update(_REMOVE, one)

    def _update(self, command: int, one: Kept) -> None:
        host = etree.Element("host", mac=one.mac, name=one.name, ip=one.address)
        flags = libvirt.VIR_NETWORK_UPDATE_AFFECT_LIVE
        with translated(f"keep the address {one.address} of the network '{self.name}' for '{one.name}'"):
            if self._network.isPersistent():
                flags |= libvirt.VIR_NETWORK_UPDATE_AFFECT_CONFIG
            text = etree.tostring(host, encoding="unicode")
            self._network.update(command, libvirt.VIR_NETWORK_SECTION_IP_DHCP_HOST, -1, text, flags)

    def _leased(self) -> dict[str, str]:
        with translated(f"read the leases of the network '{self.name}'"):
            try:
                leases = self._network.DHCPLeases()
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:  # a driver that has no DHCP server has none
                    raise
                leases = []
        return {lease["ipaddr"]: lease["mac"].lower() for lease in leases}

    def _with_server(self) -> Element:
        for found in self._definition().iterfind("ip"):
            if found.get("family", "ipv4") == "ipv4" and found.find("dhcp/range") is not None:
                return found
        raise HypervisorError(
            f"The network '{self.name}' has no DHCP server of libvirt's, which could keep an address for each clone.",
            hint=f"virsh net-edit {self.name}",
        )

    def _definition(self) -> Element:
        with translated(f"read the network '{self.name}'"):
            text = self._network.XMLDesc()
        return xmltree.parse(text, source=f"the network '{self.name}'")
