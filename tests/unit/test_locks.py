"""Locks that name their holder and die with it."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from vmimagemanager.errors import DeadlineError, StateError
from vmimagemanager.locks import FileLock

HOLD = """
import sys, pathlib
from vmimagemanager.locks import FileLock
lock = FileLock(pathlib.Path(sys.argv[1]), purpose="holding on")
assert lock.try_acquire()
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def holder_process(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == b"held\n"
            yield child
        finally:
            child.kill()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "web.lock"


def test_a_lock_excludes_a_second_one_on_the_same_path_until_it_is_released(path: Path) -> None:
    first, second = FileLock(path), FileLock(path)

    assert first.try_acquire()
    assert not second.try_acquire()
    first.release()
    first.release()
    assert second.try_acquire()
    second.release()


def test_a_lock_that_is_held_is_not_taken_again(path: Path) -> None:
    lock = FileLock(path)
    with lock:
        assert not lock.try_acquire()
        assert lock.held


def test_shared_locks_go_together_and_exclude_an_exclusive_one(path: Path) -> None:
    one, two, exclusive = FileLock(path), FileLock(path), FileLock(path)

    assert one.try_acquire(shared=True)
    assert two.try_acquire(shared=True)
    assert not exclusive.try_acquire()
    one.release()
    two.release()
    assert exclusive.try_acquire()
    assert not one.try_acquire(shared=True)
    exclusive.release()


def test_another_process_that_holds_the_lock_is_named(path: Path) -> None:
    with holder_process(path) as child:
        holder = FileLock(path).holder()

        assert holder is not None
        assert (holder.pid, holder.purpose) == (child.pid, "holding on")
        assert "holding on" in str(holder)
        assert not FileLock(path).try_acquire()
        with pytest.raises(DeadlineError, match=f"process {child.pid} on"), FileLock(path):
            pass


def test_a_holder_that_is_killed_frees_the_lock_at_once(path: Path) -> None:
    with holder_process(path) as child:
        start = time.monotonic()
        child.kill()
        lock = FileLock(path)
        lock.acquire(timedelta(seconds=10))

        assert time.monotonic() - start < 0.5
        lock.release()


def test_a_waiter_gives_up_at_its_limit(path: Path) -> None:
    with holder_process(path), pytest.raises(DeadlineError, match=r"the lock 'web.lock'"):
        FileLock(path).acquire(timedelta(milliseconds=120))


def test_nobody_holds_a_lock_that_is_free_or_was_never_taken(path: Path) -> None:
    assert FileLock(path).holder() is None
    with FileLock(path):
        pass
    assert FileLock(path).holder() is None


def test_a_holder_that_has_not_written_its_name_yet_is_somebody(path: Path) -> None:
    with FileLock(path):
        for content in ("", "{", "[]", json.dumps({"user": "root"})):
            path.write_text(content)
            holder = FileLock(path).holder()
            assert holder is not None
            assert holder.user == "somebody"


def test_asking_for_the_holder_does_not_take_the_lock_away_from_who_wants_it(path: Path) -> None:
    asking = True

    def ask() -> None:
        while asking:
            FileLock(path).holder()
            time.sleep(0.0005)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        for _ in range(300):
            lock = FileLock(path)
            assert lock.try_acquire()
            lock.release()
    finally:
        asking = False
        thread.join()


def test_a_forked_child_does_not_keep_the_lock_of_its_dead_parent(path: Path) -> None:
    # The child of the fork outlives the holder; the lock must go with the holder all the same.
    program = HOLD.replace(
        "sys.stdin.read()", "import os, time\nif os.fork() == 0: time.sleep(3); os._exit(0)\nsys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        time.sleep(0.2)
        child.kill()
        child.wait()
        start = time.monotonic()
        lock = FileLock(path)
        lock.acquire(timedelta(seconds=2))

        assert time.monotonic() - start < 0.5
        lock.release()


def test_a_forked_child_neither_holds_the_lock_nor_frees_that_of_its_parent(path: Path) -> None:
    lock = FileLock(path)
    with lock:
        child = os.fork()
        if child == 0:
            lock.release()
            os._exit(0 if not lock.held and not FileLock(path).try_acquire() else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert not FileLock(path).try_acquire()


def test_a_program_that_is_started_does_not_inherit_the_lock(path: Path) -> None:
    lock = FileLock(path)
    assert lock.try_acquire()
    with subprocess.Popen(["sleep", "30"], close_fds=False) as child:
        lock.release()
        assert FileLock(path).try_acquire()
        child.kill()


def test_threads_exclude_each_other(path: Path) -> None:
    inside, most, turns = 0, 0, 0

    def work() -> None:
        nonlocal inside, most, turns
        for _ in range(10):
            lock = FileLock(path)
            lock.acquire(timedelta(seconds=60))
            inside += 1
            most = max(most, inside)
            time.sleep(0.0005)
            turns += 1
            inside -= 1
            lock.release()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (most, turns) == (1, 60)


def test_the_group_may_use_the_lock_whatever_the_umask(path: Path) -> None:
    previous = os.umask(0o077)
    try:
        with FileLock(path):
            assert path.stat().st_mode & 0o777 == 0o660
    finally:
        os.umask(previous)


def test_a_lock_in_a_folder_that_is_missing_names_its_path(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"missing/web\.lock"):
        FileLock(tmp_path / "missing" / "web.lock").try_acquire()


def test_a_lock_whose_file_was_removed_is_taken_anew(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first, second = FileLock(path), FileLock(path)
    assert first.try_acquire()
    first.remove()
    assert not path.exists()
    assert not first.held
    assert second.try_acquire()
    assert not first.try_acquire()


def test_who_waits_for_a_lock_that_is_removed_gets_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    first, second, third = FileLock(path), FileLock(path), FileLock(path)
    assert first.try_acquire()
    flock = fcntl.flock

    def late(descriptor: int, kind: int) -> None:  # the holder goes between our open and our flock
        first.remove()
        flock(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", late)
    assert second.try_acquire()
    monkeypatch.undo()
    assert not third.try_acquire()
    assert path.exists()
