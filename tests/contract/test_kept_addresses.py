"""Addresses that a libvirt network keeps for clones, against a real libvirt: its test driver, which runs no network."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from vmimagemanager.errors import HypervisorError
from vmimagemanager.hypervisor.connection import Hypervisor
from vmimagemanager.hypervisor.network import Kept, Network, mac_of

THEIRS = Kept(name="printer", mac="52:54:00:11:22:33", address="192.168.213.12")
NODE = f"""
<node>
  <network>
    <name>small</name>
    <bridge name="small0"/>
    <ip family="ipv6" address="fd00::1" prefix="64"/>
    <ip address="192.168.213.10" netmask="255.255.255.0">
      <dhcp>
        <range start="192.168.213.9" end="192.168.213.13"/>
        <host mac="{THEIRS.mac}" name="{THEIRS.name}" ip="{THEIRS.address}"/>
      </dhcp>
    </ip>
  </network>
  <network><name>none</name><bridge name="none0"/><ip address="192.168.214.1" prefix="28"/></network>
</node>
"""


@pytest.fixture
def hypervisor(tmp_path: Path) -> Iterator[Hypervisor]:
    path = tmp_path / "node.xml"
    path.write_text(NODE)
    with Hypervisor.connect(f"test://{path}") as opened:
        yield opened


@pytest.fixture
def network(hypervisor: Hypervisor) -> Network:
    return hypervisor.network("small")


def test_only_addresses_that_nobody_has_are_free(network: Network) -> None:
    assert list(network.free()) == ["192.168.213.9", "192.168.213.11", "192.168.213.13"]
    assert network.prefix_length == 24


def test_an_address_is_kept_for_one_guest_until_it_is_given_back(network: Network) -> None:
    assert network.keep("web-1", "192.168.213.11")
    ours = Kept(name="web-1", mac="52:54:c0:a8:d5:0b", address="192.168.213.11")
    assert network.kept() == (THEIRS, ours)
    assert not network.keep("web-2", "192.168.213.11")
    assert not network.keep("web-2", THEIRS.address)
    assert list(network.free()) == ["192.168.213.9", "192.168.213.13"]
    network.give_back("web-2")
    network.give_back("web-1")
    network.give_back("web-1")
    assert network.kept() == (THEIRS,)


def test_what_somebody_else_keeps_is_never_given_back(network: Network) -> None:
    network.give_back(THEIRS.name)
    assert network.kept() == (THEIRS,)


def test_a_name_that_is_kept_another_address_for_is_an_error_and_not_an_address_that_is_taken(network: Network) -> None:
    with pytest.raises(
        HypervisorError, match=r"keep the address 192\.168\.213\.11 of the network 'small' for 'printer'"
    ):
        network.keep(THEIRS.name, "192.168.213.11")


def test_a_network_without_a_dhcp_server_says_so(hypervisor: Hypervisor) -> None:
    with pytest.raises(HypervisorError, match="'none' has no DHCP server of libvirt's") as raised:
        list(hypervisor.network("none").free())
    assert raised.value.hint == "virsh net-edit none"


def test_a_network_that_does_not_exist_is_named(hypervisor: Hypervisor) -> None:
    with pytest.raises(HypervisorError, match="look up the network 'absent'"):
        hypervisor.network("absent")


def test_a_mac_address_follows_from_the_address_alone() -> None:
    addresses = [str(IPv4Address("10.0.0.0") + number * 65537) for number in range(200)]
    assert len({mac_of(address) for address in addresses}) == len(addresses)
    assert mac_of("192.168.213.99") == "52:54:c0:a8:d5:63"
    assert int(mac_of("10.0.0.1")[:2], 16) & 3 == 2  # locally administered, and of one host
