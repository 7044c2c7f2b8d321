"""Snapshots that travel: exported while the box runs, imported into another state directory, restored there.

The other state directory is what another host would have; libvirt is the same one, so the box gets another name there.
"""

from __future__ import annotations

import copy
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from vmimagemanager import Box, BoxSettings, Manager, durable
from vmimagemanager.boxes import archive
from vmimagemanager.config import Engine
from vmimagemanager.disks import create_empty
from vmimagemanager.durable import new_file
from vmimagemanager.errors import BoxError, ImageError, SnapshotError, SpaceError, StateError, VmimError
from vmimagemanager.hypervisor.connection import default_uri
from vmimagemanager.progress import silent
from vmimagemanager.snapshots import Manifest, parcel
from vmimagemanager.state import SnapshotFolder
from vmimagemanager.units import Size

from .conftest import RAM, new_name
from .deaths import deaths

REMEMBERED = "cat /run/in-memory /root/on-disk /proc/sys/kernel/random/boot_id"


def nothing_is_left(manager: Manager) -> bool:
    """Tell whether a state directory has no box, no image, no work in progress, and nothing hidden."""
    state = manager.state_directory
    stages = [path for path in (state / "stage" / "images").glob("*") if path.is_dir()]
    return (manager.boxes(), manager.images.list(), stages, list(manager.site.state.boxes.iterdir())) == (
        (),
        [],
        [],
        [],
    )


def test_a_live_snapshot_travels_while_its_box_runs_and_is_restored_there(box: Box, there: Manager, file: Path) -> None:
    box.script("echo kept >/run/in-memory; echo kept >/root/on-disk; sync")
    boot_id = box.script(REMEMBERED).text.split()[-1]
    box.snapshot("travels", description="for you")
    box.script("echo later >/run/in-memory; echo later >/root/on-disk")
    exported = box.export_snapshot("travels", file)
    assert exported.engine == "live"
    assert box.script(REMEMBERED).text.split() == ["later", "later", boot_id]
    assert file.stat().st_mode & 0o777 == 0o600
    assert exported.size.bytes == file.stat().st_size
    with pytest.raises(StateError, match="There is a file"):
        box.export_snapshot("travels", file)

    with pytest.raises(BoxError, match="already") as caught:
        there.import_snapshot(file, trust=True)
    assert "--as" in caught.value.hint
    assert nothing_is_left(there)

    name = new_name()
    imported = there.import_snapshot(file, name=name, trust=True)
    assert (imported.box, imported.snapshot, imported.engine) == (name, "travels", "live")
    copy = there.box(name)
    assert [(one.name, one.manifest.description) for one in copy.snapshots()] == [("travels", "for you")]
    assert copy.show().state == "off"
    for _ in range(2):
        restored = copy.restore("travels")
        assert (restored.engine, restored.proven) == ("live", True)
        assert copy.script(REMEMBERED).text.split() == ["kept", "kept", boot_id]
        copy.script("echo dirty >/run/in-memory; echo dirty >/root/on-disk")
    assert copy.snapshot("again").engine == "live"
    with copy.fork("travels", count=1) as clones:
        assert clones[0].script(REMEMBERED).text.split() == ["kept", "kept", boot_id]
    ram = there.site.state.box(name).snapshot("travels").ram.stat()
    assert ram.st_blocks * 512 < ram.st_size * 0.9


def test_without_trust_the_disk_alone_comes_in(box: Box, there: Manager, file: Path) -> None:
    box.script("echo kept >/root/on-disk; echo kept >/run/in-memory; sync")
    box.snapshot("travels")
    box.export_snapshot("travels", file)
    name = new_name()
    imported = there.import_snapshot(file, name=name)
    assert imported.engine == "disk"
    (image,) = there.images.list()
    assert (imported.image, image.name) == (image.address, name)
    copy = there.box(name)
    (snapshot,) = copy.snapshots()
    assert (snapshot.manifest.running, snapshot.manifest.engine) == (False, "disk")
    assert "was not trusted" in snapshot.manifest.why_not[-1]
    folder = there.site.state.box(name)
    assert not [path.name for path in folder.snapshot("travels").path.iterdir() if path.name in ("ram", "state")]
    assert (folder.keys / "login").is_dir()
    theirs = box.show().host_key
    assert copy.show().host_key != theirs
    restored = copy.restore("travels")
    assert (restored.running, restored.proven) == (False, False)
    assert copy.up().first_boot
    assert copy.run(["cat", "/root/on-disk"]).text == "kept\n"
    assert copy.run(["test", "-e", "/run/in-memory"], check=False).status == 1


def test_a_saved_snapshot_travels_under_its_own_name(box: Box, manager: Manager, there: Manager, file: Path) -> None:
    name = new_name()
    box.export_snapshot("clean", file)
    there.import_snapshot(file, name=name, trust=True)
    file.unlink()
    source = there.box(name)
    source.restore("clean")
    source.update(replace(source.show().settings, engines=(Engine.SAVED,)))
    source.script("echo kept >/run/in-memory")
    assert source.snapshot("saved").engine == "saved"
    source.export_snapshot("saved", file)
    with pytest.raises(SnapshotError, match="A saved snapshot keeps its box's name and UUID"):
        there.import_snapshot(file, name=new_name(), trust=True)
    source.undefine(force=True)
    assert there.import_snapshot(file, trust=True).engine == "saved"
    copy = there.box(name)
    restored = copy.restore("saved")
    assert (restored.engine, restored.proven) == ("saved", True)
    assert copy.run(["cat", "/run/in-memory"]).text == "kept\n"


# -- what must not come in -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(booted: Box, state_directory: Path) -> Iterator[bytes]:
    """The archive of 'clean'."""
    path = state_directory / "clean.vmim"
    path.unlink(missing_ok=True)
    booted.export_snapshot("clean", path)
    yield path.read_bytes()
    path.unlink()


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What an archive says of itself, and where its members lie."""

    about: dict[str, object]
    members: dict[str, Path]


@pytest.fixture(scope="module")
def unpacked(exported: bytes, tmp_path_factory: pytest.TempPathFactory) -> Unpacked:
    """What is in the archive of 'clean', but without a memory's and a disk's content: it is packed in no time."""
    folder = tmp_path_factory.mktemp("unpacked")
    archived = folder / "archived"
    archived.write_bytes(exported)
    places: dict[str, Path] = {}
    with parcel.opened(archived, belongs=archive.belongs) as opened:
        about = opened.record
        for member in opened.members:
            places[member.name] = folder / member.name
            places[member.name].parent.mkdir(parents=True, exist_ok=True)
            opened.receive(member, places[member.name])
    archived.unlink()
    ram, disk = places[archive.RAM], places["disk.qcow2"]
    os.truncate(ram, 0)
    os.truncate(ram, RAM.bytes)
    disk.unlink()
    create_empty(disk, Size(8 << 30))
    return Unpacked(about, places)


@pytest.fixture
def members(unpacked: Unpacked, tmp_path: Path) -> dict[str, Path]:
    """Copies of what is unpacked, to be changed."""
    places = {name: tmp_path / name for name in unpacked.members}
    for name, place in places.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "--sparse=always", unpacked.members[name], place], check=True)
    return places


@pytest.fixture
def about(unpacked: Unpacked) -> dict[str, object]:
    """What the archive of 'clean' says of itself, to be changed."""
    return copy.deepcopy(unpacked.about)


def packed(file: Path, record: dict[str, object], members: dict[str, Path]) -> None:
    with new_file(file) as stream:
        parcel.write(stream, record, members, silent)


@pytest.mark.parametrize("trust", [False, True], ids=["untrusted", "trusted"])
def test_an_altered_or_truncated_archive_leaves_nothing(
    about: dict[str, object], members: dict[str, Path], there: Manager, file: Path, trust: bool
) -> None:
    packed(file, about, members)
    whole = file.read_bytes()
    file.unlink()
    third = len(whole) // 3
    altered = whole[:third] + bytes([whole[third] ^ 1]) + whole[third + 1 :]
    for content in (whole[: len(whole) // 2], whole[:-5], altered, b"no archive"):
        file.write_bytes(content)
        with pytest.raises(SnapshotError, match="is damaged, or no archive"):
            there.import_snapshot(file, name=new_name(), trust=trust)
        assert nothing_is_left(there)


def test_a_disk_that_names_a_file_of_the_host_is_refused_and_nothing_is_left(
    about: dict[str, object], members: dict[str, Path], there: Manager, file: Path, tmp_path: Path
) -> None:
    disk = members["disk.qcow2"]
    disk.unlink()
    subprocess.run(
        ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/shadow", disk, "8G"], check=True
    )
    packed(file, about, members)
    for trust in (False, True):
        with pytest.raises(ImageError, match="has a backing file; other files are not followed"):
            there.import_snapshot(file, name=new_name(), trust=trust)
        assert nothing_is_left(there)


def newer_qemu(folder: Path) -> None:
    manifest = Manifest.read(SnapshotFolder(folder))
    replace(manifest, platform=replace(manifest.platform, qemu="99.0.0")).write(SnapshotFolder(folder))


def other_machine(folder: Path) -> None:
    manifest = Manifest.read(SnapshotFolder(folder))
    replace(manifest, platform=replace(manifest.platform, machine="pc-q35-99.0")).write(SnapshotFolder(folder))


def other_ram(folder: Path) -> None:
    with (folder / "ram").open("r+b") as stream:
        stream.truncate(64 << 20)


def entities(folder: Path) -> None:
    definition = (folder / "domain.xml").read_text()
    (folder / "domain.xml").write_text(f'<!DOCTYPE domain [<!ENTITY e SYSTEM "/etc/passwd">]>{definition}')


def cdrom(folder: Path) -> None:
    definition = (folder / "domain.xml").read_text()
    disc = (
        '<disk type="file" device="cdrom"><source file="/no/such.iso"/><target dev="sda" bus="sata"/></disk></devices>'
    )
    (folder / "domain.xml").write_text(definition.replace("</devices>", disc))


def no_manifest(folder: Path) -> None:
    (folder / "manifest.toml").write_text("format = 1\n")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (newer_qemu, "is older than 99.0.0, which wrote the memory"),
        (other_machine, "does not offer the machine type 'pc-q35-99.0'"),
        (other_ram, "its RAM has another size than the guest's"),
        (cdrom, r"There is no '/no/such\.iso', which it needs"),
        (entities, "document type or entities, which are refused"),
        (no_manifest, "the snapshot's manifest cannot be read"),
    ],
)
def test_a_snapshot_that_cannot_run_here_is_refused_with_the_reason_before_anything_is_made(
    about: dict[str, object],
    members: dict[str, Path],
    there: Manager,
    file: Path,
    tmp_path: Path,
    change: Callable[[Path], None],
    said: str,
) -> None:
    change(tmp_path / "snapshot")
    packed(file, about, members)
    with pytest.raises(VmimError, match=said):
        there.import_snapshot(file, name=new_name(), trust=True)
    assert nothing_is_left(there)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"box": "../up"}, "its manifest does not describe a box"),
        ({"uuid": "no uuid"}, "its manifest does not describe a box"),
        ({"mac": "52:54:00:00:00:0g"}, "its manifest does not describe a box"),
        ({"mac": 5}, "its manifest does not describe a box"),
        ({"settings": "none"}, "its manifest does not describe a box"),
        ({"command-line": "root=/dev/vda\nquiet"}, "its manifest does not describe a box"),
        ({"settings": {"ram": "a lot"}}, "its manifest does not describe a box"),
        ({"snapshot": "other"}, "the snapshot's manifest is that of another one"),
    ],
)
def test_a_description_that_makes_no_sense_is_refused(
    about: dict[str, object],
    members: dict[str, Path],
    there: Manager,
    file: Path,
    tmp_path: Path,
    change: dict[str, object],
    said: str,
) -> None:
    packed(file, {**about, **change}, members)
    with pytest.raises(SnapshotError, match=said):
        there.import_snapshot(file, name=new_name())
    assert nothing_is_left(there)


def wrong_types(folder: Path) -> None:
    text = (folder / "manifest.toml").read_text()
    (folder / "manifest.toml").write_text(re.sub(r"(?m)^created = .*$", 'created = "yesterday"', text))


def test_a_manifest_of_other_types_is_refused_without_trust_too(
    about: dict[str, object], members: dict[str, Path], there: Manager, file: Path, tmp_path: Path
) -> None:
    wrong_types(tmp_path / "snapshot")
    packed(file, about, members)
    with pytest.raises(SnapshotError, match="the snapshot's manifest cannot be read"):
        there.import_snapshot(file, name=new_name())
    assert nothing_is_left(there)


def test_an_import_does_not_become_the_latest_generation_of_an_image_of_ours(
    exported: bytes, members: dict[str, Path], there: Manager, file: Path
) -> None:
    file.write_bytes(exported)
    name = new_name()
    ours = there.images.add(name, members["disk.qcow2"])
    for trust in (False, True):
        with pytest.raises(ImageError, match=f"There is an image '{name}' already"):
            there.import_snapshot(file, name=name, trust=trust)
    assert [image.address for image in there.images.list()] == [ours.address]
    assert there.boxes() == ()


def test_hooks_and_files_of_the_host_do_not_travel(
    about: dict[str, object], members: dict[str, Path], there: Manager, file: Path, tmp_path: Path
) -> None:
    record = about
    assert isinstance(record["settings"], dict)
    hook = {"moment": "after-define", "where": "host", "command": ["touch", str(tmp_path / "touched")]}
    record["settings"] |= {"hooks": [hook], "xml": "/etc/passwd", "xslt": "/etc/passwd"}
    packed(file, record, members)
    name = new_name()
    there.import_snapshot(file, name=name)
    settings = there.box(name).show().settings
    assert (settings.hooks, settings.xml, settings.xslt) == ((), None, None)
    assert not (tmp_path / "touched").exists()


def test_without_space_nothing_is_imported_or_exported(
    box: Box, exported: bytes, there: Manager, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_bytes(exported)
    monkeypatch.setattr(durable, "free_space", lambda folder: Size(100 << 20))
    with pytest.raises(SpaceError, match=r"Importing .* needs .* where 100"):
        there.import_snapshot(file, name=new_name(), trust=True)
    assert nothing_is_left(there)
    file.unlink()
    with pytest.raises(SpaceError, match=r"The flattened disk needs .* where 100"):
        box.export_snapshot("clean", file)
    assert not file.exists()


def test_an_export_that_is_killed_leaves_no_archive_and_the_next_one_works(
    box: Box, manager: Manager, environment: dict[str, str], file: Path
) -> None:
    box.disconnect()
    for seconds in (1.0, 2.5):
        killed_after(seconds, environment, "snapshot-export", f"{box.name}@clean", str(file))
        if file.exists():  # a quick machine was done with it
            verify(file)
        assert not list(file.parent.glob(f".{file.name}*"))
        file.unlink(missing_ok=True)
    box.export_snapshot("clean", file)
    assert not [path for path in (manager.state_directory / "stage" / "images").iterdir() if path.is_dir()]


def verify(file: Path) -> None:
    with parcel.opened(file, belongs=archive.belongs) as opened:
        for member in opened.members:
            opened.receive(member, None)
        opened.finish()


def killed_after(seconds: float, environment: dict[str, str], *words: str) -> None:
    program = "import sys; from vmimagemanager.cli import main; sys.exit(main())"
    with subprocess.Popen([sys.executable, "-c", program, *words], env={**os.environ, **environment}) as child:
        time.sleep(seconds)
        child.send_signal(signal.SIGKILL)


def test_an_import_may_die_at_every_step(there: Manager, file: Path, tmp_path: Path) -> None:
    disk = tmp_path / "small"
    disk.write_bytes(b"small" * 4096)
    name = new_name()
    there.images.add("small", disk, disk_format="raw")
    there.define(name, BoxSettings(image="small")).snapshot("off")
    there.box(name).export_snapshot("off", file)
    there.box(name).undefine()
    there.remove_image("small")
    environment = {"VMIM_STATE_DIR": str(there.state_directory), "VMIM_URI": default_uri()}
    for step in deaths(environment, "snapshot-import", str(file), "--trust"):
        examined = there.fsck()
        assert examined.findings == (), step
        there.gc(remove=True)
        assert there.gc() == (), step
        assert len(there.images.list()) <= 1, step
        if there.boxes():  # it was published, and is therefore whole
            assert [one.name for one in there.box(name).snapshots()] == ["off"], step
            there.box(name).restore("off")
            there.box(name).undefine()
    assert there.boxes() == (name,)
    assert [image.address for image in there.images.list()] == [f"{name}:1"]


def test_after_a_kill_at_any_moment_of_an_import_the_next_one_works_and_nothing_is_left(
    exported: bytes, there: Manager, file: Path
) -> None:
    file.write_bytes(exported)
    environment = {"VMIM_STATE_DIR": str(there.state_directory), "VMIM_URI": default_uri()}
    name = new_name()
    for seconds in (1.5, 3.0, 4.5):
        killed_after(seconds, environment, "snapshot-import", str(file), "--as", name, "--trust")
        assert there.boxes() in ((), (name,))
        if there.boxes():
            break
    if there.boxes():
        there.box(name).undefine(force=True)
    there.import_snapshot(file, name=name, trust=True)
    assert there.box(name).restore("clean").proven
    assert len(there.images.list()) == 1
    assert there.gc() == ()
    examined = there.fsck()
    assert (examined.findings, examined.put_right) == ((), ())
