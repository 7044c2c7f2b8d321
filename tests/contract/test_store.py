"""Boxes that are off become images: what stands on what, and a kill at any step; real disks, without a guest."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from vmimagemanager import Box, BoxSettings, Manager
from vmimagemanager.config import Channel
from vmimagemanager.errors import ImageError, UsageError
from vmimagemanager.files.formats import Format
from vmimagemanager.images import chain, look
from vmimagemanager.images.archives import ArchiveStore
from vmimagemanager.units import Size

_SPEC = importlib.util.spec_from_file_location("standing", Path(__file__).with_name("test_standing.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
standing = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(standing)


@pytest.fixture
def box(manager: Manager) -> Box:
    return manager.define("web", BoxSettings(image="tiny"))


def write(box: Box, manager: Manager, text: str, at: int = 0) -> Path:
    overlay = manager.site.state.box(box.name).overlay
    words: list[str | Path] = ["qemu-io", "-f", "qcow2", "-c", f"write -P {ord(text)} {at} 64k", overlay]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return overlay


def same(first: Path, second: Path) -> bool:
    return subprocess.run(["qemu-img", "compare", "-q", first, second], check=False).returncode == 0


def test_each_store_stands_on_the_one_before_until_there_are_eight(manager: Manager, box: Box) -> None:
    lengths = []
    for number in range(9):
        overlay = write(box, manager, "abcdefghi"[number], at=number * (64 << 10))
        image = box.store("grown").image
        assert same(overlay, image.disk)
        lengths.append(len(image.parents))
        box.undefine()
        box = manager.define("web", BoxSettings(image="grown"))
        assert same(manager.site.state.box("web").overlay, image.disk)
    assert lengths == [1, 2, 3, 4, 5, 6, 7, 0, 1]
    image = manager.images.get("grown:1")
    assert (image.kernel, image.command_line, image.stored_from) == (manager.images.get("tiny").kernel, "quiet", "web")
    manager.gc(remove=True)
    assert manager.fsck(images=True).findings == ()


def test_a_snapshots_disk_is_stored_and_not_what_came_after(manager: Manager, box: Box) -> None:
    write(box, manager, "a")
    box.snapshot("before")
    write(box, manager, "b", at=64 << 10)
    box.snapshot("after")
    before = box.store("kept", snapshot="before").image
    now = box.store("kept").image
    folder = manager.site.state.box("web")
    layers = list(chain.walk(folder.overlay))
    assert (same(layers[2], before.disk), same(folder.overlay, now.disk)) == (True, True)
    assert not same(before.disk, now.disk)
    assert (before.stored_from, before.parents, now.parents) == ("web@before", now.parents, now.parents)


def test_a_raw_image_whose_content_is_a_disk_image_stays_raw(manager: Manager, box: Box, tmp_path: Path) -> None:
    evil = tmp_path / "evil"
    words: list[str | Path] = [
        "qemu-img",
        "create",
        "-q",
        "-u",
        "-f",
        "qcow2",
        "-F",
        "raw",
        "-b",
        "/etc/passwd",
        evil,
        "1M",
    ]
    subprocess.run(words, check=True)
    overlay = manager.site.state.box("web").overlay
    subprocess.run(["qemu-img", "convert", "-n", "-f", "raw", "-O", "qcow2", evil, overlay], check=True)
    image = box.store("odd", disk_format="raw").image
    other = manager.define("other", BoxSettings(image="odd"))
    found = chain.head(manager.site.state.box(other.name).overlay)
    assert found is not None
    assert (found.backing, found.backing_format) == (str(image.disk), "raw")
    again = other.store("odd").image  # nothing stands on a raw disk
    assert again.parents == ()
    assert same(manager.site.state.box(other.name).overlay, again.disk)
    other.reset()
    manager.gc(remove=True)


def test_what_cannot_be_stored_is_said(manager: Manager, box: Box) -> None:
    with pytest.raises(UsageError, match="not the name of an image"):
        box.store("No Name")
    with pytest.raises(UsageError, match="not a format"):
        box.store("web", disk_format="iso")
    manager.site.state.box("web").overlay.write_bytes(b"nonsense")
    with pytest.raises(ImageError, match="damaged"):
        box.store("web")


def test_a_store_may_die_at_every_step(manager: Manager, box: Box, node: str) -> None:
    write(box, manager, "a")
    for number in range(100):
        arguments = [node, str(manager.state_directory), "web", "store", "stored", str(number)]
        status = subprocess.run([sys.executable, "-c", standing.CHILD, *arguments], check=False).returncode
        assert status in {0, -9}
        assert manager.fsck(images=True).findings == ()
        manager.gc(remove=True)
        assert manager.gc() == ()
        if status == 0:
            break
    assert number > 5
    assert manager.images.get("stored").parents == (manager.images.get("tiny").digests["disk"],)
    assert same(manager.site.state.box("web").overlay, manager.images.get("stored").disk)


@pytest.mark.parametrize(
    ("channel", "reason"),
    [
        (Channel.AGENT, "no file system of the kinds" if look.may_use_fuse() else "use FUSE"),
        (Channel.SSH, "neither an agent nor a seed"),
    ],
)
def test_that_an_image_keeps_what_tells_its_box_from_others_is_said(
    manager: Manager, box: Box, caplog: pytest.LogCaptureFixture, channel: Channel, reason: str
) -> None:
    box.update(BoxSettings(image="tiny", channel=channel))
    box.store("kept")
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("What tells 'web' from other boxes stays in the image")
    assert reason in warning


def test_an_image_is_not_called_as_an_archive_is(manager: Manager, box: Box) -> None:
    ArchiveStore(manager.state_directory).keep(
        "taken", Format.TAR_ZST, lambda target: Size(target.write_bytes(b"content")), stored_from="web", description=""
    )
    with pytest.raises(ImageError, match="The archive 'taken' holds files") as caught:
        box.store("taken")
    assert "taken-disk" in caught.value.hint
    assert [image.name for image in manager.images.list()] == ["tiny"]
    assert manager.gc() == ()
    (manager.state_directory / "archives/killed").mkdir()
    assert box.store("killed").image.address == "killed:1"
    (manager.state_directory / "images/empty").mkdir()
    ArchiveStore(manager.state_directory).require_name("empty")


def test_fsck_tells_of_a_damaged_disk_and_removes_no_blob_that_it_may_stand_on(manager: Manager, box: Box) -> None:
    write(box, manager, "a")
    box.store("stored")
    manager.define("other", BoxSettings(image="stored"))
    overlay = manager.site.state.box("other").overlay
    before, blobs = overlay.read_bytes(), set((manager.state_directory / "blobs/sha512").iterdir())
    (manager.state_directory / "images/stored/1/manifest.toml").rename(manager.state_directory / "away")
    (manager.state_directory / "images/stored/1").rmdir()
    overlay.write_bytes(b"nonsense")
    assert "other" in [finding.where for finding in manager.fsck().findings]
    assert set((manager.state_directory / "blobs/sha512").iterdir()) == blobs
    overlay.write_bytes(before)
    assert [left for left in manager.fsck().put_right if "blob" in left.what] == []


def test_an_image_that_is_removed_while_boxes_are_made_and_started_stays_or_is_missed(manager: Manager) -> None:
    boxes: list[Box] = []

    def make(number: int) -> None:
        try:
            box = manager.define(f"box{number}", BoxSettings(image="fleeting", channel=Channel.NONE))
        except ImageError as error:
            assert "no image 'fleeting'" in error.message  # noqa: PT017 - some are made, some are not
            return
        boxes.append(box)
        box.up()

    base = manager.images.get("tiny")
    for turn in range(4):
        manager.images.add("fleeting", base.disk, kernel=base.kernel, initrd=base.initrd, command_line="loud")
        with ThreadPoolExecutor(max_workers=3) as pool:
            made = [pool.submit(make, number) for number in (2 * turn, 2 * turn + 1)]
            with suppress(ImageError):
                manager.remove_image("fleeting")
            for each in made:
                each.result()
        for box in boxes:
            record = manager.site.record(box.name)
            assert Path(record.base).exists()
            assert box.show().state == "running"
            manager.images.verify(manager.images.get(record.image))
        assert manager.fsck(images=True).findings == ()
        while boxes:
            boxes.pop().undefine(force=True)
        with suppress(ImageError):
            manager.remove_image("fleeting")
    assert manager.gc() == ()
