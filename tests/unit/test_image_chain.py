"""Chains of blobs: stored generations stand on their parents, and what stands elsewhere is refused."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest

from vmimagemanager import disks
from vmimagemanager.errors import ImageError
from vmimagemanager.images import Image, ImageStore, chain
from vmimagemanager.images.stage import stage
from vmimagemanager.units import Size

SIZE = Size(8 << 20)


def nobody() -> Mapping[str, list[str]]:
    return {}


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "state")


def write(disk: Path, at: int, text: str) -> None:
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", f"write -P {ord(text)} {at} 64k", disk], check=True, stdout=subprocess.DEVNULL
    )


def described(name: str, disk: Path) -> Image:
    return Image(
        name=name, generation=1, created=datetime(2026, 11, 1, tzinfo=UTC), disk=disk, disk_size=SIZE, digests={}
    )


def first(store: ImageStore, tmp_path: Path, name: str = "web") -> Image:
    with stage(tmp_path / "state", purpose="test") as own:
        disks.create_empty(own / "disk", SIZE)
        write(own / "disk", 0, name[0])
        return store.publish(own, described(name, own / "disk"))


def next_one(store: ImageStore, tmp_path: Path, parent: Image, at: int, *, name: str = "web") -> Image:
    with stage(tmp_path / "state", purpose="test") as own:
        disks.create_overlay(own / "disk", parent.disk)
        write(own / "disk", at, "n")
        disks.name_backing(own / "disk", parent.disk.name)
        return store.publish(own, described(name, own / "disk"))


def blobs(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "state/blobs/sha512").iterdir()}


def test_a_generation_on_its_parent_names_it_and_its_size(store: ImageStore, tmp_path: Path) -> None:
    one = first(store, tmp_path)
    two = next_one(store, tmp_path, one, 1 << 20)
    three = next_one(store, tmp_path, two, 2 << 20)
    assert three.parents == (two.digests["disk"], one.digests["disk"])
    assert three.sizes == {path.name: path.stat().st_size for path in (one.disk, two.disk, three.disk)}
    assert disks.chain(three.disk) == (three.disk, two.disk, one.disk)
    store.verify(three)


def test_what_a_chain_stands_on_stays_until_nothing_does(store: ImageStore, tmp_path: Path) -> None:
    one = first(store, tmp_path)
    two = next_one(store, tmp_path, one, 1 << 20)
    store.remove(one.address, used_by=nobody)
    assert [image.address for image in store.list()] == [two.address]
    store.verify(two)
    assert store.unneeded_blobs(nobody, remove=True) == []
    store.remove(two.address, used_by=nobody)
    assert blobs(tmp_path) == set()


def test_a_generation_whose_overlay_somebody_uses_is_not_removed(store: ImageStore, tmp_path: Path) -> None:
    one = first(store, tmp_path)
    two = next_one(store, tmp_path, one, 1 << 20)
    with pytest.raises(ImageError, match="in use by db"):
        store.remove("web", used_by=lambda: {one.digests["disk"]: ["db"]})
    pruned = store.prune("web", keep=1, used_by=lambda: {one.digests["disk"]: ["db"]}, remove=True)
    # Its blob stays for the generation above it, so that nobody misses the generation itself.
    assert [image.address for image in pruned.removed] == [one.address]
    store.verify(two)


def alter(disk: Path, deed: str) -> None:
    disk.chmod(0o644)
    subprocess.run(["qemu-img", "rebase", "-u", "-f", "qcow2", *deed.split(), disk], check=True)


@pytest.mark.parametrize(
    ("backing", "message"),
    [
        ("-F raw -b /etc/passwd", "no disk of the store"),
        ("-F raw -b {parent}", "no disk of the store"),
        ("-F qcow2 -b ../sha512/{parent}", "no disk of the store"),
        ("-F qcow2 -b {absent}", "is missing"),
        ("-F qcow2 -b {own}", "stands on itself"),
        ("-F qcow2 -b json:{{}}", "no disk of the store"),
    ],
)
def test_a_chain_that_leaves_the_store_or_loops_is_refused(
    store: ImageStore, tmp_path: Path, backing: str, message: str
) -> None:
    one = first(store, tmp_path)
    two = next_one(store, tmp_path, one, 1 << 20)
    names = {"parent": one.disk.name, "own": two.disk.name, "absent": "0" * 128}
    alter(two.disk, backing.format(**names))
    with pytest.raises(ImageError, match=message):
        chain.parents(two.disk, store.blob)
    with pytest.raises(ImageError):
        store.require_whole(two)


def test_two_disks_that_stand_on_one_another_are_refused(store: ImageStore, tmp_path: Path) -> None:
    one = first(store, tmp_path)
    two = next_one(store, tmp_path, one, 1 << 20)
    alter(one.disk, f"-F qcow2 -b {two.disk.name}")
    with pytest.raises(ImageError, match="stands on itself"):
        chain.parents(two.disk, store.blob)
    with pytest.raises(ImageError, match="stands on itself"):
        list(chain.walk(two.disk))


def test_a_staged_disk_that_stands_outside_does_not_get_in(store: ImageStore, tmp_path: Path) -> None:
    secret = tmp_path / "secret.qcow2"
    disks.create_empty(secret, SIZE)
    with stage(tmp_path / "state", purpose="test") as own:
        disks.create_overlay(own / "disk", secret)
        with pytest.raises(ImageError, match="no disk of the store"):
            store.publish(own, described("web", own / "disk"))
    assert store.list() == []


def test_a_raw_disk_that_looks_like_an_overlay_is_believed_to_be_raw(store: ImageStore, tmp_path: Path) -> None:
    with stage(tmp_path / "state", purpose="test") as own:
        disks.create_empty(own / "base", SIZE)
        disks.create_overlay(own / "disk", own / "base")
        image = Image(
            **{**{key: getattr(described("web", own / "disk"), key) for key in Image.__slots__}, "disk_format": "raw"}
        )
        found = store.publish(own, image)
    assert found.parents == ()
    store.verify(found)


def test_the_content_above_a_base_is_copied_through_all_layers(store: ImageStore, tmp_path: Path) -> None:
    one = first(store, tmp_path)
    layer, overlay, target = (tmp_path / name for name in ("layer", "overlay", "target"))
    disks.create_overlay(layer, one.disk)
    write(layer, 1 << 20, "l")
    disks.create_overlay(overlay, layer)
    write(overlay, 2 << 20, "o")
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -z 0 64k", overlay], check=True, stdout=subprocess.DEVNULL)
    disks.convert_above(overlay, target, one.disk)
    found = chain.head(target)
    assert found is not None
    assert (found.backing, found.size) == (str(one.disk), SIZE.bytes)
    subprocess.run(["qemu-img", "compare", "-q", overlay, target], check=True)
    assert target.stat().st_size < 1 << 20


# Seals


def test_a_look_is_enough_as_long_as_nothing_was_written(store: ImageStore, tmp_path: Path) -> None:
    one = first(store, tmp_path)
    one.disk.chmod(0o644)
    status = one.disk.stat()
    with one.disk.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"x")
    with pytest.raises(ImageError, match="written to"):
        store.require_whole(one)
    os.utime(one.disk, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(ImageError, match="damaged"):  # it was read, because it is not known as whole any more
        store.require_whole(one)


def test_a_blob_that_was_only_touched_or_copied_is_read_once_and_then_known_again(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = first(store, tmp_path)
    copy = tmp_path / "copy"
    copy.write_bytes(one.disk.read_bytes())
    copy.replace(one.disk)
    store.require_whole(one)
    monkeypatch.setattr(hashlib, "file_digest", None)
    store.require_whole(one)


def test_the_same_image_once_more_puts_a_damaged_blob_right(store: ImageStore, tmp_path: Path) -> None:
    one = first(store, tmp_path)
    good = one.disk.read_bytes()
    one.disk.chmod(0o644)
    one.disk.write_bytes(b"nonsense")
    assert [where for where, _ in store.examine()] == [one.address]
    with stage(tmp_path / "state", purpose="test") as own:
        (own / "disk").write_bytes(good)
        store.publish(own, described("web", own / "disk"))
    assert list(store.examine()) == []


# Pinning and pruning


def test_pruning_keeps_the_newest_the_pinned_and_the_used(store: ImageStore, tmp_path: Path) -> None:
    names = "abcdef"
    images = [first(store, tmp_path, name) for name in names]
    with stage(tmp_path / "state", purpose="test"):
        pass
    for image in images[1:]:
        with stage(tmp_path / "state", purpose="test") as own:
            subprocess.run(["cp", image.disk, own / "disk"], check=True)
            store.publish(own, described("a", own / "disk"))
    for image in images[1:]:
        store.remove(image.name, used_by=nobody)
    store.pin("a:2", pinned=True)
    used = {images[2].digests["disk"]: ["db"]}
    dry = store.prune("a", keep=2, used_by=lambda: used, remove=False)
    assert [image.generation for image in dry.removed] == [1, 4]
    assert {image.generation: reason for image, reason in dry.spared.items()} == {2: "pinned", 3: "in use by db"}
    assert len(store.list()) == 6
    done = store.prune("a", keep=2, used_by=lambda: used, remove=True)
    assert (done.removed, done.freed.bytes > 0) == (dry.removed, True)
    assert [image.generation for image in store.list()] == [2, 3, 5, 6]
    with pytest.raises(ImageError, match="pinned"):
        store.remove("a:2", used_by=nobody)
    store.pin("a:2", pinned=False)
    store.remove("a:2", used_by=nobody)
