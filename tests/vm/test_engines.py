"""The three engines of a snapshot, each made to be used for a real reason; costs four boots."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.vm.conftest import new_name
from vmimagemanager import Box, BoxSettings, Manager
from vmimagemanager.config import Engine, Hook, Moment
from vmimagemanager.errors import SnapshotError, SpaceError
from vmimagemanager.guest.repair import TOKEN_FILE
from vmimagemanager.hypervisor.connection import default_uri
from vmimagemanager.snapshots import Manifest, store

BOOT_ID = ["cat", "/proc/sys/kernel/random/boot_id"]
IDENTITY = (
    "cat /etc/machine-id /etc/hostname /root/.ssh/authorized_keys; cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub"
)


@contextmanager
def engines(box: Box, *allowed: Engine) -> Iterator[None]:
    """Allow a box only these engines for a block."""
    before = box.show().settings
    box.update(replace(before, engines=allowed))
    try:
        yield
    finally:
        box.update(before)


def plug_in_what_cannot_be_migrated(box: Box, manager: Manager) -> None:
    """Hot-plug a memory that is shared with a peer, which QEMU refuses to migrate."""
    domain = manager.site.hypervisor.find(box.name)
    assert domain is not None
    shared = {"qom-type": "memory-backend-ram", "id": "peer", "size": 1 << 20, "share": True}
    domain.monitor.command("object-add", **shared)
    domain.monitor.command("device_add", driver="ivshmem-plain", id="shm", memdev="peer", bus="pci.9")
    assert domain.monitor.migration_blockers()


def test_a_box_started_by_others_gets_its_own_identity_and_is_saved_with_the_reason(
    box: Box, manager: Manager, booted_name: str
) -> None:
    name = f"{booted_name}-other"
    if name in manager.boxes():  # a run that was killed left it
        manager.box(name).undefine(force=True)
    other = manager.define(name, BoxSettings(image=box.show().settings.image, ram=box.show().settings.ram))
    try:
        subprocess.run(["virsh", "-q", "-c", default_uri(), "start", name], check=True)
        up = other.up()
        assert (up.started, up.first_boot) == (False, True)
        machine_id, host_name, authorized, host_key = other.script(IDENTITY).text.splitlines()
        its = box.script(IDENTITY).text.splitlines()
        assert host_name == name
        assert machine_id not in ("", "uninitialized", its[0])
        assert authorized != its[2]
        assert host_key != its[3]

        other.script("echo kept >/run/in-memory")
        boot_id = other.run(BOOT_ID).text
        taken = other.snapshot("saved")
        assert taken.engine == "saved"
        assert [why for why in taken.why_not if why.startswith("live: ") and "not in a file" in why]
        assert other.run(BOOT_ID).text == boot_id
        other.script("echo changed >/run/in-memory; echo dirty >/root/canary")
        restored = other.restore("saved")
        assert (restored.engine, restored.proven) == ("saved", True)
        assert [why for why in restored.why_not if "not in a file" in why]
        assert other.run(["cat", "/run/in-memory"]).text == "kept\n"
        assert other.run(["test", "-e", "/root/canary"], check=False).status == 1
        assert not other.up().first_boot
    finally:
        other.undefine(force=True)


def test_a_guest_that_cannot_be_migrated_is_kept_by_its_disk_and_booted(box: Box, manager: Manager) -> None:
    boot_id = box.run(BOOT_ID).text
    box.script("echo kept >/root/on-disk; echo gone >/run/in-memory")
    plug_in_what_cannot_be_migrated(box, manager)
    taken = box.snapshot("disk")
    assert taken.engine == "disk"
    assert [why.split(":")[0] for why in taken.why_not] == ["live", "saved"]
    assert "QEMU cannot migrate the guest: " in taken.why_not[1]
    assert "ivshmem" in taken.why_not[1]
    second = box.run(BOOT_ID).text
    assert second != boot_id
    assert box.run(["cat", "/root/on-disk"]).text == "kept\n"

    box.script("echo changed >/root/on-disk; sync")
    restored = box.restore("disk")
    assert (restored.engine, restored.running, restored.proven) == ("disk", True, False)
    assert restored.why_not == taken.why_not
    assert box.run(BOOT_ID).text not in (boot_id, second)
    assert box.run(["cat", "/root/on-disk"]).text == "kept\n"
    assert box.run(["test", "-e", "/run/in-memory"], check=False).status == 1


def test_the_live_engine_can_be_left_out(box: Box) -> None:
    with engines(box, Engine.SAVED, Engine.DISK):
        taken = box.snapshot("without-live")
    assert taken.engine == "saved"
    assert taken.why_not == ("live: The box's settings leave this engine out.",)
    assert box.restore("without-live").proven


@pytest.mark.parametrize(("engine", "memory"), [("saved", "private"), ("live", "private"), ("live", "shared")])
def test_a_snapshot_that_fails_at_its_last_step_leaves_the_guest_as_it_was(
    box: Box, manager: Manager, engine: str, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = manager.site.state.box(box.name)
    if memory == "shared":
        with engines(box, Engine.SAVED):
            box.snapshot("before")  # which gives it a RAM file of its own
    domain = manager.site.domain(box.name)
    assert domain is not None
    ram = domain.definition(live=True).ram_file
    assert ram is not None
    assert ram.shared == (memory == "shared")
    boot_id = box.script("echo kept >/run/in-memory; cat /proc/sys/kernel/random/boot_id").text
    before, layers = [one.name for one in box.snapshots()], set(folder.layers.iterdir())

    def publish(staged: Path, target: Path) -> None:
        used.append("saved" if (staged / "saved").exists() else "live")
        raise SpaceError("The disk is full.")

    used: list[str] = []
    with monkeypatch.context() as patch, engines(box, Engine(engine)):
        patch.setattr(store, "publish", publish)
        with pytest.raises(SpaceError, match="The disk is full"):
            box.snapshot("failed")
    assert used == [engine]
    assert [one.name for one in box.snapshots()] == before
    assert set(folder.layers.iterdir()) <= layers  # an earlier test may have left one that nobody stands on
    assert box.run(["cat", "/run/in-memory"]).text == "kept\n"
    assert box.run(BOOT_ID).text == boot_id
    assert box.script("echo written >/root/file; sync; cat /root/file").text == "written\n"
    assert box.snapshot("succeeded").engine == "live"
    assert box.run(["cat", "/root/file"]).text == "written\n"


OWN = """
<domain type="qemu">
  <memory unit="MiB">384</memory>
  <vcpu>1</vcpu>
  <os><type arch="x86_64" machine="q35">hvm</type></os>
  <features><acpi/></features>
  <devices>
    <shmem name="{name}"><model type="ivshmem-plain"/><size unit="M">1</size></shmem>
    <memballoon model="none"/>
  </devices>
</domain>
"""


def test_a_device_that_cannot_be_migrated_is_named_before_anything_is_done_to_the_guest(
    define: Callable[..., Box], tmp_path: Path
) -> None:
    memory = new_name()
    own = tmp_path / "own.xml"
    own.write_text(OWN.format(name=memory))
    hook = Hook(moment=Moment.BEFORE_SNAPSHOT, command=("touch", "/run/hook"))
    box = define(xml=own, engines=(Engine.LIVE, Engine.SAVED), hooks=(hook,))
    try:
        box.up()
        token = box.run(["cat", TOKEN_FILE]).text
        with pytest.raises(SnapshotError, match="No engine can snapshot the box") as caught:
            box.snapshot("none")
        for line in caught.value.detail.splitlines()[:2]:
            assert f"QEMU cannot migrate the guest: the shared memory '{memory}' (ivshmem) (" in line
        assert "virsh detach-device" in caught.value.hint
        assert f"vmimagemanager define --update {box.name} --engines live,saved,disk" in caught.value.hint
        assert box.run(["test", "-e", "/run/hook"], check=False).status == 1
        assert box.run(["cat", TOKEN_FILE]).text == token
    finally:
        box.kill()
        Path("/dev/shm", memory).unlink(missing_ok=True)  # which QEMU leaves behind


def test_when_no_engine_can_each_says_why_and_the_guest_goes_on(box: Box, manager: Manager) -> None:
    box.script("echo kept >/run/in-memory")
    plug_in_what_cannot_be_migrated(box, manager)
    with (
        engines(box, Engine.LIVE, Engine.SAVED),
        pytest.raises(SnapshotError, match="No engine can snapshot the box") as caught,
    ):
        box.snapshot("none")
    live, saved, disk = caught.value.detail.splitlines()
    assert live.startswith("live: ")
    assert "ivshmem" in saved
    assert disk == "disk: The box's settings leave this engine out."
    assert [one.name for one in box.snapshots()] == ["clean"]
    assert box.run(["cat", "/run/in-memory"]).text == "kept\n"


def test_a_guest_that_does_not_shut_down_is_not_kept_by_its_disk_and_goes_on(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.script("echo kept >/run/in-memory; systemctl mask --runtime --now systemd-logind 2>/dev/null")
    with engines(box, Engine.DISK):
        monkeypatch.setenv("VMIM_TIMEOUT_FACTOR", "0.2")
        with pytest.raises(SnapshotError, match="No engine can snapshot the box") as caught:
            box.snapshot("disk")
        monkeypatch.delenv("VMIM_TIMEOUT_FACTOR")
    assert caught.value.detail.splitlines() == [
        "live: The box's settings leave this engine out.",
        "saved: The box's settings leave this engine out.",
        f"disk: The guest of '{box.name}' did not shut down, so its disk cannot be kept cleanly.",
    ]
    assert box.run(["cat", "/run/in-memory"]).text == "kept\n"


def test_a_snapshot_whose_memory_qemu_refuses_is_booted_from_its_disk_and_says_so(box: Box, manager: Manager) -> None:
    boot_id = box.script("echo dirty >/root/canary; cat /proc/sys/kernel/random/boot_id").text
    clean = manager.site.state.box(box.name).snapshot("clean")
    before, manifest = clean.device_state.read_bytes(), clean.manifest.read_bytes()
    clean.device_state.write_bytes(bytes(len(before)))
    replace(Manifest.read(clean), seals={}).write(clean)  # or it would be found before the guest is ended
    try:
        restored = box.restore("clean")
    finally:
        clean.device_state.write_bytes(before)
        clean.manifest.write_bytes(manifest)
    assert (restored.engine, restored.running, restored.proven) == ("disk", True, False)
    assert [why for why in restored.why_not if why.startswith("live: ")]
    assert box.run(BOOT_ID).text != boot_id
    assert box.run(["test", "-e", "/root/canary"], check=False).status == 1
    assert (box.restore("clean").engine, box.run(BOOT_ID).text) == ("live", boot_id)
