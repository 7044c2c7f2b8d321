"""What a memory is bound to, and what its files were: compared without a guest."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from vmimagemanager import records
from vmimagemanager.hypervisor.connection import Host, Hypervisor, Offer
from vmimagemanager.hypervisor.domainxml import DomainXml
from vmimagemanager.snapshots import seal
from vmimagemanager.snapshots.platform import Platform, differences
from vmimagemanager.state import SnapshotFolder

XML = """
<domain type="{kind}" xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0">
  <name>{name}</name><uuid>0b6a9a06-0f4c-4c7e-a4ed-5f2f2e6a1d0{digit}</uuid><memory unit="KiB">65536</memory>
  <os><type arch="x86_64" machine="{machine}">hvm</type><kernel>/{name}/kernel</kernel></os>
  <cpu mode="{mode}"><model>{cpu}</model></cpu>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type="file"><source file="/{name}/disk"/><target dev="vda" bus="virtio"/></disk>
    <interface type="{network}"><mac address="52:54:00:00:00:0{digit}"/><model type="{nic}"/></interface>
  </devices>
  <qemu:commandline>
    <qemu:arg value="-object"/>
    <qemu:arg value="memory-backend-file,id=vmim-ram,mem-path=/{name}/ram,size=67108864,share=on"/>
    <qemu:arg value="-machine"/><qemu:arg value="memory-backend=vmim-ram"/>
  </qemu:commandline>
</domain>
"""


def definition(**changes: str) -> DomainXml:
    given = {
        "kind": "qemu",
        "name": "web",
        "digit": "1",
        "machine": "pc-q35-7.2",
        "mode": "custom",
        "cpu": "qemu64",
        "network": "user",
        "nic": "virtio",
        **changes,
    }
    return DomainXml.parse(XML.format(**given), source="the test")


class Elsewhere:
    """A host, as far as a platform is compared with it."""

    def __init__(self, *, qemu: str = "7.2.0", cpu: tuple[str, ...] = (), offer: Offer | None = None) -> None:
        self.host = Host(libvirt="9.0.0", qemu=qemu, security=(), qemu_owner=None, cpu=cpu)
        self._offer = offer or Offer(
            architecture=True, accelerator=True, machine=True, cpus=frozenset({"qemu64", "host-passthrough"})
        )

    def offer(self, *asked: str) -> Offer:
        assert asked == ("/usr/bin/qemu-system-x86_64", "x86_64", asked[2], "pc-q35-7.2")
        return self._offer

    def compared(self, frozen: Platform, now: DomainXml) -> tuple[str, ...]:
        return differences(frozen, self.hypervisor, now)

    @property
    def hypervisor(self) -> Hypervisor:
        return cast("Hypervisor", self)


def frozen(of: DomainXml | None = None, *, here: Elsewhere | None = None) -> Platform:
    return Platform.of((here or Elsewhere()).hypervisor, of or definition())


def test_where_nothing_differs_nothing_is_said() -> None:
    assert Elsewhere().compared(frozen(), definition()) == ()
    assert Elsewhere(qemu="8.0.0").compared(frozen(), definition()) == ()
    assert Elsewhere(qemu="7.2.0").compared(replace(frozen(), qemu="7.2.22"), definition()) == ()


@pytest.mark.parametrize(
    ("here", "said"),
    [
        (Elsewhere(qemu="7.1.9"), "This host's QEMU 7.1.9 is older than 7.2.0, which wrote the memory."),
        (Elsewhere(offer=Offer(architecture=False)), "This host's QEMU does not run guests for x86_64."),
        (Elsewhere(offer=Offer(architecture=True)), "The guest ran with TCG, which libvirt cannot use here."),
        (
            Elsewhere(offer=Offer(architecture=True, accelerator=True)),
            "This host's QEMU 7.2.0 does not offer the machine type 'pc-q35-7.2'.",
        ),
        (
            Elsewhere(offer=Offer(architecture=True, accelerator=True, machine=True, cpus=frozenset({"EPYC"}))),
            "This host's QEMU 7.2.0 does not offer the CPU model 'qemu64'.",
        ),
    ],
)
def test_what_this_host_cannot_do_is_named(here: Elsewhere, said: str) -> None:
    assert here.compared(frozen(), definition()) == (said,)


def test_a_guest_that_saw_its_hosts_cpu_needs_all_of_it() -> None:
    seen = definition(kind="kvm", mode="host-passthrough", cpu="")
    there = Elsewhere(cpu=("AMD EPYC-Milan", "avx2", "vaes"))
    memory = frozen(seen, here=there)
    assert there.compared(memory, seen) == ()
    assert Elsewhere(cpu=("AMD EPYC-Milan", "avx2", "vaes", "more")).compared(memory, seen) == ()
    other = Elsewhere(cpu=("AMD EPYC-Rome", "avx2")).compared(memory, seen)
    assert other == ("The guest saw its host's CPU, and this one lacks AMD EPYC-Milan, vaes.",)


def test_another_device_is_another_layout_and_another_owner_is_not() -> None:
    memory = frozen()
    for same in (definition(name="db", digit="2"), definition(network="network")):
        assert Elsewhere().compared(memory, same) == ()
    assert Elsewhere().compared(memory, definition(nic="e1000")) == (
        "The devices in 'domain.xml' are not those that were frozen.",
    )


def test_what_was_not_recorded_is_not_compared() -> None:
    assert Elsewhere(qemu="1.0.0").compared(Platform(), definition()) == ()


def test_a_platform_is_read_as_it_was_written() -> None:
    memory = replace(frozen(), host_cpu=("AMD EPYC-Rome", "avx2"))
    assert Platform.from_record(records.parse(records.dump(memory.to_record()), source="it")) == memory
    with pytest.raises(TypeError):
        Platform.from_record({"qemu": 7})


@pytest.fixture
def folder(tmp_path: Path) -> SnapshotFolder:
    found = SnapshotFolder(tmp_path / "clean")
    (found.path / "tpm").mkdir(parents=True)
    (found.path / "tpm" / "state").write_bytes(b"tpm")
    found.device_state.write_bytes(b"devices")
    found.manifest.write_bytes(b"manifest")
    with found.ram.open("wb") as stream:
        stream.truncate(17 << 20)
    return found


def test_files_that_nobody_touched_are_whole(folder: SnapshotFolder) -> None:
    seals = seal.seal(folder)
    assert sorted(seals) == ["ram", "state", "tpm/state"]
    assert (seals["ram"].sha512, len(seals["state"].sha512)) == ("", 128)
    folder.manifest.write_bytes(b"another")
    assert seal.broken(folder, seals) == ()


def test_a_small_file_is_known_by_its_content(folder: SnapshotFolder) -> None:
    seals = seal.seal(folder)
    os.utime(folder.device_state, ns=(1, 1))
    assert seal.broken(folder, seals) == ()
    folder.device_state.write_bytes(b"devicez")
    os.utime(folder.device_state, ns=(1, seals["state"].mtime_ns))
    assert seal.broken(folder, seals) == (f"The content of '{folder.device_state}' was altered.",)
    (folder.path / "tpm" / "state").unlink()
    assert f"'{folder.path / 'tpm' / 'state'}' is missing." in seal.broken(folder, seals)


def test_a_large_file_is_known_by_its_size_and_the_time_of_its_last_change(folder: SnapshotFolder) -> None:
    seals = seal.seal(folder)
    os.link(folder.ram, folder.path.parent / "another name")
    (folder.path.parent / "another name").unlink()
    assert seal.broken(folder, seals) == ()
    with folder.ram.open("r+b") as stream:
        stream.write(b"x")
    assert seal.broken(folder, seals) == (f"'{folder.ram}' was written to.",)
    os.truncate(folder.ram, 5)
    assert seal.broken(folder, seals) == (f"'{folder.ram}' has 5 bytes, and had {17 << 20}.",)
