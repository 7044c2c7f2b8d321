"""What an adopted domain lends, and gets back."""

from __future__ import annotations

import os
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from vmimagemanager.boxes import borrow
from vmimagemanager.errors import StateError
from vmimagemanager.hypervisor.connection import Host, Hypervisor
from vmimagemanager.hypervisor.domainxml import DomainXml
from vmimagemanager.state import BoxFolder

DOMAIN = """
<domain type="qemu">
  <os><type>hvm</type><kernel>{0}/kernel</kernel><initrd>{0}/missing</initrd></os>
  <devices><disk type="file" device="disk"><source file="{0}/disk.qcow2"/></disk></devices>
</domain>
"""


@dataclass
class Libvirt:
    """A libvirt that runs QEMU as another user, in a group of ours."""

    session: bool = False
    user: int = os.geteuid() + 1

    @property
    def host(self) -> Host:
        return Host(libvirt="9.0.0", qemu="7.2.0", security=("dac",), qemu_owner=(self.user, os.getegid()))


@pytest.fixture
def folder(tmp_path: Path) -> BoxFolder:
    """A box's folder, beside a disk with a backing file and a kernel."""
    for argv in (["backing.qcow2", "1M"], ["-b", "backing.qcow2", "-F", "qcow2", "disk.qcow2"]):
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *argv], cwd=tmp_path, check=True)
    (tmp_path / "kernel").write_text("")
    (tmp_path / "box").mkdir()
    return BoxFolder(tmp_path / "box")


def needed(tmp_path: Path, libvirt: Libvirt) -> tuple[borrow.Borrowed, ...]:
    definition = DomainXml.parse(DOMAIN.format(tmp_path), source="'domain.xml'")
    return borrow.needed(cast("Hypervisor", libvirt), borrow.files_of(definition))


def modes(tmp_path: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir() if path.is_file()}


def set_modes(tmp_path: Path, mode: int) -> None:
    for path in tmp_path.iterdir():
        if path.is_file():
            path.chmod(mode)


def test_files_that_qemu_may_read_are_not_touched(tmp_path: Path, folder: BoxFolder) -> None:
    for mode in (0o444, 0o644, 0o640):
        set_modes(tmp_path, mode)
        assert needed(tmp_path, Libvirt()) == ()
    set_modes(tmp_path, 0o600)
    assert needed(tmp_path, Libvirt(user=os.geteuid())) == ()
    assert needed(tmp_path, Libvirt(session=True)) == ()
    borrow.borrow((), folder)
    borrow.give_back(folder)
    assert list(folder.path.iterdir()) == []


def test_a_disk_its_backing_file_and_a_kernel_are_lent_for_reading_and_given_back(
    tmp_path: Path, folder: BoxFolder
) -> None:
    set_modes(tmp_path, 0o600)
    (tmp_path / "kernel").chmod(0o604)  # the group is refused though all others may
    before = modes(tmp_path)
    files = needed(tmp_path, Libvirt())
    assert {Path(one.path).name for one in files} == {"disk.qcow2", "backing.qcow2", "kernel"}
    borrow.borrow(files, folder)
    assert modes(tmp_path) == {"disk.qcow2": 0o640, "backing.qcow2": 0o640, "kernel": 0o644}
    assert needed(tmp_path, Libvirt()) == ()
    borrow.give_back(folder)
    assert modes(tmp_path) == before


def test_what_somebody_changed_or_removed_meanwhile_is_left_alone(tmp_path: Path, folder: BoxFolder) -> None:
    set_modes(tmp_path, 0o600)
    borrow.borrow(needed(tmp_path, Libvirt()), folder)
    (tmp_path / "kernel").unlink()
    (tmp_path / "disk.qcow2").chmod(0o444)
    borrow.give_back(folder)
    assert modes(tmp_path) == {"disk.qcow2": 0o444, "backing.qcow2": 0o600}


def test_a_damaged_record_is_an_error_of_the_state(tmp_path: Path, folder: BoxFolder) -> None:
    (folder.path / "borrowed.toml").write_text('format = 1\nfiles = [{ path = "a" }]\n')
    with pytest.raises(StateError, match="damaged"):
        borrow.give_back(folder)
