"""qemu-img, for real: overlays, inspection, and images that must not be trusted."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from vmimagemanager import disks
from vmimagemanager.errors import ImageError, StateError
from vmimagemanager.units import Size

MEBIBYTE = 1 << 20


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Return a qcow2 of 8 MiB with something in it, made of 'base.raw'."""
    raw, path = tmp_path / "base.raw", tmp_path / "base.qcow2"
    raw.write_bytes(os.urandom(MEBIBYTE) + bytes(7 * MEBIBYTE))
    disks.convert(raw, path, source_format="raw")
    return path


def make(*words: str | Path) -> None:
    subprocess.run(["qemu-img", "create", "-q", *words], check=True)


def test_an_overlay_is_as_large_as_its_backing_file_and_names_it(base: Path, tmp_path: Path) -> None:
    disks.create_overlay(tmp_path / "overlay.qcow2", base)
    found = disks.info(tmp_path / "overlay.qcow2")
    assert (found.format, found.virtual_size, found.backing) == ("qcow2", Size(8 * MEBIBYTE), base)
    assert found.actual_size < Size(MEBIBYTE)


def test_an_overlay_can_be_larger_than_its_backing_file(base: Path, tmp_path: Path) -> None:
    disks.create_overlay(tmp_path / "overlay.qcow2", base, size=Size.parse("1G"))
    assert disks.info(tmp_path / "overlay.qcow2").virtual_size == Size(1 << 30)


def test_an_overlay_that_would_cut_its_backing_file_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"1M is too small .* needs 8M"):
        disks.create_overlay(tmp_path / "overlay.qcow2", base, size=Size.parse("1M"))
    assert not (tmp_path / "overlay.qcow2").exists()


def test_an_existing_overlay_is_neither_replaced_nor_removed(base: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.qcow2"
    overlay.write_bytes(b"precious")
    with pytest.raises(ImageError, match="exists already"):
        disks.create_overlay(overlay, base)
    assert overlay.read_bytes() == b"precious"


def test_an_overlay_on_nothing_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"missing\.qcow2' does not exist"):
        disks.create_overlay(tmp_path / "overlay.qcow2", tmp_path / "missing.qcow2")
    assert list(tmp_path.iterdir()) == []


def test_names_with_spaces_quotes_colons_and_commas_are_only_names(base: Path, tmp_path: Path) -> None:
    strange = base.rename(tmp_path / "a base, 'with' json:{}.qcow2")
    overlay = tmp_path / 'over:lay, "x".qcow2'
    disks.create_overlay(overlay, strange)
    assert disks.info(overlay).backing == strange


def test_conversion_keeps_content_and_holes(base: Path, tmp_path: Path) -> None:
    disks.convert(base, tmp_path / "back.raw", source_format="qcow2", target_format="raw")
    assert (tmp_path / "back.raw").read_bytes() == (tmp_path / "base.raw").read_bytes()
    assert (tmp_path / "back.raw").stat().st_blocks * 512 < 2 * MEBIBYTE


def test_a_failed_conversion_leaves_no_target(tmp_path: Path) -> None:
    (tmp_path / "rubbish").write_bytes(b"rubbish" * 1000)
    with pytest.raises(ImageError, match="damaged"):
        disks.convert(tmp_path / "rubbish", tmp_path / "target", source_format="qcow2")
    assert not (tmp_path / "target").exists()


def test_a_sound_image_passes_the_check(base: Path) -> None:
    disks.check(base)


def test_a_corrupt_image_fails_the_check_with_what_qemu_img_says(base: Path) -> None:
    with base.open("r+b") as stream:
        stream.seek(24)  # the virtual size: the tables no longer fit it
        stream.write(b"\x7f" * 8)
    with pytest.raises(ImageError, match="damaged") as caught:
        disks.check(base)
    assert caught.value.detail


def test_a_cluster_that_is_used_and_counted_as_free_fails_the_check(base: Path) -> None:
    with base.open("r+b") as stream:
        stream.seek(48)
        table = int.from_bytes(stream.read(8))  # qcow2.txt: refcount_table_offset
        stream.seek(table)
        block = int.from_bytes(stream.read(8))
        stream.seek(block)
        stream.write(bytes(64))
    with pytest.raises(ImageError, match="damaged"):
        disks.check(base)


def test_info_does_not_need_the_backing_file(base: Path, tmp_path: Path) -> None:
    disks.create_overlay(tmp_path / "overlay.qcow2", base)
    base.unlink()
    assert disks.info(tmp_path / "overlay.qcow2").backing == base


def test_info_on_a_missing_image_says_so(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="does not exist"):
        disks.info(tmp_path / "missing.qcow2")


def test_an_image_that_stands_alone_names_no_outside_files(base: Path) -> None:
    disks.refuse_outside_files(base)


@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_a_backing_file_is_refused_in_both_versions_of_the_format(tmp_path: Path, compat: str) -> None:
    path = tmp_path / "evil.qcow2"
    make("-u", "-f", "qcow2", "-o", f"compat={compat}", "-F", "raw", "-b", "/etc/shadow", path, "1M")
    with pytest.raises(ImageError, match="has a backing file"):
        disks.refuse_outside_files(path)


def test_a_data_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.qcow2"
    make("-f", "qcow2", "-o", f"data_file={tmp_path / 'data'},data_file_raw=on", path, "1M")
    with pytest.raises(ImageError, match="keeps its data in another file"):
        disks.refuse_outside_files(path)


@pytest.mark.parametrize("content", [b"", b"QFI\xfb", b"KDMV" + bytes(200), b"# Disk DescriptorFile\n"])
def test_what_is_no_qcow2_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "disk"
    path.write_bytes(content)
    with pytest.raises(ImageError, match="not a qcow2"):
        disks.refuse_outside_files(path)


def test_only_a_qcow2_is_recognised(base: Path, tmp_path: Path) -> None:
    assert disks.detect_format(base) == "qcow2"
    assert disks.detect_format(tmp_path / "base.raw") is None
    with pytest.raises(StateError):
        disks.detect_format(tmp_path / "missing")
