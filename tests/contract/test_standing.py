"""What a box stands on is replaced as a whole, whenever its process is killed; on real disks, without a guest."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vmimagemanager import Box, BoxSettings, Manager
from vmimagemanager.disks import chain, info
from vmimagemanager.errors import BoxError, ConfigError
from vmimagemanager.hypervisor.domainxml import DomainXml
from vmimagemanager.units import Size

# Kills itself before the file operation of that number.
CHILD = """
import os, signal, sys
from pathlib import Path
from vmimagemanager import Manager
from vmimagemanager.config import load
uri, state, name, verb, argument, left = *sys.argv[1:6], int(sys.argv[6])

def mortal(deed):
    def done(*arguments, **named):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return deed(*arguments, **named)
    return done

configuration = load(host_options={"uri": uri, "state-dir": state, "accelerator": "tcg"})
with Manager.of(configuration) as manager:
    box = manager.box(name)
    os.link, Path.replace, Path.rename, Path.unlink, Path.chmod = map(
        mortal, (os.link, Path.replace, Path.rename, Path.unlink, Path.chmod)
    )
    getattr(box, verb)(*argument.split())
"""
DISKS = ("", "vdb", "vdc")


@pytest.fixture
def box(manager: Manager) -> Box:
    """A box with three disks, firmware and a TPM, and two snapshots; the second one's word is 2."""
    box = manager.define("web", BoxSettings(image="tiny", disks=(Size(1 << 20), Size(2 << 20))))
    for word, name in ((1, "first"), (2, "second")):
        write(manager, box, word)
        box.snapshot(name)
    return box


def write(manager: Manager, box: Box, word: int) -> None:
    folder = manager.site.state.box(box.name)
    for disk in DISKS:
        qemu_io(folder.overlay_of(disk), f"write -P {word} 0 4k")
    folder.nvram.write_bytes(bytes([word]))
    folder.tpm.mkdir(exist_ok=True)
    (folder.tpm / "state").write_bytes(bytes([word]))


def qemu_io(path: Path, command: str) -> bool:
    finished = subprocess.run(["qemu-io", "-f", "qcow2", "-c", command, path], capture_output=True, check=False)
    return finished.returncode == 0 and b"verification failed" not in finished.stdout


def words(manager: Manager, box: Box) -> set[int]:
    """Return the words that a box's disks, firmware and TPM have."""
    folder = manager.site.state.box(box.name)
    found = {next(n for n in (1, 2, 3) if qemu_io(folder.overlay_of(disk), f"read -P {n} 0 4k")) for disk in DISKS}
    return {*found, *folder.nvram.read_bytes(), *(folder.tpm / "state").read_bytes()}


def killed(manager: Manager, *words: str, after: int) -> bool:
    """Run a verb in a process that kills itself; return whether it came to that."""
    uri, state = manager.site.hypervisor.uri, manager.state_directory
    child = subprocess.run([sys.executable, "-c", CHILD, uri, state, *words, str(after)], check=False)
    assert child.returncode in (0, -signal.SIGKILL)
    return child.returncode != 0


def require_whole(manager: Manager, box: Box) -> None:
    """Have the box settled, and see that nothing half-made lies about."""
    box._settled(manager.site.record(box.name))
    folder = manager.site.state.box(box.name)
    assert not folder.standing.exists()
    assert [path.name for path in folder.path.iterdir() if path.name.startswith(".")] == []
    assert [path.name for path in folder.snapshots.iterdir() if path.name.startswith(".")] == []
    for disk in DISKS:
        status = folder.overlay_of(disk).stat()
        assert (status.st_nlink, status.st_mode & 0o200) == (1, 0o200)
    kept = {folder.layer(one.manifest.layer, disk) for one in box.snapshots() for disk in DISKS}
    stood_on = {link for disk in DISKS for link in chain(folder.overlay_of(disk))}
    assert set(folder.layers.iterdir()) - stood_on <= kept


@pytest.mark.parametrize("verb", ["restore", "reset"])
def test_a_box_killed_between_two_disks_of_a_restore_stands_on_one_snapshot(
    manager: Manager, box: Box, verb: str
) -> None:
    seen, number = set(), 0
    while killed(manager, box.name, verb, "first" if verb == "restore" else "", after=number):
        require_whole(manager, box)
        if verb == "restore":
            (word,) = words(manager, box)
            seen.add(word)
        else:
            folder = manager.site.state.box(box.name)
            gone = {not folder.nvram.exists(), not folder.tpm.exists(), box.show().snapshot == ""}
            assert len(gone) == 1
            seen |= gone
        box.restore("second")
        assert words(manager, box) == {2}
        number += 1
    assert len(seen) == 2
    assert number > len(DISKS)


def test_a_box_killed_between_two_disks_of_a_snapshot_loses_nothing(manager: Manager, box: Box) -> None:
    seen, number = set(), 0
    write(manager, box, 3)
    while killed(manager, box.name, "snapshot", "third", after=number):
        require_whole(manager, box)
        assert words(manager, box) == {3}
        names = [one.name for one in box.snapshots()]
        seen.add("third" in names)
        if "third" in names:
            box.restore("second")
            box.restore("third")
            assert words(manager, box) == {3}
            box.remove_snapshot("third")
        number += 1
    assert seen == {True, False}
    assert number > len(DISKS)


def test_further_disks_follow_the_settings_and_count_in_a_snapshots_size(manager: Manager, box: Box) -> None:
    box.restore("first")
    first, second = box.snapshots()
    folder = manager.site.state.box(box.name)
    kept = [folder.layer(second.manifest.layer, disk).stat().st_blocks * 512 for disk in DISKS]
    assert second.parent == "first"
    assert second.own.bytes > sum(kept) > 0
    assert first.own < second.own
    settings = box.show().settings
    changed = box.update(replace(settings, disks=(Size(1 << 20), Size(4 << 20), Size(8 << 20))))
    assert changed.waits_for == "the next reset"
    assert set(folder.disks) == {*DISKS, "vdd"}
    assert info(folder.overlay_of("vdd")).virtual_size == Size(8 << 20)
    qemu_io(folder.overlay_of("vdd"), "write -P 3 0 4k")
    box.restore("first")  # which had no such disk: it is empty again
    assert words(manager, box) == {1}
    assert qemu_io(folder.overlay_of("vdd"), "read -P 0 0 4k")
    box.update(replace(settings, disks=()))
    box.reset()
    assert set(folder.disks) == {""}
    box.restore("second")
    assert words(manager, box) == {2}


def test_a_snapshot_to_which_an_interrupted_restore_went_can_be_removed(manager: Manager, box: Box) -> None:
    folder = manager.site.state.box(box.name)
    for number in range(30):
        killed(manager, box.name, "restore", "first", after=number)
        if folder.standing.exists():
            break
    assert folder.standing.exists()
    box.remove_snapshot("first")
    assert words(manager, box) == {1}


# -- what their owners bring -----------------------------------------------------------------------------------------

OWN = """
<domain type="test">
  <name>theirs</name>
  <memory unit="MiB">96</memory>
  <os><type>hvm</type><loader readonly="yes" type="pflash">FOLDER/code</loader><nvram>FOLDER/variables</nvram></os>
  <devices>
    <disk type="file" device="disk"><source file="FOLDER/first"/><target dev="vda" bus="virtio"/></disk>
    <disk type="file" device="disk"><driver name="qemu" type="raw"/><source file="FOLDER/second"/>
      <target dev="vdb" bus="virtio"/></disk>
  </devices>
</domain>
"""


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A folder with two raw disks, firmware variables, and the XML that names them."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    for name in ("first", "second"):
        (folder / name).write_bytes(bytes([2]) * (1 << 20))
    (folder / "variables").write_bytes(b"theirs")
    (folder / "own.xml").write_text(OWN.replace("FOLDER", str(folder)))
    return folder


@pytest.mark.parametrize("adopt", [False, True])
def test_what_the_owner_brings_is_stood_on_and_never_written_to(manager: Manager, theirs: Path, adopt: bool) -> None:
    if adopt:
        manager.site.hypervisor.define(DomainXml.read(theirs / "own.xml"))
        box = manager.define("theirs", BoxSettings(), adopt=True)
    else:
        box = manager.define("theirs", BoxSettings(image="tiny", xml=theirs / "own.xml"))
    folder = manager.site.state.box("theirs")
    assert set(folder.disks) == {"", "vdb"}
    for _ in range(2):
        assert folder.nvram.read_bytes() == b"theirs"
        assert qemu_io(folder.overlay_of("vdb"), "read -P 2 0 4k")
        folder.nvram.write_bytes(b"changed")
        qemu_io(folder.overlay_of("vdb"), "write -P 3 0 4k")
        box.reset()
    box.undefine()
    assert (theirs / "variables").read_bytes() == b"theirs"
    assert (theirs / "second").read_bytes() == bytes([2]) * (1 << 20)


def test_a_disk_that_does_not_exist_is_named_and_no_box_is_made(manager: Manager, theirs: Path) -> None:
    (theirs / "second").unlink()
    with pytest.raises(ConfigError, match="The disk 'vdb' of the domain XML does not exist"):
        manager.define("theirs", BoxSettings(image="tiny", xml=theirs / "own.xml"))
    assert manager.boxes() == ()


def test_a_domain_with_a_tpm_is_not_adopted(manager: Manager, theirs: Path) -> None:
    tpm = '<tpm model="tpm-crb"><backend type="emulator" version="2.0"/></tpm></devices>'
    text = (theirs / "own.xml").read_text().replace("</devices>", tpm)
    manager.site.hypervisor.define(DomainXml.parse(text, source="'own.xml'"))
    with pytest.raises(BoxError, match="it has a TPM, whose state a box would change"):
        manager.define("theirs", BoxSettings(), adopt=True)
    assert manager.boxes() == ()
