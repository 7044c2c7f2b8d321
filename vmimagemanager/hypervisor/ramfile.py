"""The guest's RAM as a file, in QEMU's own arguments: libvirt has no word for a file of ours, nor for its sharing.

The syntax is QEMU's (qemu(1), -object memory-backend-file); a comma inside a value is doubled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from lxml import etree

from vmimagemanager.units import Size

if TYPE_CHECKING:
    from vmimagemanager.hypervisor.xmltree import Element

QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
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
    line = root.find(f"{{{QEMU}}}commandline")
    if line is None:
        line = etree.SubElement(root, f"{{{QEMU}}}commandline", nsmap={"qemu": QEMU})
    for pair in (("-object", backend), *_OTHERS[: 2 if incoming else 1]):
        for argument in pair:
            etree.SubElement(line, f"{{{QEMU}}}arg", value=argument)


def remove(root: Element) -> None:
    """Take what `add` added out of the domain again, in place."""
    line = root.find(f"{{{QEMU}}}commandline")
    if line is None:
        return
    for option, value in pairwise(line.findall(f"{{{QEMU}}}arg")):
        pair = (option.get("value", ""), value.get("value", ""))
        if pair[1].startswith(_BACKEND) or pair in _OTHERS:
            line.remove(option)
            line.remove(value)
    if len(line) == 0:
        root.remove(line)


def find(root: Element) -> RamFile | None:
    """Return the file that the domain's RAM is in, if it is in one of ours."""
    for one in root.iterfind(f"{{{QEMU}}}commandline/{{{QEMU}}}arg"):
        argument = one.get("value", "")
        if argument.startswith(_BACKEND):
            options = dict(_options(argument))
            return RamFile(
                path=Path(options["mem-path"]), size=Size(int(options["size"])), shared=options["share"] == "on"
            )
    return None


def _options(argument: str) -> Iterator[tuple[str, str]]:
    for pair in argument.replace(",,", "\0").split(","):
        key, _, value = pair.partition("=")
        yield key, value.replace("\0", ",")
