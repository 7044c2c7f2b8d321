"""Devices that QEMU may refuse to migrate, named as people know them.

QEMU says what blocks a migration in words of its own: by a mount tag, by the name of a device's state, by a driver.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmimagemanager.hypervisor.xmltree import Element


def describe(root: Element, blockers: Sequence[str]) -> tuple[str, ...]:
    """Return QEMU's ``blockers`` with the devices of the running domain that they speak of, in words for people."""
    devices = tuple(_devices(root))
    described = []
    for blocker in blockers:
        named = [name for name, word in devices if word.lower() in blocker.lower()]
        described.append(f"{' or '.join(dict.fromkeys(named))} ({blocker})" if named else blocker)
    return tuple(described)


def _devices(root: Element) -> Iterator[tuple[str, str]]:
    """Yield the devices that may block a migration, each with a word that QEMU uses of it."""
    for share in root.iterfind("devices/filesystem"):
        driver, target = share.find("driver"), share.find("target")
        tag = "" if target is None else target.get("dir", "")
        if driver is not None and driver.get("type") == "virtiofs":
            yield f"the file system share '{tag}' (virtiofs)", "vhost-user-fs"
        else:
            yield f"the file system share '{tag}' (9p)", f"'{tag}'"
    for memory in root.iterfind("devices/shmem"):
        yield f"the shared memory '{memory.get('name', '')}' (ivshmem)", "ivshmem"
    for device in root.iterfind("devices/hostdev"):
        kind = device.get("type", "")
        yield f"the host device {_address(device)} ({kind})", "usb-host" if kind == "usb" else "vfio"
    for card in root.iterfind("devices/interface"):
        if card.get("type") in ("hostdev", "vdpa"):
            yield f"the network card of the host ({card.get('type')})", "vdpa" if card.get("type") == "vdpa" else "vfio"
    if root.find("devices/tpm/backend[@type='passthrough']") is not None:
        yield "the host's TPM (passthrough)", "tpm"


def _address(device: Element) -> str:
    address = device.find("source/address")
    if address is not None and device.get("type") == "pci":
        domain, bus, slot, function = (
            address.get(key, "").removeprefix("0x") for key in ("domain", "bus", "slot", "function")
        )
        return f"{domain}:{bus}:{slot}.{function}"
    if address is not None:
        return address.get("uuid", "") or f"{address.get('bus', '')}:{address.get('device', '')}"
    identity = (device.find(f"source/{key}") for key in ("vendor", "product"))
    return ":".join(one.get("id", "").removeprefix("0x") for one in identity if one is not None)
