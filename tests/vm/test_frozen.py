"""What a memory is bound to: a restore that cannot work is refused while the box goes on running."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from vmimagemanager import Box, Manager
from vmimagemanager.errors import SnapshotError
from vmimagemanager.snapshots import Manifest
from vmimagemanager.snapshots.platform import Platform
from vmimagemanager.state import SnapshotFolder

MEMORY = ["cat", "/run/in-memory"]


@pytest.fixture
def clean(box: Box, manager: Manager) -> SnapshotFolder:
    return manager.site.state.box(box.name).snapshot("clean")


@contextmanager
def changed(folder: SnapshotFolder, change: Callable[[Manifest], Manifest]) -> Iterator[None]:
    """Lay a changed manifest over a snapshot's own for a block."""
    before = folder.manifest.read_bytes()
    change(Manifest.read(folder)).write(folder)
    try:
        yield
    finally:
        folder.manifest.write_bytes(before)


@contextmanager
def damaged(path: Path, damage: Callable[[Path], None]) -> Iterator[None]:
    """Damage a file for a block, and put it back with its time."""
    size, content, times = path.stat().st_size, path.read_bytes()[:4096], path.stat().st_mtime_ns
    whole = path.read_bytes() if size < 16 << 20 else b""
    damage(path)
    try:
        yield
    finally:
        if whole:
            path.write_bytes(whole)
        else:
            os.truncate(path, size)
            with path.open("r+b") as stream:
                stream.write(content)
        os.utime(path, ns=(times, times))


def flip(path: Path) -> None:
    """Change the first byte of a file."""
    with path.open("r+b") as stream:
        byte = stream.read(1)[0]
        stream.seek(0)
        stream.write(bytes([byte ^ 1]))


def shorten(path: Path) -> None:
    """Take the last byte of a file, which is not one of those that are put back, and is zero in a RAM that has any."""
    os.truncate(path, path.stat().st_size - 1)


def other_machine(platform: Platform) -> Platform:
    return replace(platform, machine="pc-q35-99.0")


def newer_qemu(platform: Platform) -> Platform:
    return replace(platform, qemu="99.0.0")


def unknown_cpu(platform: Platform) -> Platform:
    return replace(platform, cpu="EPYC-Utopia")


def foreign_architecture(platform: Platform) -> Platform:
    return replace(platform, architecture="s390x")


def other_layout(platform: Platform) -> Platform:
    return replace(platform, layout="0" * 128)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_machine, "does not offer the machine type 'pc-q35-99.0'"),
        (newer_qemu, "is older than 99.0.0, which wrote the memory"),
        (unknown_cpu, "does not offer the CPU model 'EPYC-Utopia'"),
        (foreign_architecture, "does not run guests for s390x"),
        (other_layout, "The devices in 'domain.xml' are not those that were frozen"),
    ],
)
def test_a_memory_of_another_machine_is_refused_and_the_guest_goes_on(
    box: Box, clean: SnapshotFolder, change: Callable[[Platform], Platform], said: str
) -> None:
    box.script("echo kept >/run/in-memory")
    with changed(clean, lambda manifest: replace(manifest, platform=change(manifest.platform))):
        for deed in (lambda: box.restore("clean"), lambda: box.fork("clean", count=1)):
            with pytest.raises(SnapshotError, match=said) as caught:
                deed()
            assert caught.value.hint.endswith(f"vmimagemanager restore --disk {box.name}@clean")
    assert box.run(MEMORY).text == "kept\n"
    assert box.restore("clean").proven


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("ram", shorten, r"ram' has \d+ bytes, and had \d+"),
        ("ram", flip, "ram' was written to"),
        ("state", flip, "The content of .*state' was altered"),
        ("state", shorten, r"state' has \d+ bytes, and had \d+"),
        ("domain.xml", flip, r"The content of .*domain\.xml' was altered"),
    ],
)
def test_an_altered_file_is_found_before_anything_is_stopped(
    box: Box, clean: SnapshotFolder, name: str, damage: Callable[[Path], None], said: str
) -> None:
    box.script("echo kept >/run/in-memory")
    with damaged(clean.path / name, damage), pytest.raises(SnapshotError, match=f"was altered: .*{said}"):
        box.restore("clean")
    assert box.run(MEMORY).text == "kept\n"
    assert box.restore("clean").proven


def test_the_disk_of_a_snapshot_can_be_booted_where_its_memory_cannot_be_used(box: Box, clean: SnapshotFolder) -> None:
    boot_id = box.script("echo dirty >/root/canary; cat /proc/sys/kernel/random/boot_id").text
    with changed(clean, lambda manifest: replace(manifest, platform=newer_qemu(manifest.platform))):
        restored = box.restore("clean", disk_only=True)
    assert (restored.engine, restored.running, restored.proven) == ("disk", True, False)
    assert restored.why_not[-1] == "live: The disk alone was asked for."
    assert box.script("ls /root; cat /proc/sys/kernel/random/boot_id").text != boot_id
    assert "canary" not in box.run(["ls", "/root"]).text
