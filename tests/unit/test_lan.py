"""The common network of clones: its numbers, its claim on this host, and the card in the domain."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from vmimagemanager.boxes.fork import Forked
from vmimagemanager.boxes.lan import Lan, planned
from vmimagemanager.errors import BoxError, HypervisorError
from vmimagemanager.hypervisor.domainxml import DomainXml
from vmimagemanager.hypervisor.lancard import Claim, LanCard
from vmimagemanager.hypervisor.ramfile import RamFile
from vmimagemanager.names import Address
from vmimagemanager.report import forks as report
from vmimagemanager.units import Size

CARD = LanCard(mac="52:54:0a:c0:4d:02", group="239.255.0.77", udp_port=16461, pci_port="pci.10")
SOMEBODY = (
    "<qemu:arg value='-device'/><qemu:arg value='{broken'/><qemu:arg value='-netdev'/><qemu:arg value='user,id=x'/>"
)
DOMAIN = f"""
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <devices>
    <controller type='pci' index='0' model='pcie-root'/>
    <controller type='pci' index='1' model='pcie-root-port'>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x02' function='0x0'/>
    </controller>
    <controller type='pci' index='2' model='pcie-root-port'/>
    <controller type='pci' index='10' model='pcie-root-port'/>
    <interface type='user'><address type='pci' domain='0x0000' bus='0x0a' slot='0x00' function='0x0'/></interface>
  </devices>
  <qemu:commandline>{SOMEBODY}</qemu:commandline>
</domain>
"""


@pytest.fixture
def domain() -> DomainXml:
    return DomainXml.parse(DOMAIN, source="the test")


def test_a_card_is_given_to_a_domain_found_in_it_and_taken_out_again(domain: DomainXml) -> None:
    before = domain.text()
    assert domain.lan_card is None
    ram = RamFile(path=Path("/state/ram"), size=Size(1 << 29), shared=False)
    with_card = domain.with_lan_card(CARD).with_ram_file(ram, incoming=True)
    assert with_card.lan_card == CARD
    assert with_card.with_lan_card(CARD).text().count("vmim-lan-card") == 1
    assert with_card.with_ram_file(None).with_lan_card(None).text() == before
    assert domain.text() == before


def test_a_card_goes_into_the_last_port_that_no_device_is_in(domain: DomainXml) -> None:
    assert domain.free_pci_port == "pci.2"
    assert DomainXml.parse("<domain><devices/></domain>", source="the test").free_pci_port is None


def test_a_domain_without_a_free_port_is_refused() -> None:
    with planned(["web-1"], taken=()) as (place,), pytest.raises(BoxError, match="no free PCIe port"):
        place.laid_over(DomainXml.parse("<domain><devices/></domain>", source="the test"))


def test_a_group_is_claimed_once_and_qemu_can_join_meanwhile() -> None:
    claim = Claim.of("239.255.63.255", 32767)
    assert claim is not None
    assert Claim.of("239.255.63.255", 32767) is None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as qemu:
        qemu.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        qemu.bind(("239.255.63.255", 32767))
        claim.close()
        assert Claim.of("239.255.63.255", 32767) is None
    again = Claim.of("239.255.63.255", 32767)
    assert again is not None
    again.close()


def test_the_places_of_a_network_differ_in_address_and_mac_and_know_each_other(domain: DomainXml) -> None:
    names = [f"web-{number}" for number in range(1, 255)]
    with planned(names, taken=()) as places, planned(names, taken=()) as others:
        assert list(places[0].hosts) == names
        assert all(place.hosts == places[0].hosts for place in places)
        assert len({place.address for place in (*places, *others)}) == 2 * len(names)
        assert len({place.mac for place in (*places, *others)}) == 2 * len(names)
        assert {place.laid_over(domain).lan_card.mac for place in places[:2]} == {one.mac for one in places[:2]}  # type: ignore[union-attr] # it was just given
        assert str(places[-1].network.broadcast_address) not in places[-1].hosts.values()


def test_every_number_is_a_network_of_its_own() -> None:
    lans = [Lan(number=number, address="10.192.0.1", hosts={}) for number in range(1 << 14)]
    assert len({lan.network for lan in lans}) == len(lans)
    assert all(lan.network.is_private for lan in lans)


def test_a_place_survives_its_record() -> None:
    place = Lan(number=77, address="10.192.77.2", hosts={"web-1": "10.192.77.1", "web-2": "10.192.77.2"})
    assert Lan.from_record(place.to_record()) == place
    assert place.mac == "52:54:0a:c0:4d:02"


def test_no_network_is_planned_where_all_are_taken() -> None:
    with pytest.raises(HypervisorError, match="No multicast group"), planned(["web-1"], taken=range(1 << 14)):
        pytest.fail("none is free")


def test_a_clone_is_reported_with_its_address_in_the_common_network() -> None:
    place = Lan(number=77, address="10.192.77.1", hosts={"web-1": "10.192.77.1"})
    made = Forked(name="web-1", phases={"start": 0.25}, place=place)
    ssh = ("127.0.0.1", 20001)
    line, total = report.lines(Address("web", "clean"), [made], {"web-1": ssh}, 1.0, verbose=False)
    assert line == "web-1: running, proven, SSH on 127.0.0.1, port 20001, 10.192.77.1 in the common network"
    assert total.startswith("web@clean: 1 clone in")
    assert report.document(made, ssh)["lan"] == {"address": "10.192.77.1", "network": "10.192.77.0/24"}
    assert report.document(replace(made, place=None), None)["lan"] is None
