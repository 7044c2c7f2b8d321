"""The right to a box, between threads, processes and owners.  No guest is booted: a defined box is enough."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from vmimagemanager import Box, Manager
from vmimagemanager.errors import BoxHeldError, LeaseError
from vmimagemanager.locks import user_name

NOW = timedelta(0)
HOUR = timedelta(hours=1)
CLAIMANTS, BOXES, TURNS = 50, 5, 3

HOLDER = """
import sys, time
from vmimagemanager import Manager
with Manager.open() as manager, manager.lease(sys.argv[1]):
    print("leased", flush=True)
    time.sleep(600)
"""

# Each turn appends two lines to the journal of the box that it got; O_APPEND keeps lines whole.
CLAIMANT = """
import os, sys, time
from datetime import timedelta
from pathlib import Path
from vmimagemanager import Manager
folder, turns, names = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
with Manager.open() as manager:
    for turn in range(turns):
        with manager.claim(names, wait=timedelta(minutes=5)) as box:
            with open(folder / box.name, "ab", buffering=0) as journal:
                journal.write(f"enter {os.getpid()}\\n".encode())
                time.sleep(0.01)
                journal.write(f"leave {os.getpid()}\\n".encode())
"""


@pytest.fixture
def free_box(define: Callable[..., Box]) -> Box:
    return define()


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start Python programs that work on the same boxes; they are ended at the end."""
    started: list[subprocess.Popen[str]] = []

    def begin(program: str, *arguments: str) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(child)
        return child

    yield begin
    for child in started:
        child.kill()
        child.communicate()


@contextmanager
def acting_as(owner: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("VMIM_OWNER", owner)
        yield


# -- leases --------------------------------------------------------------------------------------------------------


def test_a_second_process_is_told_who_has_the_box_and_gives_up_at_its_limit(
    free_box: Box, manager: Manager, start: Callable[..., subprocess.Popen[str]]
) -> None:
    holder = start(HOLDER, free_box.name)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "leased\n"

    said: list[str] = []
    manager.notice = said.append
    try:
        began = time.monotonic()
        with pytest.raises(LeaseError, match="is leased by") as caught:
            manager.lease(free_box.name, wait=timedelta(seconds=0.5))
        assert time.monotonic() - began >= 0.5
    finally:
        manager.notice = None
    for text in (str(caught.value), said[0]):
        assert user_name() in text
        assert f"process {holder.pid}" in text
        assert f"since {datetime.now().astimezone().date().isoformat()}T" in text
    assert len(said) == 1
    with pytest.raises(LeaseError, match=f"process {holder.pid}"):
        manager.lease(free_box.name, wait=NOW)
    shown = free_box.show().leased_by
    assert shown is not None
    assert shown.pid == holder.pid


def test_a_holder_that_is_killed_frees_the_box_at_once(
    free_box: Box, manager: Manager, start: Callable[..., subprocess.Popen[str]]
) -> None:
    holder = start(HOLDER, free_box.name)
    assert holder.stdout is not None
    holder.stdout.readline()
    got: list[float] = []

    def wait_for_it() -> None:
        with manager.lease(free_box.name, wait=timedelta(minutes=1)):
            got.append(time.monotonic())

    waiter = threading.Thread(target=wait_for_it)
    waiter.start()
    time.sleep(0.3)
    assert not got
    killed = time.monotonic()
    holder.send_signal(signal.SIGKILL)
    waiter.join(30)
    assert got
    assert got[0] > killed
    assert free_box.show().leased_by is None


def test_threads_exclude_each_other_on_one_box(free_box: Box, manager: Manager) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        for _ in range(5):
            with manager.lease(free_box.name, wait=timedelta(minutes=1)):
                inside.append(number)
                most.append(len(inside))
                time.sleep(0.005)
                inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == [1] * 40


def test_an_operation_waits_for_a_lease_and_a_leased_box_works(free_box: Box, manager: Manager) -> None:
    with manager.lease(free_box.name) as leased:
        assert leased.kill() is False  # its own lease does not stand in its way
        manager.wait, before = NOW, manager.wait
        try:
            with pytest.raises(LeaseError, match=f"process {os.getpid()}"):
                manager.box(free_box.name).kill()
        finally:
            manager.wait = before
    assert free_box.kill() is False


def test_fifty_processes_that_claim_from_five_boxes_never_share_one(
    define: Callable[..., Box], start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    names = [define().name for _ in range(BOXES)]
    claimants = [start(CLAIMANT, str(tmp_path), str(TURNS), *names) for _ in range(CLAIMANTS)]
    for claimant in claimants:
        output, _ = claimant.communicate(timeout=300)
        assert claimant.returncode == 0, output
    turns = 0
    for journal in tmp_path.iterdir():
        lines = journal.read_text().splitlines()
        for enter, leave in zip(lines[::2], lines[1::2], strict=True):
            assert enter.startswith("enter ")
            assert leave == f"leave {enter.removeprefix('enter ')}", f"two were in {journal.name} at once"
            turns += 1
    assert turns == CLAIMANTS * TURNS
    used = {journal.name for journal in tmp_path.iterdir()}
    assert used <= set(names)
    assert len(used) > 1  # a busy host may start the claimants so slowly that some boxes are never needed


def test_a_claim_passes_over_leased_and_held_boxes_and_gives_up_at_its_limit(
    define: Callable[..., Box], manager: Manager
) -> None:
    boxes = [define() for _ in range(3)]
    names = [box.name for box in boxes]
    boxes[0].lock(HOUR, "mine")
    with manager.lease(names[1]), manager.claim(names, wait=NOW) as claimed:
        assert claimed.name == names[2]
        with pytest.raises(LeaseError, match="No box became free"):
            manager.claim(names, wait=NOW)
    with manager.claim(names, wait=NOW) as claimed:
        assert claimed.name == names[1]


# -- holds ---------------------------------------------------------------------------------------------------------


def test_a_hold_refuses_others_with_reason_and_end_and_lets_its_owner_work(
    free_box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    with acting_as("alice", monkeypatch):
        hold = free_box.lock(HOUR, "bisecting the kernel")
        assert free_box.kill() is False
    assert timedelta(minutes=59) < hold.until - datetime.now(UTC) <= HOUR
    with acting_as("bob", monkeypatch):
        with pytest.raises(BoxHeldError, match="held by alice, for 'bisecting the kernel', until ") as caught:
            free_box.kill()
        assert hold.until.astimezone().isoformat(timespec="seconds") in str(caught.value)
        with pytest.raises(BoxHeldError, match="alice"):
            free_box.lock(HOUR, "me too")
        with pytest.raises(BoxHeldError, match="alice"):
            free_box.undefine()
        with pytest.raises(BoxHeldError, match="alice") as caught:
            free_box.unlock()
        assert "--force" in caught.value.hint
        assert free_box.show().held_by == hold
        assert free_box.unlock(force=True) == hold
        assert free_box.show().held_by is None
        assert free_box.kill() is False
    assert free_box.unlock() is None


def test_a_hold_ends_by_itself(free_box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    with acting_as("alice", monkeypatch):
        hold = free_box.lock(timedelta(seconds=2), "for a moment")
    with acting_as("bob", monkeypatch):
        with pytest.raises(BoxHeldError, match="for a moment"):
            free_box.kill()
        while datetime.now(UTC) <= hold.until:
            time.sleep(0.05)
        assert free_box.kill() is False
    assert free_box.show().held_by is None


def test_a_hold_that_comes_while_a_box_is_waited_for_refuses_the_waiting_one(
    free_box: Box, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[Exception] = []

    def wait_for_it() -> None:
        try:
            manager.lease(free_box.name, wait=timedelta(minutes=1)).release()
        except BoxHeldError as error:
            refused.append(error)

    with manager.lease(free_box.name) as leased:
        waiter = threading.Thread(target=wait_for_it)
        waiter.start()
        time.sleep(0.2)
        with acting_as("alice", monkeypatch):
            leased.lock(HOUR, "kept")
        waiter.join(30)
    assert [str(error).split(",")[0] for error in refused] == [f"The box '{free_box.name}' is held by alice"]
    free_box.unlock(force=True)
