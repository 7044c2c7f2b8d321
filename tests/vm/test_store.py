"""Boxes that become images: stored while they run, carried to another host, started there, and sealed."""

from __future__ import annotations

import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from vmimagemanager import Box, BoxSettings, Manager, disks, keys, snapshots
from vmimagemanager.boxes import life, reach
from vmimagemanager.errors import ConfigError, GuestError, ImageError
from vmimagemanager.guest.session import Access, Session
from vmimagemanager.images import chain, identities, look
from vmimagemanager.units import Size

RAM = Size(384 << 20)
CLEAN = "clean"
EXT4_SUPERBLOCK, EXT4_INCOMPATIBLE, EXT4_NEEDS_RECOVERY = 1024, 0x60, 0x4

needs_fuse = pytest.mark.skipif(not look.may_use_fuse(), reason="this host lets root alone use FUSE")


@pytest.fixture
def images(manager: Manager) -> Iterator[Callable[[str], str]]:
    """Names of images that are removed at the end."""
    made: list[str] = []

    def name(text: str) -> str:
        made.append(text)
        return text

    yield name
    for each in made:
        if any(image.name == each for image in manager.images.list()):
            manager.remove_image(each)


@pytest.fixture
def far(manager: Manager) -> Iterator[Manager]:
    """Another state directory, as another host has one."""
    folder = Path(tempfile.mkdtemp(prefix="vmim-test-", dir="/var/tmp"))
    folder.chmod(0o755)
    with Manager.open(uri=manager.configuration.host.uri, state_directory=folder / "state") as opened:
        yield opened
        for name in opened.boxes():
            opened.box(name).undefine(force=True)
    shutil.rmtree(folder)


@needs_fuse
def test_a_running_box_becomes_an_image_that_another_host_boots(
    box: Box, manager: Manager, far: Manager, images: Callable[[str], str], tmp_path: Path
) -> None:
    base = manager.images.get("debian-12")
    box.run(["sh", "-c", "echo marked > /root/marked; head -c 3M /dev/urandom > /root/noise; rm /etc/issue"])
    stored = box.store(images("stored-web"))
    image = stored.image
    assert image.parents == (base.digests["disk"], *base.parents)
    assert (image.stored_from, image.packages, image.kernel) == (box.name, base.packages, base.kernel)
    assert 3 << 20 < image.disk.stat().st_size < 200 << 20

    # The box went on, thawed, and nothing is left of the snapshot.
    box.run(["sh", "-c", "echo later > /root/later; sync"])
    assert [one.name for one in box.snapshots()] == [CLEAN]
    assert manager.gc() == ()

    # What was in memory alone is in the image, whose file system is clean.
    with look.opened(image.disk, tmp_path) as system:
        assert system.packages() == base.packages
    assert not features(image.disk) & EXT4_NEEDS_RECOVERY
    difference = manager.compare_images("debian-12", image.address, files=True)
    assert difference.packages == {}
    assert difference.files is not None
    assert {"/root/marked", "/root/noise"} <= set(difference.files.added)
    assert "/root/later" not in difference.files.added
    assert "/etc/issue" in difference.files.removed
    assert "/etc/hostname" in difference.files.changed + difference.files.added

    # Another host has it with all that it stands on.
    url = str(far.state_directory.parent / "shared")
    assert not manager.push_image(image.address, url).was_there
    pulled = far.pull_image("stored-web", url)
    assert pulled.image.needed == image.needed
    other = far.define(f"{box.name}-far", BoxSettings(image="stored-web", ram=RAM))
    assert other.up().first_boot
    # It is nobody's: not the old box's, whose keys are not even in the blocks that are free.
    folder = manager.site.state.box(box.name)
    with pytest.raises(GuestError, match="does not accept our key"):
        Session.connect(replace(access(other, far), key=folder.keys / "login" / keys.PRIVATE), timedelta(seconds=30))
    host_keys = [
        site.state.box(name).keys / "host" for site, name in ((manager.site, box.name), (far.site, other.name))
    ]
    publics = [(path / keys.PUBLIC).read_text().split()[1] for path in host_keys]
    assert other.script("cut -d' ' -f2 /etc/ssh/ssh_host_*.pub").text.split() == publics[1:]
    secret = (host_keys[0] / keys.PRIVATE).read_text().splitlines()[2]
    assert secret in box.run(["cat", "/etc/ssh/ssh_host_ed25519_key"]).text
    for word in (secret, publics[0], keys.load(folder.keys / "login").public.split()[1]):
        assert any(holds(layer, word) for layer in folder.layers.iterdir())
        assert not holds(image.disk, word)
    assert other.run(["cat", "/root/marked", "/etc/hostname"]).text.split() == ["marked", other.name]
    assert other.run(["cat", "/etc/machine-id"]).text != box.run(["cat", "/etc/machine-id"]).text
    assert "recovery" not in other.run(["dmesg"]).text

    # A base that was written to is noticed before a guest runs on it.
    other.kill()
    damaged = far.images.blob(base.digests["disk"])
    damaged.chmod(0o644)
    with damaged.open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\xff")
    with pytest.raises(ImageError, match="damaged: it was written to"):
        other.up()
    assert not far.site.domain(other.name)
    (finding,) = far.fsck(images=True).findings
    assert (finding.where, damaged.name in finding.what) == ("stored-web:1", True)
    again = far.pull_image("stored-web", url)  # what is damaged travels once more
    assert far.fsck(images=True).findings == ()
    assert again.image.needed == image.needed


def access(box: Box, manager: Manager) -> Access:
    record = manager.site.record(box.name)
    return reach.access(reach.running_domain(manager.site, record), record, manager.site.state.box(box.name))


def holds(disk: Path, word: str) -> bool:
    """Tell whether a word is anywhere in the file of a disk, where no cluster ends in it."""
    return word.encode() in disk.read_bytes()


def test_at_its_first_boot_a_box_shuts_out_those_that_its_image_was(box: Box, manager: Manager) -> None:
    """What a file system that cannot be written to from outside still has is replaced from inside."""
    theirs, earlier = "ssh-ed25519 AAAAtheirs grandma@home", "ssh-ed25519 AAAAearlier vmimagemanager-db"
    box.script(f"printf '%s\\n' '{theirs}' '{earlier}' >>/root/.ssh/authorized_keys")
    record = manager.site.record(box.name)
    folder = manager.site.state.box(box.name)
    life.identify(reach.running_domain(manager.site, record), record, folder)
    own = keys.load(folder.keys / "login").public
    assert box.run(["cat", "/root/.ssh/authorized_keys"]).text.splitlines() == [theirs, own]


def features(disk: Path) -> int:
    (found,) = struct.unpack_from("<I", head_of(disk), EXT4_SUPERBLOCK + EXT4_INCOMPATIBLE)
    assert isinstance(found, int)
    return found


def head_of(disk: Path) -> bytes:
    """Return the beginning of the file system that an image without partitions consists of."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder, "head")
        words: list[str | Path] = [
            "qemu-img",
            "dd",
            "-f",
            "qcow2",
            "-O",
            "raw",
            "bs=1M",
            "count=8",
            f"if={disk}",
            f"of={raw}",
        ]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        return raw.read_bytes()


@needs_fuse
def test_boxes_keep_their_generation_until_they_are_told(
    box: Box, manager: Manager, define: Callable[..., Box], images: Callable[[str], str], tmp_path: Path
) -> None:
    name = images("stored-db")
    first = box.store(name, snapshot=CLEAN, description="the first").image
    kept, told, fixed = define(image=name), define(image=name), define(image=first.address)
    with pytest.raises(ImageError, match="in use by"):
        manager.remove_image(name)
    box.kill()
    second = box.store(name).image
    assert (second.generation, second.description, second.parents) == (2, f"Stored from {box.name}", first.parents)
    # The box was powered off: what its journal held is in the image, and all files but those that are its own.
    assert not features(second.disk) & EXT4_NEEDS_RECOVERY
    overlay, raw = manager.site.state.box(box.name).overlay, tmp_path / "overlay.raw"
    disks.convert(overlay, raw, source_format="qcow2", target_format="raw")
    assert "/etc/ssh/ssh_host_ed25519_key" in identities.take_out(raw, tmp_path, disk_format="raw", login_keys=[])
    with look.opened(raw, tmp_path, disk_format="raw") as before, look.opened(second.disk, tmp_path) as after:
        assert before.files() == after.files()
    raw.unlink()
    changed = told.update_image()
    assert (changed.keys["image"], changed.waits_for) == ((first.address, second.address), "the next reset")
    assert list(chain.walk(manager.site.state.box(told.name).overlay))[1] == first.disk
    told.reset()
    assert list(chain.walk(manager.site.state.box(told.name).overlay))[1] == second.disk
    assert list(chain.walk(manager.site.state.box(kept.name).overlay))[1] == first.disk
    with pytest.raises(ConfigError, match="stays on it"):
        fixed.update_image()
    pruned = manager.prune_images(name, keep=1)
    assert pruned.removed == ()
    assert all(box in pruned.spared[first] for box in (kept.name, fixed.name))
    for each in (kept, told, fixed):
        each.undefine()


def test_a_store_that_is_interrupted_leaves_the_box_as_it_was(
    box: Box, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    box.run(["sh", "-c", "echo kept > /root/kept"])
    with monkeypatch.context() as patch:
        patch.setattr(snapshots, "remove", interrupt)
        with pytest.raises(KeyboardInterrupt):
            box.store("stored-never")
    assert [one.name for one in box.snapshots()] == [CLEAN]
    assert [image.name for image in manager.images.list() if image.name == "stored-never"] == []
    assert box.run(["sh", "-c", "cat /root/kept; echo more > /root/more"]).text == "kept\n"
    manager.gc(remove=True)
    assert manager.gc() == ()
    box.restore(CLEAN)
