"""Warm spares: paused clones that one process keeps ready, and that any process takes, running and proven, at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta

import pytest

from vmimagemanager import Box, Manager
from vmimagemanager.boxes import spares
from vmimagemanager.deadline import Deadline
from vmimagemanager.errors import BoxError, LeaseError, SnapshotError, SpaceError, UsageError
from vmimagemanager.guest.agent import Agent
from vmimagemanager.guest.repair import new_token
from vmimagemanager.hypervisor import memory
from vmimagemanager.hypervisor.domain import DomainState
from vmimagemanager.names import Address
from vmimagemanager.units import Size

SOON = timedelta(seconds=20)  # scaled
AT_MOST = timedelta(minutes=2)
NOW = timedelta(0)
CLOCK = "date +%s.%N"
TELL = "hostname; cat /etc/machine-id; head -c 16 /dev/urandom | base64; cat /proc/sys/kernel/random/boot_id"
PROGRAM = "import sys; from vmimagemanager.cli import main; sys.exit(main())"

Start = Callable[..., "subprocess.Popen[str]"]
Say = Callable[[Box, str], str]


@pytest.fixture
def say(manager: Manager) -> Say:
    def run(box: Box, script: str) -> str:
        domain = manager.site.domain(box.name)
        assert domain is not None
        agent = Agent(domain)
        agent.wait(Deadline(SOON), lambda: None)
        return agent.run(["/bin/sh", "-ec", script], limit=AT_MOST).check().text.strip()

    return run


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Start]:
    """Start the program with a verb that works on the same boxes; what runs is ended at the end."""
    started: list[subprocess.Popen[str]] = []

    def begin(*words: str) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *words],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(child)
        return child

    yield begin
    for child in started:
        child.terminate()
        child.communicate(timeout=120)


def wait_for(condition: str, probe: Callable[[], bool]) -> None:
    Deadline(SOON).wait_for(condition, probe)


def test_a_spare_is_the_snapshot_with_its_own_identity_and_the_right_time(box: Box, manager: Manager, say: Say) -> None:
    boot_id = say(box, TELL).split()[-1]
    with manager.pool(f"{box.name}@clean", size=2) as pool:
        pool.fill(AT_MOST)
        assert pool.ready() == (f"{box.name}-1", f"{box.name}-2")
        assert [state(manager, name) for name in pool.ready()] == [DomainState.PAUSED] * 2
        time.sleep(3)  # in which a paused guest's clock stands still
        told = []
        for name in (f"{box.name}-1", f"{box.name}-2"):
            with pool.acquire(wait=NOW) as spare:
                assert spare.name == name
                before = time.time()
                clock = float(say(spare, CLOCK))
                assert before - 0.5 < clock < time.time() + 0.5
                told.append(say(spare, TELL).split())
                assert told[-1][0] == name
                assert spare.run(["hostname"]).text.strip() == name
                (acquired,) = (entry for entry in spare.logs() if entry.verb == "acquire")
                assert list(acquired.phases) == ["take", "resume", "proof and repair"]
            assert name not in manager.boxes() or manager.site.record(name).spare
        assert [words[-1] for words in told] == [boot_id] * 2
        for column in (1, 2):
            assert told[0][column] != told[1][column]
        pool.fill(AT_MOST)
    assert left(manager, box) == ()
    assert box.snapshots()[0].name == "clean"


def test_a_spare_is_for_nobody_but_who_takes_it_and_its_snapshot_stays(box: Box, manager: Manager) -> None:
    with manager.pool(f"{box.name}@clean", size=1) as pool:
        pool.fill(AT_MOST)
        (name,) = pool.ready()
        status = manager.box(name).show()
        assert (status.spare, status.free, status.state) == (True, False, "paused")
        with pytest.raises(BoxError, match=f"is a spare of '{box.name}@clean'") as raised:
            manager.box(name).up()
        assert raised.value.hint.endswith(f"vmimagemanager acquire {box.name}@clean")
        with pytest.raises(BoxError, match=r"The snapshot .* cannot be removed: a pool of spares is held by"):
            box.remove_snapshot("clean")
        with pytest.raises(BoxError, match=r"The box .* cannot be removed: a pool of spares is held by"):
            box.undefine(force=True)
        with pytest.raises(LeaseError, match=r"A pool of .* is held by"):
            manager.pool(f"{box.name}@clean", size=1)
        manager.box(name).undefine(force=True)  # an admin may
        wait_for("a spare in its place", lambda: pool.ready() == (name,))
        with pool.acquire() as spare:
            spare.keep()
        assert state(manager, name) is DomainState.RUNNING
    assert left(manager, box) == (name,)
    assert manager.box(name).run(["hostname"]).text.strip() == name


def test_a_spare_that_has_died_is_thrown_away_and_the_next_one_taken(box: Box, manager: Manager) -> None:
    with manager.pool(f"{box.name}@clean", size=2) as pool:
        pool.fill(AT_MOST)
        first, second = pool.ready()
        domain = manager.site.domain(first)
        assert domain is not None
        domain.end()
        with pool.acquire(wait=SOON) as spare:
            assert spare.name == second
        pool.fill(AT_MOST)
    assert left(manager, box) == ()


def test_a_spare_that_shows_another_token_is_thrown_away(box: Box, manager: Manager) -> None:
    with manager.pool(f"{box.name}@clean", size=1) as pool:
        pool.fill(AT_MOST)
        (name,) = pool.ready()
        record = manager.site.record(name)
        replace(record, spare=new_token()).write(manager.site.state.box(name))
        with pool.acquire(wait=AT_MOST) as spare:  # the one that was made in its place
            assert manager.site.record(spare.name).uuid != record.uuid
    assert left(manager, box) == ()


def test_what_cannot_be_kept_ready_is_refused_and_nothing_is_left(
    box: Box, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"{box.name}@clean"
    with pytest.raises(UsageError, match="expected 1 or more"):
        manager.pool(address, size=0)
    with pytest.raises(SnapshotError, match="has no snapshot 'absent'"):
        manager.pool(f"{box.name}@absent", size=1)
    with pytest.raises(SnapshotError, match="has no snapshot 'absent'"):
        manager.spare(f"{box.name}@absent")
    with pytest.raises(BoxError, match=f"no spare of '{address}', and nobody holds a pool") as raised:
        manager.spare(address)
    assert raised.value.hint == f"vmimagemanager pool {address}"
    with monkeypatch.context() as patch:
        patch.setattr(memory, "available", lambda: Size(1 << 29))
        with pytest.raises(SpaceError, match=r"1 clones may need"):
            manager.pool(address, size=1)
        with manager.pool(address, size=1, overcommit=True) as pool:
            pool.fill(AT_MOST)
    assert left(manager, box) == ()


def test_processes_that_know_nothing_of_each_other_take_different_spares(
    box: Box, manager: Manager, start: Start, say: Say
) -> None:
    address = f"{box.name}@clean"
    holder = start("pool", address, "--size", "2")
    wait_for("two spares", lambda: len(spares.Catalogue(manager.site, Address.parse(address)).ready()) == 2)
    takers = [start("acquire", address, "--wait", "60s", "--json") for _ in range(3)]
    documents = []
    for taker in takers:
        out, err = taker.communicate(timeout=120)
        assert taker.returncode == 0, err
        documents.append(json.loads(out))
    taken = [document["name"] for document in documents]
    assert len(set(taken)) == 3
    for name in taken:
        assert say(manager.box(name), "hostname") == name
        assert not manager.site.record(name).temporary
    with manager.spare(address, wait=AT_MOST) as spare:
        assert spare.name not in taken
    holder.send_signal(signal.SIGINT)
    out, err = holder.communicate(timeout=120)
    assert (holder.returncode, err) == (0, "")
    assert f"{taken[0]}: ready in " in out
    assert f"{taken[0]}: taken\n" in out
    assert set(left(manager, box)) == set(taken)


def test_the_spares_of_a_killed_holder_are_known_and_kept_by_the_next_one(
    box: Box, manager: Manager, start: Start
) -> None:
    address = f"{box.name}@clean"
    manager.gc(remove=True)
    holder = start("pool", address, "--size", "3", "-q")
    catalogue = spares.Catalogue(manager.site, Address.parse(address))
    wait_for("three spares", lambda: len(catalogue.ready()) == 3)
    dead, stale, kept = (manager.site.record(name) for name in catalogue.ready())
    assert manager.gc() == ()
    holder.kill()
    assert holder.communicate() == ("", "")
    assert [entry.what for entry in manager.gc()] == [
        f"the lock of '{address}', which is gone or was never made",
        *(f"the clone '{one.name}', whose process has ended" for one in (dead, stale, kept)),
    ]
    domain = manager.site.domain(dead.name)
    assert domain is not None
    domain.end()
    # as a taker leaves it that is killed before it resumes the guest
    replace(stale, spare="").write(manager.site.state.box(stale.name))
    assert catalogue.leftovers() == (stale.name,)
    with manager.pool(address, size=1) as pool:
        assert pool.ready() == (kept.name,)
        assert left(manager, box) == (kept.name,)
        with pool.acquire(wait=NOW) as spare:
            assert spare.name == kept.name
    assert left(manager, box) == ()


def state(manager: Manager, name: str) -> DomainState:
    domain = manager.site.hypervisor.find(name)
    return DomainState.OFF if domain is None else domain.state()


def left(manager: Manager, box: Box) -> tuple[str, ...]:
    """Return the boxes and domains that were made of a box."""
    found = {*manager.boxes(), *manager.site.hypervisor.names()}
    return tuple(sorted(name for name in found if name.startswith(f"{box.name}-")))
