"""A disk that starts itself by BIOS firmware: GRUB in front of the first partition, which holds the whole system.

The firmware runs the disk's first sector, which reads GRUB's core from the sectors behind it, which reads its
configuration, the kernel and the initrd from the system's own file system.  A core that begins in the second sector is
where GRUB looks for it unless it is told another place, so that nothing has to be installed: both are written to their
offsets, and no mount, no loop device and no ``grub-install`` is needed.  The table is a DOS one, as the sectors behind
the first one hold the table itself in a GPT.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from vmimagemanager import process
from vmimagemanager.durable import translate_os_errors
from vmimagemanager.errors import ImageError
from vmimagemanager.images.layout import Entries, command_line
from vmimagemanager.units import Size

TOOLS = {"sfdisk": "fdisk", "grub-mkimage": "grub-common"}
MODULES = Path("/usr/lib/grub/i386-pc")
MODULES_PACKAGE = "grub-pc-bin"
IDENTITIES = ("disk",)
PARTITION = 1
SYSTEM_OFFSET = Size(1 << 20)

_LIMIT = timedelta(minutes=2)
_SECTOR = 512
_CODE = 440  # what follows in the first sector is the table of partitions
_CORE_AT = 0x5C  # in the first sector: where the core begins, as a number of sectors
_TABLE = """\
label: dos
label-id: 0x{identity:08x}
unit: sectors
start={start}, size={size}, type=83, bootable
"""
_WORDS = ("biosdisk", "part_msdos", "ext2", "normal", "test", "linux")
# Debian keeps links to the newest kernel in the root folder, Ubuntu in /boot: one installed later is what starts.
_CONFIGURATION = """\
if [ -e /vmlinuz ]; then
    linux /vmlinuz {command_line}
    initrd /initrd.img
else
    linux /boot/vmlinuz {command_line}
    initrd /boot/initrd.img
fi
boot
"""


def configuration() -> Entries:
    """Return what is to be laid into the system for the boot loader."""
    return {"boot/grub/grub.cfg": _CONFIGURATION.format(command_line=command_line(PARTITION))}


def make(disk: Path, system: Size, *, identities: Sequence[str]) -> None:
    """Make ``disk`` a new raw file with one partition, in which a file system of size ``system`` has its place.

    ``identities`` are the UUIDs of what `IDENTITIES` names.  Raises ToolError or SpaceError; what was written is to be
    removed then.
    """
    with translate_os_errors("write", disk), disk.open("wb") as stream:
        stream.truncate(SYSTEM_OFFSET.bytes + system.bytes)
    table = _TABLE.format(
        identity=int(identities[0][:8], 16),
        start=SYSTEM_OFFSET.bytes // _SECTOR,
        size=system.bytes // _SECTOR,
    )
    process.run(
        [process.require("sfdisk", package=TOOLS["sfdisk"]), "--quiet", disk], stdin=table.encode(), limit=_LIMIT
    )


def install_loader(disk: Path, stage: Path, *, modules: Path = MODULES) -> None:
    """Write the boot loader to a disk that `make` made; ``stage`` is for a file in between.

    Raises ToolError, and ImageError for a GRUB that begins in another way.
    """
    core = stage / "core.img"
    made: list[str | Path] = ["-O", "i386-pc", "-d", modules, "-p", f"(,msdos{PARTITION})/boot/grub", "-o", core]
    process.run([process.require("grub-mkimage", package=TOOLS["grub-mkimage"]), *made, *_WORDS], limit=_LIMIT)
    with translate_os_errors("write", disk):
        first, behind = (modules / "boot.img").read_bytes(), core.read_bytes()
        if struct.unpack_from("<Q", first, _CORE_AT) != (1,) or len(behind) > SYSTEM_OFFSET.bytes - _SECTOR:
            raise ImageError(f"The boot loader in '{modules}' is not understood: expected GRUB 2.")
        with disk.open("r+b") as stream:
            stream.write(first[:_CODE])
            stream.seek(_SECTOR)
            stream.write(behind)
