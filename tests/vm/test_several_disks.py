"""Guests with several disks: all of them belong to a snapshot, and none of the owner's files is written to."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.vm.conftest import IMAGE, new_name
from vmimagemanager import Box, BoxSettings, Manager
from vmimagemanager.config import Engine

OWN = """
<domain type="qemu">
  <memory unit="MiB">384</memory>
  <vcpu>1</vcpu>
  <os><type arch="x86_64" machine="q35">hvm</type></os>
  <features><acpi/></features>
  <devices>
    <disk type="file" device="disk"><source file="/nowhere"/><target dev="vda" bus="virtio"/></disk>
    <disk type="file" device="disk"><driver name="qemu" type="raw"/><source file="FOLDER/raw"/>
      <target dev="vdb" bus="virtio"/></disk>
    <disk type="file" device="disk"><driver name="qemu" type="qcow2"/><source file="FOLDER/qcow2"/>
      <target dev="vdd" bus="virtio"/></disk>
    <disk type="file" device="disk"><driver name="qemu" type="raw"/><source file="FOLDER/read-only"/>
      <target dev="vdc" bus="virtio"/><readonly/></disk>
    <memballoon model="none"/>
  </devices>
</domain>
"""


@pytest.fixture(scope="module")
def files() -> Iterator[Path]:
    """The owner's own disks: a raw one, a qcow2 and one to read, each of which begins with a word."""
    folder = Path(tempfile.mkdtemp(prefix="vmim-test-", dir="/var/tmp"))
    folder.chmod(0o755)
    for name in ("raw", "read-only"):
        (folder / name).write_bytes(b"original" + bytes((16 << 20) - 8))
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", folder / "raw", folder / "qcow2"], check=True)
    (folder / "own.xml").write_text(OWN.replace("FOLDER", str(folder)))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def several(manager: Manager, files: Path) -> Iterator[Box]:
    """A running box with three disks that it can write to, each with the word 'original', and the snapshot 'clean'."""
    box = manager.define(new_name(), BoxSettings(image=IMAGE, xml=files / "own.xml"))
    try:
        box.up()
        box.script("echo original >/root/word; sync")
        box.snapshot("clean")
        yield box
    finally:
        box.undefine(force=True)


def write(box: Box, word: str) -> None:
    assert len(word) == 8
    box.script(
        f"for disk in vdb vdd; do printf {word} | dd of=/dev/$disk conv=notrunc,fsync status=none; done;"
        f"echo {word} >/root/word; sync"
    )


def words(box: Box) -> list[str]:
    return box.script("head -c 8 /dev/vdb; echo; head -c 8 /dev/vdd; echo; cat /root/word").text.split()


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_all_disks_are_restored_and_forked_and_the_owners_files_are_not_written_to(
    several: Box, files: Path, manager: Manager
) -> None:
    before, box, folder = digests(files), several, manager.site.state.box(several.name)
    assert words(box) == ["original"] * 3
    assert box.script("cat /sys/block/vdc/ro").text == "1\n"
    write(box, "second..")
    assert box.snapshot("second").engine == "live"
    write(box, "dirty...")
    with box.fork("second", count=1) as (clone,):
        assert words(clone) == ["second.."] * 3
        write(clone, "clones..")
        assert clone.snapshot("own").engine == "live"
        write(clone, "dirty...")
        assert clone.restore("own").proven
        assert words(clone) == ["clones.."] * 3
    assert words(box) == ["dirty..."] * 3
    assert box.restore("second").proven
    assert words(box) == ["second.."] * 3
    assert box.restore("clean").proven
    assert words(box) == ["original"] * 3
    box.update(replace(box.show().settings, engines=(Engine.SAVED,)))
    write(box, "saved...")
    assert box.snapshot("saved").engine == "saved"
    write(box, "dirty...")
    assert box.restore("saved").proven
    assert words(box) == ["saved..."] * 3
    box.restore("clean")
    box.remove_snapshot("second")
    box.remove_snapshot("saved")
    assert len(list(folder.layers.iterdir())) == 3
    assert digests(files) == before
