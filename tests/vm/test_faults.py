"""What goes wrong: each fault gives one clear error, loses nothing, and the box can be used afterwards."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from tests.vm.namespaces import run_inside
from vmimagemanager import Box, Manager
from vmimagemanager.errors import (
    DeadlineError,
    GuestPanicError,
    GuestUnreachableError,
    HostKeyError,
    HypervisorUnreachableError,
    ImageError,
    SpaceError,
    StateError,
)
from vmimagemanager.keys import PUBLIC
from vmimagemanager.state import BoxFolder
from vmimagemanager.units import Size

HERE = Path(__file__).parent.parent.parent
PANIC = "echo c >/proc/sysrq-trigger"
NOTHING = Size(0)
MEMORY = ["cat", "/run/in-memory"]


@pytest.fixture
def folder(box: Box, manager: Manager) -> BoxFolder:
    return manager.site.state.box(box.name)


def names(box: Box) -> list[str]:
    return [one.name for one in box.snapshots()]


def require_usable(box: Box) -> None:
    """Restore the box, see that a command runs in it, and that nothing half-made lies about."""
    assert box.restore("clean").proven
    assert not box.up().started


# -- the box's own files -------------------------------------------------------------------------------------------


def test_a_box_whose_record_is_damaged_is_told_and_can_be_given_up(
    manager: Manager, define: Callable[..., Box]
) -> None:
    box = define()
    folder = manager.site.state.box(box.name)
    record = folder.record.read_bytes()
    folder.record.write_bytes(record[: len(record) // 2])
    with pytest.raises(StateError) as raised:
        box.up()
    assert raised.value.hint.endswith(f"vmimagemanager undefine {box.name}")
    manager.box(box.name).undefine()
    assert manager.site.hypervisor.find(box.name) is None
    assert not folder.path.exists()
    assert box.name not in manager.boxes()


# -- the guest -----------------------------------------------------------------------------------------------------


def test_a_wrong_host_key_is_refused_at_once(box: Box, folder: BoxFolder, define: Callable[..., Box]) -> None:
    other = folder.path.with_name(define().name)
    known, foreign = folder.keys / "host" / PUBLIC, other / "keys" / "host" / PUBLIC
    before = known.read_bytes()
    known.write_bytes(foreign.read_bytes())
    try:
        with pytest.raises(HostKeyError, match="shows a host key that is not the box's own"):
            box.run(["true"])
    finally:
        known.write_bytes(before)
    assert box.run(["echo", "known"]).text == "known\n"


def test_a_guest_that_panics_while_a_command_runs_is_told_with_its_last_words(box: Box) -> None:
    with pytest.raises(GuestPanicError, match="panicked") as caught:
        box.run(["sh", "-c", f"{PANIC}; sleep 1000"])
    assert "Kernel panic - not syncing: sysrq triggered crash" in caught.value.detail
    assert len(caught.value.detail.splitlines()) > 5
    require_usable(box)


def test_a_guest_that_panics_while_up_waits_is_told_with_its_last_words(box: Box) -> None:
    box.script(f"touch /run/nologin; systemd-run --quiet sh -c 'sleep 2; {PANIC}'")
    with pytest.raises(GuestPanicError, match="panicked while it was waited for") as caught:
        box.up()
    assert "Kernel panic - not syncing: sysrq triggered crash" in caught.value.detail
    require_usable(box)


def test_a_guest_that_powers_off_while_a_command_runs_is_told(box: Box) -> None:
    with pytest.raises(GuestPanicError, match="stopped by itself"):
        box.run(["sh", "-c", "echo o >/proc/sysrq-trigger; sleep 1000"])
    require_usable(box)


def test_a_guest_that_does_not_answer_in_time_is_told_with_what_was_waited_for(
    define: Callable[..., Box], monkeypatch: pytest.MonkeyPatch
) -> None:
    box = define(boot_timeout=timedelta(seconds=6))
    monkeypatch.setenv("VMIM_TIMEOUT_FACTOR", "1")
    with pytest.raises(DeadlineError, match=r"was not ready after .* waited for the guest agent to answer") as caught:
        box.up()
    assert caught.value.waited_for == "the guest agent to answer"
    assert caught.value.seconds >= 6
    assert "Linux version" in box.console_log().decode("utf-8", "replace")
    assert caught.value.detail.splitlines()
    assert box.show().state == "running"  # to be looked at


# -- the disk ------------------------------------------------------------------------------------------------------


def test_a_damaged_overlay_is_told_and_snapshots_survive_it(box: Box, folder: BoxFolder) -> None:
    box.kill()
    with folder.overlay.open("r+b") as stream:
        stream.write(bytes(512))
    with pytest.raises(ImageError, match=r"overlay\.qcow2' is damaged"):
        box.up()
    with pytest.raises(ImageError, match=r"overlay\.qcow2' is damaged"):
        box.snapshot("damaged")
    assert names(box) == ["clean"]
    assert (box.show().state, box.show().snapshot) == ("off", "")
    require_usable(box)


def test_a_damaged_snapshot_is_told_before_the_running_guest_is_touched(box: Box, folder: BoxFolder) -> None:
    box.script("echo kept >/run/in-memory")
    layer = folder.layer(box.snapshots()[0].manifest.layer)
    with overwritten(layer), pytest.raises(StateError, match=r"The snapshot 'clean' .* is damaged"):
        box.restore("clean")
    away = folder.snapshot("clean").ram.rename(folder.path / "away")
    try:
        with pytest.raises(StateError, match=r"The snapshot 'clean' .* is damaged: .* is missing"):
            box.restore("clean")
    finally:
        away.rename(folder.snapshot("clean").ram)
    assert box.run(MEMORY).text == "kept\n"
    require_usable(box)


@contextmanager
def overwritten(path: Path) -> Iterator[None]:
    """Overwrite the beginning of a file, be it read-only, for a block."""
    mode = path.stat().st_mode
    path.chmod(mode | 0o200)
    with path.open("r+b", buffering=0) as stream:
        before = stream.read(512)
        stream.seek(0)
        stream.write(bytes(512))
    try:
        yield
    finally:
        with path.open("r+b") as stream:
            stream.write(before)
        path.chmod(mode)


# -- no space ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(booted: Box, manager: Manager) -> Iterator[BoxFolder]:
    """The box's folder, on a small file system of its own for as long as a test lasts."""
    folder = manager.site.state.box(booted.name)
    booted.kill()
    away = folder.path.with_name(f".{booted.name}.away")
    folder.path.rename(away)
    folder.path.mkdir(mode=0o711)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1800m,mode=711", "vmim-test", folder.path], check=True)
    try:
        subprocess.run(["cp", "-a", "--sparse=never", f"{away}/.", folder.path], check=True)
        yield folder
        booted.kill()
    finally:
        subprocess.run(["umount", "--lazy", folder.path], check=True)
        folder.path.rmdir()
        away.rename(folder.path)


@contextmanager
def full(folder: BoxFolder, *, but: Size = NOTHING) -> Iterator[None]:
    """Fill the file system of a box's folder, but for some bytes, for a block."""
    filler = folder.path / "filler"
    state = os.statvfs(folder.path)
    with filler.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, state.f_bavail * state.f_frsize - but.bytes)
    try:
        yield
    finally:
        filler.unlink(missing_ok=True)


@pytest.mark.root
@pytest.mark.parametrize("but", [Size(0), Size(100 << 20)], ids=["full", "nearly full"])
def test_on_a_full_disk_no_snapshot_is_taken_and_the_guest_goes_on(small: BoxFolder, box: Box, but: Size) -> None:
    box.script("echo kept >/run/in-memory")
    with full(small, but=but), pytest.raises(SpaceError) as caught:
        box.snapshot("no-room")
    assert caught.value.exit_code == 116
    assert names(box) == ["clean"]
    assert box.run(MEMORY).text == "kept\n"
    assert sorted(path.name for path in small.snapshots.iterdir()) == ["clean"]
    box.snapshot("room")
    assert box.restore("room").proven
    assert box.run(MEMORY).text == "kept\n"


@pytest.mark.root
def test_on_a_full_disk_a_restore_is_refused_and_the_guest_goes_on(small: BoxFolder, box: Box) -> None:
    box.script("echo kept >/run/in-memory")
    with full(small), pytest.raises(SpaceError):
        box.restore("clean")
    assert box.run(MEMORY).text == "kept\n"
    require_usable(box)


@pytest.mark.root
def test_on_a_full_disk_a_box_is_not_started(small: BoxFolder, box: Box) -> None:
    box.kill()
    with full(small, but=Size(32 << 20)), pytest.raises(SpaceError):
        box.up()
    assert box.show().state == "off"
    assert not small.ram.exists()
    require_usable(box)


@pytest.mark.root
def test_a_guest_whose_disk_is_full_is_paused_and_goes_on_when_there_is_space(small: BoxFolder, box: Box) -> None:
    box.script("echo kept >/run/in-memory")
    with full(small, but=Size(8 << 20)):
        with pytest.raises(SpaceError, match="is paused: the host's disk is full"):
            box.run(["dd", "if=/dev/urandom", "of=/root/big", "bs=1M", "count=64", "conv=fsync"])
        with pytest.raises(SpaceError, match="is paused: the host's disk is full") as caught:
            box.run(["true"])
        assert f"vmimagemanager up {box.name}" in caught.value.hint
    assert not box.up().started
    assert box.run(MEMORY).text == "kept\n"


# -- libvirt -------------------------------------------------------------------------------------------------------


def test_without_libvirtd_each_verb_says_that_it_cannot_be_reached(box: Box, manager: Manager) -> None:
    uri = "qemu:///system?socket=/nonexistent/libvirt-sock"
    with Manager.open(uri=uri, state_directory=manager.state_directory) as cut_off:
        same = cut_off.box(box.name)
        for verb in (
            same.up,
            same.down,
            same.kill,
            same.show,
            lambda: same.restore("clean"),
            lambda: same.run(["true"]),
        ):
            with pytest.raises(HypervisorUnreachableError, match="cannot be reached") as caught:
                verb()
            assert caught.value.exit_code == 111
            assert caught.value.hint
    assert box.run(["echo", "untouched"]).text == "untouched\n"


PRIVATE = """
import os, subprocess, sys, time
from pathlib import Path
for folder in ("/run", "/etc/libvirt", "/var/lib/libvirt", "/var/cache/libvirt"):
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)
if Path("/dev/kvm").exists():  # or libvirtd would look long at what it can do
    subprocess.run(["mount", "--bind", "/dev/null", "/dev/kvm"], check=True)
daemon = subprocess.Popen(["libvirtd"], stderr=subprocess.DEVNULL)
while not Path("/run/libvirt/libvirt-sock").exists():
    time.sleep(0.05)
from vmimagemanager import Manager, VmimError
with Manager.open(uri="qemu:///system", state_directory=sys.argv[1]) as manager:
    print(manager.site.hypervisor.names())
    daemon.kill()
    daemon.wait()
    try:
        print(manager.site.hypervisor.names())
    except VmimError as error:
        print(type(error).__name__, error.exit_code)
"""


@pytest.mark.root
def test_a_libvirtd_that_dies_under_us_is_told(tmp_path: Path) -> None:
    namespaces = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    finished = subprocess.run(
        [*namespaces, sys.executable, "-c", PRIVATE, tmp_path], capture_output=True, text=True, timeout=120, check=False
    )
    assert finished.stdout.splitlines() == ["()", "HypervisorUnreachableError 111"], finished.stderr


@pytest.mark.root
def test_boxes_and_pools_outlive_a_libvirtd_that_is_killed_and_started_again(box: Box, manager: Manager) -> None:
    box.kill()
    assert run_inside("restarted_life.py", str(manager.state_directory), box.name) == {
        "state": "running",
        "memory": "kept\n",
        "findings": 0,
        "taken": "live",
        "restored": ["live", True],
        "memory again": "kept\n",
        "spare": f"{box.name}-1",
    }
    require_usable(box)


def test_after_the_host_went_down_a_box_is_restored_although_libvirt_has_forgotten_it(
    box: Box, manager: Manager, folder: BoxFolder
) -> None:
    domain = manager.site.domain(box.name)
    assert domain is not None
    domain.end()
    domain.undefine()
    folder.ram.write_bytes(bytes(4096))  # of a guest that ran
    examination = manager.fsck()
    assert examination.findings == ()
    assert str(folder.ram) in [leftover.what.split("'")[1] for leftover in examination.put_right]
    assert manager.gc() == ()
    require_usable(box)


# -- interrupted ---------------------------------------------------------------------------------------------------


@pytest.fixture
def at_work(box: Box, environment: dict[str, str]) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the command line on the box, and return when it has begun, which the box's lease tells."""
    started: list[subprocess.Popen[str]] = []

    def begin(*words: str) -> subprocess.Popen[str]:
        box.disconnect()
        child = subprocess.Popen(
            [sys.executable, "-c", "import sys; from vmimagemanager.cli import main; sys.exit(main())", *words],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(child)
        while (holder := box.show().leased_by) is None or holder.pid != child.pid:
            assert child.poll() is None, child.communicate()[0]
            time.sleep(0.005)
        return child

    yield begin
    for child in started:
        child.kill()
        child.communicate()


def after(seconds: float, child: subprocess.Popen[str], number: signal.Signals) -> tuple[int, str]:
    """Send a signal after a while; return how the process ended."""
    time.sleep(seconds)
    child.send_signal(number)
    output, _ = child.communicate(timeout=300)
    return child.returncode, output


@pytest.mark.parametrize("verb", ["up", "restore", "snapshot"])
def test_an_interrupted_verb_ends_with_130_and_leaves_a_box_that_works(
    box: Box, folder: BoxFolder, verb: str, at_work: Callable[..., subprocess.Popen[str]]
) -> None:
    if verb == "up":
        box.kill()
    target = {"up": box.name, "restore": f"{box.name}@clean", "snapshot": f"{box.name}@interrupted"}[verb]
    for seconds in (0.05, 0.3) if verb != "up" else (0.1, 3.0):
        status, output = after(seconds, at_work(verb, target), signal.SIGINT)
        assert status == 130 or (seconds, status) == (0.3, 0), output  # a restore may have ended before
        assert "Traceback" not in output
        assert not [path for path in folder.snapshots.iterdir() if path.name.startswith(".")]
        assert names(box) == ["clean"] or verb == "snapshot"
        if verb != "up":
            require_whole(box, "interrupted")
    require_usable(box)


def test_an_interrupt_that_comes_while_libvirt_fails_is_an_interrupt(box: Box, manager: Manager) -> None:
    domain = manager.site.hypervisor.find(box.name)
    assert domain is not None
    box.script("systemctl kill --signal=STOP qemu-guest-agent")  # it will not answer
    with pytest.raises(GuestUnreachableError):
        domain.agent_command('{"execute": "guest-ping"}', timedelta(seconds=1))
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        domain.agent_command('{"execute": "guest-ping"}', timedelta(seconds=1))


@pytest.mark.parametrize("engine", ["saved", "live"])
def test_after_a_kill_in_the_middle_of_a_snapshot_it_is_whole_or_absent(
    box: Box, engine: str, at_work: Callable[..., subprocess.Popen[str]]
) -> None:
    start = "clean"
    if engine == "live":
        start = "before"
        box.snapshot(start)  # a guest that was saved has its memory in a file of its own
    for seconds in moments(3):
        box.restore(start)
        after(seconds, at_work("snapshot", f"{box.name}@killed"), signal.SIGKILL)
        require_whole(box, "killed")
        require_usable(box)


def test_after_a_kill_in_the_middle_of_a_restore_another_one_works(
    box: Box, at_work: Callable[..., subprocess.Popen[str]]
) -> None:
    for seconds in moments(3):
        after(seconds, at_work("restore", f"{box.name}@clean"), signal.SIGKILL)
        require_usable(box)


def test_a_box_whose_start_was_killed_comes_up(box: Box, at_work: Callable[..., subprocess.Popen[str]]) -> None:
    box.kill()
    after(2.0, at_work("up", box.name), signal.SIGKILL)
    assert box.show().state == "running"
    require_usable(box)


def moments(count: int) -> list[float]:
    """Return points of time between 0 and 1 s, spread evenly and yet never the same."""
    return [(number + random.random()) / count for number in range(count)]


def require_whole(box: Box, name: str) -> None:
    """If there is a snapshot of this name it can be restored and holds its memory; it is removed then."""
    if name in names(box):
        assert box.restore(name).proven
        box.remove_snapshot(name)
