"""Guests of every kind: started by UEFI firmware, with a software TPM, with several disks and processors; two boots."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from tests.vm.conftest import IMAGE, RAM, new_name
from vmimagemanager import Box, BoxSettings, Manager
from vmimagemanager.config import Channel, Firmware
from vmimagemanager.deadline import Stopwatch
from vmimagemanager.disks import convert, info
from vmimagemanager.errors import GuestUnreachableError
from vmimagemanager.state import BoxFolder
from vmimagemanager.units import Size

VARIABLE = "/sys/firmware/efi/efivars/VmimTest-83596ed3-5b0c-4bac-875c-5d7a393f7938"
# The words of TPM 2.0 (Trusted Computing Group, part 3): extend and read PCR 16, define and look at two NV indices.
SESSION = "00000009 40000009 0000 00 0000"
TPM_EXTEND = f"8002 00000041 00000182 00000010 {SESSION} 00000001 000b {'5a' * 32}"
TPM_READ = "8001 00000014 0000017e 00000001 000b 03 000001"
TPM_DEFINE = f"8002 0000002d 0000012a 40000001 {SESSION} 0000 000e 0150000%d 000b 02060006 0000 0008"
TPM_LOOK = "8001 0000000e 00000169 0150000%d"
TPM = """
perl -e 'open(my $tpm, "+<:unix", "/dev/tpm0") or die $!; syswrite($tpm, pack("H*", $ARGV[0])) or die $!;
    sysread($tpm, my $answer, 4096) or die $!; print unpack("H*", $answer)' %s
"""


@pytest.fixture(scope="module")
def every(manager: Manager) -> Iterator[Box]:
    """A running box with UEFI firmware, a TPM, two more disks and two processors."""
    settings = BoxSettings(
        image=IMAGE,
        ram=RAM,
        cpus=2,
        firmware=Firmware.UEFI,
        tpm=True,
        disks=(Size(16 << 20), Size(1 << 30)),
        boot_timeout=timedelta(minutes=4),
    )
    box = manager.define(new_name(), settings)
    try:
        box.up()
        yield box
    finally:
        box.undefine(force=True)


def tpm(box: Box, words: str) -> str:
    """Send a command to the guest's TPM and return its answer's code and the rest, in hexadecimal digits."""
    answer = box.script(TPM % words.replace(" ", "")).text
    return answer[12:]


def set_variable(box: Box, word: str) -> None:
    box.script(f"chattr -i {VARIABLE} 2>/dev/null; printf '\\007\\000\\000\\000{word}' >{VARIABLE}")


def variable(box: Box) -> str:
    return box.script(f"cat {VARIABLE} | tail -c +5").text


def write_disk(box: Box, word: str) -> None:
    box.script(f"printf {word} | dd of=/dev/vdb conv=notrunc,fsync status=none")


def indices(box: Box) -> list[int]:
    """Return which of the NV indices 1 and 2 the guest's TPM knows."""
    return [number for number in (1, 2) if tpm(box, TPM_LOOK % number).startswith("00000000")]


def travels(box: Box, there: Manager, file: Path, is_first: Callable[[Box], None]) -> None:
    """Export the snapshot 'first', import it with trust and without, and prove that all of it is there."""
    assert box.export_snapshot("first", file).engine == "live"
    name = new_name()
    assert there.import_snapshot(file, name=name, trust=True).engine == "live"
    copy, folder = there.box(name), there.site.state.box(name)
    assert copy.restore("first").proven
    is_first(copy)
    write_disk(copy, "other")
    copy.update(replace(copy.show().settings, description="changed"))
    copy.reset()
    assert (content(folder, "vdb"), folder.disks) == ("first", ("", "vdb", "vdc"))
    assert copy.restore("first").proven
    is_first(copy)
    copy.undefine(force=True)

    name = new_name()
    assert there.import_snapshot(file, name=name).engine == "disk"
    copy, folder = there.box(name), there.site.state.box(name)
    copy.restore("first")
    assert (content(folder, "vdb"), folder.disks) == ("first", ("", "vdb", "vdc"))
    assert folder.nvram.read_bytes() == folder.snapshot("first").nvram.read_bytes()
    assert not folder.tpm.exists()
    settings = copy.show().settings
    assert (settings.firmware, settings.tpm, settings.disks) == ("uefi", True, (Size(16 << 20), Size(1 << 30)))
    there.box(name).undefine()
    assert there.fsck().findings == ()


def content(folder: BoxFolder, disk: str) -> str:
    """Return the word that the disk of a box that is off begins with."""
    raw = folder.path / "raw"
    convert(folder.overlay_of(disk), raw, source_format="qcow2", target_format="raw")
    word = raw.read_bytes()[:5].decode()
    raw.unlink()
    return word


def test_firmware_tpm_disks_and_processors_are_restored_forked_and_carried_away_and_boot_again(
    every: Box, manager: Manager, there: Manager, file: Path
) -> None:
    box, folder = every, manager.site.state.box(every.name)
    assert box.run(["nproc"]).text == "2\n"
    assert box.script("cat /sys/block/vdb/size /sys/block/vdc/size").text.split() == ["32768", "2097152"]
    set_variable(box, "first")
    write_disk(box, "first")
    assert tpm(box, TPM_DEFINE % 1).startswith("00000000")
    assert tpm(box, TPM_EXTEND).startswith("00000000")
    register = tpm(box, TPM_READ)
    assert box.snapshot("first").engine == "live"

    def change() -> None:
        set_variable(box, "second")
        write_disk(box, "other")
        assert tpm(box, TPM_DEFINE % 2).startswith("00000000")
        assert tpm(box, TPM_EXTEND).startswith("00000000")

    def is_first(one: Box) -> None:
        assert variable(one) == "first"
        assert one.script("head -c 5 /dev/vdb").text == "first"
        assert indices(one) == [1]
        assert tpm(one, TPM_READ) == register

    change()
    assert (variable(box), indices(box)) == ("second", [1, 2])
    with box.fork("first", count=1) as (clone,):
        is_first(clone)
        set_variable(clone, "clone")
        assert clone.snapshot("own").engine == "live"
        set_variable(clone, "changed")
        assert clone.restore("own").proven
        assert variable(clone) == "clone"
        home = manager.site.state.box(clone.name)
        assert info(home.overlay_of("vdb")).backing == home.layer(clone.snapshots()[0].manifest.layer, "vdb")
    assert (variable(box), indices(box)) == ("second", [1, 2])
    assert box.restore("first").proven
    is_first(box)
    change()
    assert box.snapshot("second").engine == "live"  # of a memory that is mapped privately
    assert box.restore("first").proven
    assert box.restore("second").proven
    assert (variable(box), indices(box)) == ("second", [1, 2])

    travels(box, there, file, is_first)

    assert box.restore("first").proven
    box.kill()
    box.snapshot("off")
    assert box.up().started
    assert (variable(box), indices(box), box.script("head -c 5 /dev/vdb").text) == ("first", [1], "first")
    change()
    box.kill()
    kept = folder.snapshot("off")
    permanent = "tpm2-00.permall"
    assert folder.nvram.read_bytes() != kept.nvram.read_bytes()
    assert (folder.tpm / permanent).read_bytes() != (kept.tpm / permanent).read_bytes()
    box.restore("off")
    assert folder.nvram.read_bytes() == kept.nvram.read_bytes()
    assert (folder.tpm / permanent).read_bytes() == (kept.tpm / permanent).read_bytes()
    box.reset()
    assert not folder.nvram.exists()
    assert not folder.tpm.exists()
    assert [info(folder.overlay_of(disk)).backing for disk in ("vdb", "vdc")] == [
        manager.site.state.empty / f"{size}.qcow2" for size in (16 << 20, 1 << 30)
    ]


# -- who can be asked -------------------------------------------------------------------------------------------------


@pytest.fixture
def with_channel(box: Box) -> Iterator[Callable[[Channel], Box]]:
    """Return the box, asked through another channel for as long as a test lasts."""
    before = box.show().settings

    def change(channel: Channel) -> Box:
        box.update(replace(before, channel=channel))
        return box

    yield change
    box.update(before)


def test_a_guest_without_an_agent_is_proven_over_ssh(with_channel: Callable[[Channel], Box], manager: Manager) -> None:
    box = with_channel(Channel.SSH)
    box.script("systemctl stop qemu-guest-agent.socket qemu-guest-agent 2>/dev/null || true")  # and with it the waiter
    assert box.up().channel is Channel.SSH
    boot_id = box.script("date -s '2 days ago' >/dev/null; cat /proc/sys/kernel/random/boot_id").text
    assert box.snapshot("asked-over-ssh").engine == "live"
    box.script("echo dirty >/root/canary")
    restored = box.restore("asked-over-ssh")
    assert (restored.engine, restored.proven) == ("live", True)
    assert box.script("ls /root; cat /proc/sys/kernel/random/boot_id").text == boot_id
    assert abs(float(box.run(["date", "+%s"]).text) - time.time()) < 5
    with manager.pool(f"{box.name}@asked-over-ssh", size=1) as pool:
        pool.fill(timedelta(minutes=1))
        with pool.acquire() as spare:
            assert spare.run(["hostname"]).text.strip() == spare.name


def test_of_a_guest_that_cannot_be_asked_nothing_is_claimed(
    with_channel: Callable[[Channel], Box], manager: Manager
) -> None:
    box = with_channel(Channel.NONE)
    up = box.up()
    assert (up.started, up.channel, up.boot_id) == (False, Channel.NONE, "")
    assert box.snapshot("unasked").engine == "live"
    restored = box.restore("unasked")
    assert (restored.engine, restored.running, restored.proven) == ("live", True, False)
    with box.fork("unasked", count=1) as clones:
        assert [made.proven for made in clones.made] == [False]
        assert clones[0].show().state == "running"
    box.kill()
    watch = Stopwatch()
    assert box.up().started
    assert watch.total < 10  # nothing was waited for
    assert box.show().state == "running"
    assert not box.restore("clean").proven  # it was planted, but may not be asked


def test_a_box_without_a_network_is_restored_and_forked_through_its_agent(define: Callable[..., Box]) -> None:
    box = define(network="none", cpus=2)
    box.up()
    assert box.snapshot("clean").engine == "live"
    assert box.restore("clean").proven
    with box.fork("clean", count=2) as clones:
        assert [made.proven for made in clones.made] == [True, True]
    with pytest.raises(GuestUnreachableError, match="has no network"):
        box.run(["true"])
