"""The clones of a fork on a network that they have in common, on this host only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from vmimagemanager import Box, Manager
from vmimagemanager.boxes.lan import Lan
from vmimagemanager.config import Engine
from vmimagemanager.errors import HypervisorError, SnapshotError, UsageError
from vmimagemanager.hypervisor import lancard

BANNER = "exec 3<>/dev/tcp/{name}/22 && head -c 7 <&3"
NEIGHBOUR = "ip neighbour show {address} | cut -d' ' -f5"


@pytest.fixture
def lan(manager: Manager) -> Callable[[Box], Lan]:
    def of(clone: Box) -> Lan:
        found = manager.site.record(clone.name).lan
        assert found is not None
        return found

    return of


def reaches(clone: Box, other: Box) -> bool:
    result = clone.run(["bash", "-c", BANNER.format(name=other.name)], check=False)
    return result.status == 0 and result.text == "SSH-2.0"


def test_clones_reach_each_other_by_name_as_soon_as_they_are_made(
    box: Box, manager: Manager, lan: Callable[[Box], Lan]
) -> None:
    with box.fork("clean", count=3, lan=True) as clones:
        assert len({lan(clone).network for clone in clones}) == 1
        assert len({lan(clone).address for clone in clones} | {lan(clone).mac for clone in clones}) == 6
        for clone in clones:
            for other in set(clones) - {clone}:
                assert reaches(clone, other)
                mac = clone.script(NEIGHBOUR.format(address=lan(other).address)).text.strip()
                assert mac == lan(other).mac  # and nobody else answers for it
        shown = clones[0].show()
        assert shown.lan == lan(clones[0])
        assert shown.ssh is not None
        assert shown.ssh[0] == "127.0.0.1"
        domain = manager.site.domain(clones[0].name)
        assert domain is not None
        card = domain.definition(live=False).lan_card
        assert card is not None
        with pytest.raises(HypervisorError, match="Duplicate"):
            lancard.plug(domain.monitor, card)
        assert (
            "networkd" in clones[0].script("systemctl --no-pager status systemd-networkd; networkctl --no-pager").text
        )
        configured = clones[0].script("networkctl --no-pager --no-legend | grep -c 'configur'").text
        assert int(configured) == 2  # networkd has taken nothing away, and both cards are its own
        assert reaches(clones[0], clones[1])


def test_two_forks_have_two_networks_and_hear_nothing_of_each_other(box: Box, lan: Callable[[Box], Lan]) -> None:
    with box.fork("clean", count=1, lan=True) as (one,), box.fork("clean", count=1, lan=True) as (two,):
        assert lan(one).network != lan(two).network
        one.script(f"ip route add {lan(two).network} dev $(ip -o addr | awk '/{lan(one).address}/{{print $2}}')")
        assert one.run(["bash", "-c", f"exec 3<>/dev/tcp/{lan(two).address}/22"], check=False).status != 0


def test_a_clone_keeps_its_place_through_its_own_snapshots(
    box: Box, manager: Manager, lan: Callable[[Box], Lan]
) -> None:
    with box.fork("clean", count=2, lan=True) as (one, two):
        assert one.snapshot("own").engine == "live"
        assert reaches(one, two)
        one.script(f"ip addr flush to {lan(one).network}; echo dirty >/etc/hosts")
        assert not reaches(one, two)
        assert one.restore("own").proven
        assert reaches(one, two)
        assert reaches(two, one)
        with pytest.raises(SnapshotError, match="has a card in the common network") as raised:
            one.fork("own", count=1)
        assert raised.value.hint == f"vmimagemanager fork {box.name}@clean makes clones of what it is a clone of."
        one.update(replace(manager.site.record(one.name).settings, engines=(Engine.SAVED,)))
        assert one.snapshot("saved").engine == "saved"
        assert reaches(two, one)
        assert one.restore("saved").proven
        assert reaches(two, one)


def test_a_card_for_a_port_that_is_taken_is_told(box: Box, manager: Manager) -> None:
    domain = manager.site.domain(box.name)
    assert domain is not None
    place = Lan(number=0, address="10.192.0.1", hosts={})
    card = place.laid_over(domain.definition(live=True)).lan_card
    assert card is not None
    with pytest.raises(HypervisorError, match="slot 0 function 0 not available"):
        lancard.plug(domain.monitor, replace(card, pci_port="pci.1"))


def test_more_clones_than_a_network_has_addresses_are_refused(box: Box) -> None:
    with pytest.raises(UsageError, match="255 clones cannot have a network in common: expected at most 254"):
        box.fork("clean", count=255, lan=True)
