"""Exports: each format is read back by qemu-img, and holds what the image holds."""

from __future__ import annotations

import hashlib
import subprocess
import tarfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from lxml import etree

from vmimagemanager import disks
from vmimagemanager.errors import ImageError, SpaceError, StateError, UsageError
from vmimagemanager.images import Image, ImageStore, export
from vmimagemanager.images.stage import stage
from vmimagemanager.progress import silent
from vmimagemanager.units import Size

SIZE = Size(8 << 20)


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "state")


@pytest.fixture
def image(store: ImageStore, tmp_path: Path) -> Image:
    """A generation that stands on another one."""
    for number, text in enumerate(("aa", "bb")):
        with stage(tmp_path / "state", purpose="test") as own:
            disk = own / "disk"
            if number:
                disks.create_overlay(disk, store.get("web").disk)
            else:
                disks.create_empty(disk, SIZE)
            words: list[str | Path] = ["qemu-io", "-f", "qcow2", "-c", f"write -P 0x{text} {number + 1}M 192k", disk]
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
            if number:
                disks.name_backing(disk, store.get("web").disk.name)
            store.publish(
                own,
                Image(
                    name="web",
                    generation=1,
                    created=datetime(2026, 11, 1, tzinfo=UTC),
                    disk=disk,
                    disk_size=SIZE,
                    digests={},
                ),
            )
    return store.get("web:2")


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in {"state", "xdg"})


@pytest.mark.parametrize("suffix", ["qcow2", "raw", "img", "vmdk", "vdi", "vhdx"])
def test_an_export_holds_what_the_image_holds(store: ImageStore, image: Image, tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"web.{suffix}"
    exported = export.export(store, image, target, file_format=None, progress=silent)
    file_format = "raw" if suffix == "img" else suffix
    assert (exported.format, exported.size.bytes) == (file_format, target.stat().st_size)
    words: list[str | Path] = ["qemu-img", "compare", "-f", "qcow2", "-F", file_format, image.disk, target]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    assert disks.info(target, disk_format=file_format).backing is None
    assert left(tmp_path) == [target.name]


def test_a_vmdk_is_stream_optimised_and_a_qcow2_compressed(store: ImageStore, image: Image, tmp_path: Path) -> None:
    export.export(store, image, tmp_path / "web.vmdk", file_format=None, progress=silent)
    assert b'createType="streamOptimized"' in (tmp_path / "web.vmdk").read_bytes()[:4096]
    export.export(store, image, tmp_path / "web", file_format="qcow2", progress=silent)
    text = subprocess.run(
        ["qemu-img", "map", "--output=json", tmp_path / "web"], check=True, capture_output=True
    ).stdout
    assert b'"compressed": true' in text or (tmp_path / "web").stat().st_size < 400 << 10


def test_an_ova_holds_a_description_digests_and_the_disk(store: ImageStore, image: Image, tmp_path: Path) -> None:
    export.export(store, image, tmp_path / "web.ova", file_format=None, progress=silent)
    with tarfile.open(tmp_path / "web.ova") as archive:
        assert archive.getnames() == ["web.ovf", "web.mf", "web-disk1.vmdk"]
        (tmp_path / "out").mkdir()
        for member in archive.getnames():
            stream = archive.extractfile(member)
            assert stream is not None
            (tmp_path / "out" / member).write_bytes(stream.read())
    words: list[str | Path] = [
        "qemu-img",
        "compare",
        "-f",
        "qcow2",
        "-F",
        "vmdk",
        image.disk,
        tmp_path / "out/web-disk1.vmdk",
    ]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    for line in (tmp_path / "out/web.mf").read_text().splitlines():
        name, digest = line.removeprefix("SHA256(").split(")= ")
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest
    namespaces = {"ovf": "http://schemas.dmtf.org/ovf/envelope/1"}
    root = etree.fromstring((tmp_path / "out/web.ovf").read_bytes())
    key = "{http://schemas.dmtf.org/ovf/envelope/1}"
    (file,) = root.findall("ovf:References/ovf:File", namespaces)
    assert (file.get(f"{key}href"), int(file.get(f"{key}size") or 0)) == (
        "web-disk1.vmdk",
        (tmp_path / "out/web-disk1.vmdk").stat().st_size,
    )
    (disk,) = root.findall("ovf:DiskSection/ovf:Disk", namespaces)
    assert disk.get(f"{key}capacity") == str(SIZE.bytes)


def test_an_existing_file_an_unknown_suffix_and_a_missing_folder_are_refused(
    store: ImageStore, image: Image, tmp_path: Path
) -> None:
    (tmp_path / "web.raw").write_text("precious")
    with pytest.raises(StateError, match="already"):
        export.export(store, image, tmp_path / "web.raw", file_format=None, progress=silent)
    assert (tmp_path / "web.raw").read_text() == "precious"
    with pytest.raises(UsageError, match="suffix"):
        export.export(store, image, tmp_path / "web.iso", file_format=None, progress=silent)
    with pytest.raises(UsageError, match="not a format"):
        export.export(store, image, tmp_path / "web", file_format="iso", progress=silent)
    with pytest.raises(StateError, match="no folder"):
        export.export(store, image, tmp_path / "none/web.raw", file_format=None, progress=silent)


def test_an_image_that_was_changed_is_not_exported(store: ImageStore, image: Image, tmp_path: Path) -> None:
    base = store.blob(image.parents[0])
    base.chmod(0o644)
    with base.open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"x")
    with pytest.raises(ImageError, match="damaged"):
        export.export(store, image, tmp_path / "web.raw", file_format=None, progress=silent)
    assert left(tmp_path) == []


def test_an_export_that_finds_no_room_leaves_nothing(
    store: ImageStore, image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise SpaceError("The disk is full.")

    monkeypatch.setattr(disks, "convert", full)
    (tmp_path / ".web.raw.999999999").mkdir()  # what a killed one left
    with pytest.raises(SpaceError):
        export.export(store, image, tmp_path / "web.raw", file_format=None, progress=silent)
    assert left(tmp_path) == []
