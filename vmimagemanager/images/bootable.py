"""A disk that starts itself by UEFI firmware: a partition with boot loader, kernel and initrd, and one with the system.

All of it is written into one file at its offsets: no mount, no loop device, no copy of the system.  The layout is that
of the UEFI specification (a FAT partition of type EFI System, whose /EFI/BOOT/BOOTX64.EFI is started unasked), the boot
loader is systemd-boot with an entry of the Boot Loader Specification.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from vmimagemanager import process
from vmimagemanager.durable import translate_os_errors
from vmimagemanager.units import Size

TOOLS = {
    "sfdisk": "fdisk",
    "mkfs.vfat": "dosfstools",
    "mmd": "mtools",
    "mcopy": "mtools",
}
LOADER = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi"  # in the guest, from the archive it is installed from
LOADER_PACKAGE = "systemd-boot-efi"
PARTITION = 2  # the one with the system
SYSTEM_OFFSET = Size(257 << 20)

_LIMIT = timedelta(minutes=2)
_LOADER_OFFSET = Size(1 << 20)
_LOADER_SIZE = Size(SYSTEM_OFFSET.bytes - _LOADER_OFFSET.bytes)
_TAIL = Size(1 << 20)  # for the second copy of the partition table
_SECTOR = 512
IDENTITIES = ("disk", "loader partition", "system partition")
_TABLE = """\
label: gpt
label-id: {identities[0]}
unit: sectors
start={loader}, size={loader_size}, type=uefi, name=loader, uuid={identities[1]}
start={system}, size={system_size}, type=linux, name=system, uuid={identities[2]}
"""
_SETTINGS = "timeout 0\neditor no\n"
_ENTRY = """\
title Linux
linux /vmlinuz
initrd /initrd
options {command_line}
"""


def make(disk: Path, system: Size, *, identities: Sequence[str]) -> None:
    """Make ``disk`` a new raw file with both partitions, in which a file system of size ``system`` has its place.

    ``identities`` are the UUIDs of what `IDENTITIES` names.  Raises ToolError or SpaceError; what was written is to be
    removed then.
    """
    with translate_os_errors("write", disk), disk.open("wb") as stream:
        stream.truncate(SYSTEM_OFFSET.bytes + system.bytes + _TAIL.bytes)
    table = _TABLE.format(
        identities=identities,
        loader=_sectors(_LOADER_OFFSET),
        loader_size=_sectors(_LOADER_SIZE),
        system=_sectors(SYSTEM_OFFSET),
        system_size=_sectors(system),
    )
    process.run([_tool("sfdisk"), "--quiet", disk], stdin=table.encode(), limit=_LIMIT)


def install_loader(disk: Path, stage: Path, files: Mapping[str, Path], *, command_line: str, epoch: int) -> None:
    """Fill the first partition of a disk that `make` made with the ``files`` kernel, initrd and loader.

    ``stage`` is for files in between, ``epoch`` is the time of all that is in the partition.  Raises ToolError.
    """
    settings, entry = stage / "loader.conf", stage / "linux.conf"
    with translate_os_errors("write", settings):
        settings.write_text(_SETTINGS)
        entry.write_text(_ENTRY.format(command_line=command_line))
    start = ["--invariant", "-F", "32", "-s", "1", "-S", str(_SECTOR), f"--offset={_sectors(_LOADER_OFFSET)}"]
    process.run([_tool("mkfs.vfat"), *start, disk, str(_LOADER_SIZE.bytes // 1024)], limit=_LIMIT)
    at = f"{disk}@@{_LOADER_OFFSET.bytes}"
    environment = {"SOURCE_DATE_EPOCH": str(epoch), "TZ": "UTC"}
    folders = ["::/EFI", "::/EFI/BOOT", "::/loader", "::/loader/entries"]
    process.run([_tool("mmd"), "-i", at, *folders], environment=environment, limit=_LIMIT)
    for source, target in (
        (files["loader"], "/EFI/BOOT/BOOTX64.EFI"),
        (settings, "/loader/loader.conf"),
        (entry, "/loader/entries/linux.conf"),
        (files["kernel"], "/vmlinuz"),
        (files["initrd"], "/initrd"),
    ):
        process.run([_tool("mcopy"), "-i", at, source, f"::{target}"], environment=environment, limit=_LIMIT)


def _tool(program: str) -> Path:
    return process.require(program, package=TOOLS[program])


def _sectors(size: Size) -> int:
    return size.bytes // _SECTOR
