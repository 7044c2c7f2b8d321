"""QEMU's own options in a domain, two words each: what libvirt has no word for.

See https://libvirt.org/drvqemu.html#pass-through-of-arbitrary-qemu-commands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from lxml import etree

if TYPE_CHECKING:
    from vmimagemanager.hypervisor.xmltree import Element

QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"


def add(root: Element, option: str, value: str) -> None:
    """Append an option to the domain's, in place."""
    line = root.find(f"{{{QEMU}}}commandline")
    if line is None:
        line = etree.SubElement(root, f"{{{QEMU}}}commandline", nsmap={"qemu": QEMU})
    for argument in (option, value):
        etree.SubElement(line, f"{{{QEMU}}}arg", value=argument)


def remove(root: Element, ours: Callable[[str, str], bool]) -> None:
    """Take the options for which ``ours`` holds out of the domain, in place."""
    line = root.find(f"{{{QEMU}}}commandline")
    if line is None:
        return
    for option, value in pairwise(line.findall(f"{{{QEMU}}}arg")):
        if ours(option.get("value", ""), value.get("value", "")):
            line.remove(option)
            line.remove(value)
    if len(line) == 0:
        root.remove(line)


def values(root: Element) -> Iterator[str]:
    """Yield the words of all options."""
    return (one.get("value", "") for one in root.iterfind(f"{{{QEMU}}}commandline/{{{QEMU}}}arg"))


def parsed(argument: str) -> dict[str, str]:
    """Return what ``key=value,key=value`` says; a comma inside a value is doubled."""
    pairs = (pair.partition("=") for pair in argument.replace(",,", "\0").split(","))
    return {key: value.replace("\0", ",") for key, _, value in pairs}
