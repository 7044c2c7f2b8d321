"""The guest's RAM as a file, in QEMU's own arguments: libvirt has no word for a file of ours, nor for its sharing.

The syntax is QEMU's (qemu(1), -object memory-backend-file); a comma inside a value is doubled.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmimagemanager.hypervisor import qemuline
from vmimagemanager.units import Size

if TYPE_CHECKING:
    from vmimagemanager.hypervisor.xmltree import Element

_ID = "vmim-ram"
_BACKEND = f"memory-backend-file,id={_ID},"
_OTHERS = (("-machine", f"memory-backend={_ID}"), ("-incoming", "defer"))


@dataclass(frozen=True, slots=True, kw_only=True)
class RamFile:
    """The guest's RAM as a file; ``shared`` writes go to the file, otherwise they stay private to this guest."""

    path: Path
    size: Size
    shared: bool


def add(root: Element, ram: RamFile, *, incoming: bool) -> None:
    """Put the domain's RAM into a file, in place; with ``incoming`` the guest waits for a migration stream."""
    sharing = "on" if ram.shared else "off"
    backend = f"{_BACKEND}mem-path={str(ram.path).replace(',', ',,')},size={ram.size.bytes},share={sharing}"
    for option, value in (("-object", backend), *_OTHERS[: 2 if incoming else 1]):
        qemuline.add(root, option, value)


def remove(root: Element) -> None:
    """Take what `add` added out of the domain again, in place."""
    qemuline.remove(root, lambda option, value: value.startswith(_BACKEND) or (option, value) in _OTHERS)


def find(root: Element) -> RamFile | None:
    """Return the file that the domain's RAM is in, if it is in one of ours."""
    for argument in qemuline.values(root):
        if argument.startswith(_BACKEND):
            options = qemuline.parsed(argument)
            return RamFile(
                path=Path(options["mem-path"]), size=Size(int(options["size"])), shared=options["share"] == "on"
            )
    return None
