"""The heart: a running guest is snapshotted, dirtied, and brought back."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from vmimagemanager import Box, Manager
from vmimagemanager.deadline import Deadline
from vmimagemanager.errors import BoxError, SnapshotError
from vmimagemanager.guest.agent import Agent
from vmimagemanager.guest.repair import Proof, plant_and_repair
from vmimagemanager.hypervisor.connection import default_uri
from vmimagemanager.hypervisor.domain import Domain
from vmimagemanager.snapshots import Manifest

BOOT_ID = "cat /proc/sys/kernel/random/boot_id"
# Numbers of setxattr and getxattr in asm/unistd_64.h; minbase has no setfattr.
SET_ATTRIBUTE = """perl -e '
    my ($path, $value, $name) = (@ARGV, "user.vmim");
    syscall(188, $path, $name, $value, length $value, 0) == 0 or die $!;
'"""
GET_ATTRIBUTE = """perl -e '
    my ($path, $value, $name) = (@ARGV, " " x 64, "user.vmim");
    my $length = syscall(191, $path, $name, $value, 64);
    print substr($value, 0, $length), "\n";
'"""
# A process whose memory is its only place to remember: it counts, and says so when asked.
COUNTER = (
    "systemd-run --quiet --unit=counter sh -c 'n=0; while sleep 0.1; do n=$((n + 1)); echo $n >/run/counter; done'"
)
EXACT = timedelta(seconds=0.5)
WAITER = "vmimagemanager-waiter"[:15]  # as much of a process's name as Linux keeps


Say = Callable[[str], str]


@pytest.fixture
def say(box: Box, manager: Manager) -> Say:
    """Run a script in the guest through its agent, which answers sooner after a restore than SSH."""

    def run(script: str) -> str:
        domain = manager.site.hypervisor.find(box.name)
        assert domain is not None
        agent = Agent(domain)
        agent.wait(Deadline(timedelta(seconds=20)), lambda: None)
        return agent.run(["/bin/sh", "-ec", script], limit=timedelta(minutes=1)).check().text.strip()

    return run


def virsh(*words: str) -> None:
    subprocess.run(["virsh", "-q", "-c", default_uri(), *words], check=True)


def test_restore_discards_a_file_written_after_the_snapshot(box: Box, say: Say) -> None:
    say("echo dirty >/root/canary; echo dirty >/root/.hidden; sync")
    assert say("cat /root/canary") == "dirty"
    restored = box.restore("clean")
    assert restored.engine == "live"
    assert restored.proven
    assert restored.running
    names = say("ls -A /root").split()
    assert "canary" not in names
    assert ".hidden" not in names


def test_restore_brings_back_the_memory_and_not_a_reboot(box: Box, say: Say) -> None:
    boot_id, agent = say(f"{BOOT_ID}; systemctl show --property=MainPID ssh").split()
    say(f"echo later >/run/memory-only; {COUNTER}; systemctl restart ssh")
    assert say("systemctl show --property=MainPID ssh") != agent
    box.restore("clean")
    assert say(f"{BOOT_ID}; systemctl show --property=MainPID ssh").split() == [boot_id, agent]
    assert say("systemctl is-active counter || true") == "inactive"
    assert "memory-only" not in say("ls /run").split()


def test_a_restore_needs_no_new_process_in_the_guest(box: Box, say: Say) -> None:
    (first,) = say(f"pgrep -x {WAITER}").split()
    newest = int(say("echo $$"))
    box.restore("clean")
    assert say(f"pgrep -x {WAITER}").split() == [first]
    # The shell that answers here follows the snapshot's last process: nothing was started in between.
    assert int(say("echo $$")) <= newest
    assert say(f"ps -o stat= -p {first} | grep -c R || true") == "0"


@pytest.mark.parametrize("state", ["killed", "stopped"])
def test_a_restore_whose_waiter_does_not_answer_is_proven_by_the_agent(
    box: Box, say: Say, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal = {"killed": "KILL", "stopped": "STOP"}[state]
    monkeypatch.setenv("VMIM_TIMEOUT_FACTOR", "1")
    say(f"pkill -{signal} -x {WAITER}")
    box.snapshot("without")
    say("echo dirty >/root/canary")
    restored = box.restore("without")
    assert restored.proven
    assert "canary" not in say("ls -A /root")
    assert abs(float(say("date +%s.%N")) - time.time()) < 5
    if state == "killed":
        say(f"pgrep -x {WAITER}")  # started by that restore, for the next time


def test_a_proof_whose_answer_was_lost_can_be_asked_for_again(box: Box, say: Say, manager: Manager) -> None:
    domain = manager.site.domain(box.name)
    assert domain is not None

    def prove(token: str) -> Proof:
        return plant_and_repair(
            domain.waiter, lambda: Agent(domain), token, timedelta(seconds=20), check=lambda: assert_runs(domain)
        )

    first, second = prove("1" * 32), prove("2" * 32)
    assert second.token == "1" * 32
    assert prove("2" * 32).token == second.token
    say(f"pkill -KILL -x {WAITER}")
    assert prove("2" * 32).token == second.token
    assert first.boot_id == second.boot_id == say(BOOT_ID)
    assert prove("3" * 32).token == "2" * 32


def assert_runs(domain: Domain) -> None:
    assert domain.state() == "running"


def test_a_snapshot_leaves_the_guest_running_and_keeps_contents_links_attributes_and_processes(
    box: Box, say: Say
) -> None:
    say(f"cd /root; echo before >kept; ln kept twin; {SET_ATTRIBUTE} kept before; {COUNTER}; sleep 0.5")
    boot_id, count = say(f"{BOOT_ID}; cat /run/counter").split()
    taken = box.snapshot("marked")
    assert say(f"{BOOT_ID}; cat /root/kept").split() == [boot_id, "before"]
    assert int(say("cat /run/counter")) > int(count)

    say(f"cd /root; rm twin; echo after >kept; {SET_ATTRIBUTE} kept after; echo new >.new; systemctl stop counter")
    assert say(f"{GET_ATTRIBUTE} /root/kept") == "after"
    restored = box.restore("marked")
    assert (restored.engine, restored.proven) == (taken.engine, True)
    assert say(f"cd /root; cat kept twin; stat -c %h kept; {GET_ATTRIBUTE} kept").split() == [
        "before",
        "before",
        "2",
        "before",
    ]
    assert ".new" not in say("ls -A /root").split()
    assert say(BOOT_ID) == boot_id
    first = int(say("cat /run/counter"))
    assert first >= int(count)
    assert int(say("sleep 1; cat /run/counter")) > first


def test_snapshots_of_a_restored_box_are_live_and_branch(box: Box, say: Say) -> None:
    def remember(word: str) -> None:
        say(f"echo {word} >/run/where; echo {word} >/root/where; head -c 8M /dev/urandom >/dev/shm/{word}")

    def memory() -> str:
        return say("cat /run/where /root/where || true; cd /dev/shm; sha256sum *")

    remembered = {}
    for name, from_which in (("first", ""), ("second", ""), ("third", "first"), ("fourth", "third")):
        if from_which:
            box.restore(from_which)
        remember(name)
        taken = box.snapshot(name)
        assert (taken.engine, taken.why_not) == ("live", ())
        remembered[name] = memory()

    box.remove_snapshot("first")  # in the middle: the second stands on it, and so did the third
    for name in ("second", "fourth", "third", "second"):
        restored = box.restore(name)
        assert (restored.engine, restored.proven) == ("live", True)
        assert memory() == remembered[name]
        assert box.show().snapshot == name
    assert box.restore("clean").proven
    assert "where" not in say("ls /run /root").split()
    assert {one.name: one.parent for one in box.snapshots()} == {
        "clean": "",
        "second": "clean",
        "third": "clean",
        "fourth": "third",
    }


def test_the_clock_is_right_after_a_restore_and_the_lease_is_kept_although_the_guest_had_turned_it(
    box: Box, say: Say
) -> None:
    def lease() -> list[str]:
        address = say("ip -4 -oneline address show scope global dynamic | awk '{print $4}'")
        return [address, say("journalctl --boot --unit systemd-networkd --output cat | grep --count DHCPv4")]

    held = lease()
    manifest = next(one.manifest for one in box.snapshots() if one.name == "clean")
    say("date -s '2 days ago'")
    assert clock_error(say) > timedelta(days=1)
    while datetime.now(UTC) - manifest.created < timedelta(seconds=5):
        time.sleep(0.1)  # so that the snapshot's own clock is wrong, too
    box.restore("clean")
    assert clock_error(say) < EXACT
    box.script("date -s '2 days ago'")
    box.snapshot("late")
    box.restore("late")  # two days later, as the guest sees it
    assert clock_error(say) < EXACT
    assert lease() == held


def test_two_restores_of_one_snapshot_give_different_random_numbers(box: Box, say: Say) -> None:
    digests = set()
    for _ in range(2):
        box.restore("clean")
        digests.add(say("head -c 1048576 /dev/urandom | sha256sum"))
    assert len(digests) == 2


def test_a_guest_without_perl_is_proven_and_its_clock_is_set_all_the_same(box: Box, say: Say) -> None:
    say("mv /usr/bin/perl /usr/bin/perl.away")
    box.snapshot("without-perl")
    say("date -s '2 days ago'")
    assert box.restore("without-perl").proven
    assert clock_error(say) < EXACT


def test_a_guest_that_is_not_the_snapshot_is_told_by_its_memory(box: Box, manager: Manager) -> None:
    def other(manifest: Manifest) -> Manifest:
        return replace(manifest, token="0" * 32)

    with changed_manifest(manager, box, other), pytest.raises(SnapshotError, match=r"it is not the snapshot 'clean'"):
        box.restore("clean")
    assert box.restore("clean").proven


def test_an_unknown_snapshot_is_refused_with_the_names_that_there_are_and_nothing_is_touched(
    box: Box, say: Say
) -> None:
    say("echo here >/run/still")
    with pytest.raises(SnapshotError, match="has no snapshot 'cleam'") as caught:
        box.restore("cleam")
    assert "clean" in caught.value.hint
    with pytest.raises(SnapshotError, match="has no snapshot 'cleam'"):
        box.remove_snapshot("cleam")
    with pytest.raises(SnapshotError, match="has a snapshot 'clean' already"):
        box.snapshot("clean")
    assert say("cat /run/still") == "here"


def test_a_name_can_be_used_again_after_its_snapshot_was_removed(box: Box, say: Say) -> None:
    for content in ("one", "two"):
        say(f"echo {content} >/root/content")
        box.snapshot("again")
        if content == "one":
            box.remove_snapshot("again")
    assert [one.name for one in box.snapshots()] == ["clean", "again"]
    say("echo three >/root/content")
    box.restore("again")
    assert say("cat /root/content") == "two"


def test_removed_snapshots_leave_no_disk_behind_that_nobody_stands_on(box: Box, say: Say, manager: Manager) -> None:
    layers = manager.state_directory / "boxes" / box.name / "layers"
    box.snapshot("a")
    box.snapshot("b")
    box.remove_snapshot("a")
    assert say("echo works; ls -A /root >/dev/null") == "works"
    assert len(list(layers.iterdir())) == 3  # b stands on a's
    box.restore("clean")
    box.remove_snapshot("b")
    assert len(list(layers.iterdir())) == 1


def test_a_box_that_is_off_is_kept_by_its_disk_and_stays_off_when_it_is_restored(box: Box) -> None:
    box.kill()
    taken = box.snapshot("off")
    assert taken.engine == "disk"
    assert taken.why_not == ("The box is off: there is no memory to keep.",)
    assert box.show().state == "off"
    box.restore("clean")
    restored = box.restore("off")
    assert (restored.engine, restored.running, restored.proven) == ("disk", False, False)
    assert box.show().state == "off"
    assert box.show().snapshot == "off"


def _off(box: Box) -> None:
    box.kill()


def _paused(box: Box) -> None:
    virsh("suspend", box.name)


def _killed(box: Box) -> None:
    virsh("destroy", box.name)


def _undefined(box: Box) -> None:
    virsh("undefine", box.name)


def _killed_and_undefined(box: Box) -> None:
    virsh("destroy", box.name)
    virsh("undefine", box.name)


def _undefined_and_killed(box: Box) -> None:
    virsh("undefine", box.name)
    virsh("destroy", box.name)


@pytest.mark.parametrize("change", [_off, _paused, _killed, _undefined, _killed_and_undefined, _undefined_and_killed])
def test_restore_brings_back_a_box_whatever_was_done_to_it(
    box: Box, say: Say, manager: Manager, change: Callable[[Box], None]
) -> None:
    say("echo dirty >/root/canary; echo dirty >/run/canary")
    change(box)
    assert box.restore("clean").proven
    assert say("ls -d /root/canary /run/canary 2>/dev/null || true") == ""
    box.kill()
    box.restore("clean")
    domain = manager.site.hypervisor.find(box.name)
    assert domain is not None
    assert domain.active


def test_a_paused_box_is_not_snapshotted_and_the_way_on_is_named(box: Box, say: Say) -> None:
    virsh("suspend", box.name)
    with pytest.raises(BoxError, match="is paused") as caught:
        box.snapshot("paused")
    assert caught.value.hint == f"vmimagemanager up {box.name}"
    assert not box.up().started
    assert say("echo goes on") == "goes on"


def clock_error(say: Say) -> timedelta:
    before = time.time()
    shown = float(say("date +%s.%N"))
    after = time.time()
    return timedelta(seconds=max(before - shown, shown - after, 0.0))


@contextmanager
def changed_manifest(manager: Manager, box: Box, change: Callable[[Manifest], Manifest]) -> Iterator[None]:
    """Lay a changed manifest over that of 'clean' for a block."""
    folder = manager.site.state.box(box.name).snapshot("clean")
    before = folder.manifest.read_bytes()
    change(Manifest.read(folder)).write(folder)
    try:
        yield
    finally:
        folder.manifest.write_bytes(before)
