"""Clones: running boxes made of one live snapshot, each with an identity of its own, all with one memory."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from vmimagemanager import Box, Manager
from vmimagemanager.boxes.fork import clones_of
from vmimagemanager.cli.run import run
from vmimagemanager.config import Engine
from vmimagemanager.deadline import Deadline
from vmimagemanager.errors import BoxError, LeaseError, SnapshotError, SpaceError, UsageError
from vmimagemanager.guest.agent import Agent
from vmimagemanager.hypervisor import memory
from vmimagemanager.snapshots.manifest import Manifest
from vmimagemanager.snapshots.platform import Platform
from vmimagemanager.units import Size

BOOT_ID = "cat /proc/sys/kernel/random/boot_id"
IDENTITY = (
    "hostname; cat /etc/hostname /etc/machine-id /sys/class/net/en*/address; head -c 16 /dev/urandom | base64;"
    + BOOT_ID
)


@pytest.fixture
def say(manager: Manager) -> Callable[[Box, str], str]:
    def run(box: Box, script: str) -> str:
        domain = manager.site.domain(box.name)
        assert domain is not None
        agent = Agent(domain)
        agent.wait(Deadline(timedelta(seconds=20)), lambda: None)
        return agent.run(["/bin/sh", "-ec", script], limit=timedelta(minutes=1)).check().text.strip()

    return run


Say = Callable[[Box, str], str]


def test_clones_are_one_snapshot_with_identities_of_their_own(box: Box, manager: Manager, say: Say) -> None:
    box.script("echo kept >/run/in-memory; echo kept >/root/on-disk")
    box.snapshot("forked")
    boot_id = say(box, BOOT_ID)
    say(box, "echo later >/run/in-memory")
    with box.fork("forked", count=3) as clones:
        names = [clone.name for clone in clones]
        assert names == [f"{box.name}-{number}" for number in (1, 2, 3)]
        assert set(names) <= set(manager.boxes())
        told = {clone.name: clone.script(IDENTITY).text.split() for clone in clones}
        for clone in clones:
            host_name, kept_name, *_, booted = told[clone.name]
            assert host_name == kept_name == clone.name
            assert booted == boot_id
            assert clone.run(["cat", "/run/in-memory", "/root/on-disk"]).text == "kept\nkept\n"
            status = clone.show()
            assert status.fork_of == f"{box.name}@forked"
            assert status.host_key == box.show().host_key
        for column in (2, 4):  # machine-id, random numbers
            assert len({words[column] for words in told.values()} | {say(box, IDENTITY).split()[column]}) == 4
        assert len({clone.show().ssh for clone in clones} | {box.show().ssh}) == 4
        say(clones[0], "echo mine >/run/in-memory; echo mine >/root/on-disk; sync")
        assert say(clones[1], "cat /run/in-memory /root/on-disk").split() == ["kept", "kept"]
        assert say(box, "cat /run/in-memory") == "later"
    assert not set(names) & set(manager.boxes())
    assert all(manager.site.hypervisor.find(name) is None for name in names)
    box.remove_snapshot("forked")


def test_a_clones_address_stays_and_its_snapshots_are_reached_again(box: Box, say: Say) -> None:
    with box.fork("clean", count=1, new_host_keys=True) as (clone,):
        assert clone.show().host_key != box.show().host_key
        before = say(clone, "ip -4 -o address show scope global").split()
        time.sleep(15)  # in which the guest's DHCP client asks for an address for its new MAC address
        after = say(clone, "ip -4 -o address show scope global").split()
        assert re.findall(r"10\.0\.2\.\d+/24", " ".join(after))[-1] in before
        clone.disconnect()
        assert clone.run(["hostname"]).text.strip() == clone.name
        assert clone.snapshot("own").engine == "live"
        assert clone.run(["hostname"]).text.strip() == clone.name
        clone.script("echo dirty >/root/canary")
        assert clone.restore("own").proven
        assert clone.run(["test", "-e", "/root/canary"], check=False).status == 1
        assert clone.run(["hostname"]).text.strip() == clone.name
        clone.down()
        assert not clone.up().first_boot
        assert clone.run(["hostname"]).text.strip() == clone.name


def test_what_clones_stand_on_cannot_be_removed_and_they_are_named(box: Box, manager: Manager) -> None:
    clones = box.fork("clean", count=2)
    with pytest.raises(LeaseError):
        manager.lease(clones[0].name, wait=timedelta(0))
    assert all(manager.site.record(clone.name).temporary for clone in clones)
    clones.keep()
    assert not any(manager.site.record(clone.name).temporary for clone in clones)
    names = f"{box.name}-1, {box.name}-2 stand on it"
    with pytest.raises(BoxError, match=names) as raised:
        box.remove_snapshot("clean")
    assert raised.value.hint == f"vmimagemanager undefine --force {box.name}-1 {box.name}-2"
    with pytest.raises(BoxError, match=names):
        box.undefine(force=True)
    with manager.lease(box.name), pytest.raises(LeaseError, match="No box became free"):
        manager.claim(wait=timedelta(0))  # a clone is there for those who made it
    assert box.up().system
    manager.box(clones[0].name).undefine(force=True)
    with box.fork("clean", count=1) as (clone,):
        assert clone.name == f"{box.name}-1"  # the first number that is free
    clones.remove()  # they were left to others: nothing is removed any more
    manager.box(clones[1].name).undefine(force=True)
    assert [one.name for one in box.snapshots()] == ["clean"]


def test_clones_and_what_they_stand_on_are_undefined_in_one_call(
    box: Box,
    manager: Manager,
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with box.fork("clean", count=1) as first:
        first.keep()
        first[0].snapshot("own")
        with first[0].fork("own", count=2) as below:
            below.keep()
            names = [first[0].name, *(clone.name for clone in below)]
    assert manager.clones_first([*names, box.name]) == dict.fromkeys([*names[1:], names[0], box.name], box.name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert run(["undefine", "--force", "--yes", *names]) == 0
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == [*names[1:], names[0]]
    assert not {*names} & {*manager.boxes()}


def test_a_fork_that_cannot_be_is_refused_and_leaves_nothing(
    box: Box, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = manager.boxes()
    with pytest.raises(UsageError, match="expected 1 or more"):
        box.fork("clean", count=0)
    with pytest.raises(SnapshotError, match="has no snapshot 'absent'"):
        box.fork("absent", count=1)
    with monkeypatch.context() as patch:
        patch.setattr(memory, "available", lambda: Size(1 << 30))
        with pytest.raises(SpaceError, match=r"2 clones may need 1\.1 GiB of memory, and 1\.0 GiB are available"):
            box.fork("clean", count=2)
        with box.fork("clean", count=2, overcommit=True) as clones:
            assert len(clones) == 2
    assert manager.boxes() == before


def test_a_box_with_two_cards_is_not_forked_into_many_with_one_address(box: Box, manager: Manager) -> None:
    box.snapshot("two-cards")
    snapshot = manager.site.state.box(box.name).snapshot("two-cards")
    definition = snapshot.definition
    second = "<interface type='network'><source network='default'/></interface></devices>"
    definition.write_text(definition.read_text().replace("</devices>", second))
    replace(Manifest.read(snapshot), seals={}, platform=Platform()).write(snapshot)  # as if it had been taken so
    with pytest.raises(SnapshotError, match="would all have the address of the second one"):
        box.fork("two-cards", count=1)


def test_a_snapshot_without_memory_is_not_forked_and_the_message_says_why(box: Box) -> None:
    box.kill()
    box.snapshot("off")
    with pytest.raises(SnapshotError, match="was taken of a box that was off"):
        box.fork("off", count=1)


def test_a_fork_of_which_one_clone_fails_leaves_none(
    box: Box, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vmimagemanager.boxes import life

    prove = life.prove

    def fails(domain: object, record: object, folder: object, token: str, *, identity: object = None) -> object:
        if getattr(folder, "name", "").endswith("-2"):
            raise SnapshotError("It is another one.")
        return prove(domain, record, folder, token, identity=identity)  # type: ignore[arg-type] # as they came

    monkeypatch.setattr(life, "prove", fails)
    with pytest.raises(SnapshotError, match="It is another one"):
        box.fork("clean", count=3)
    assert clones_of(manager.site, box.name) == ()
    assert not [one for one in manager.site.hypervisor.names() if one.startswith(f"{box.name}-")]
    assert Engine.LIVE in box.show().settings.engines
