"""Our parts of every domain, laid over whatever it was built from: name, disk, network, console, channels, metadata."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lxml import etree

from vmimagemanager.errors import ConfigError
from vmimagemanager.hypervisor.xmltree import child, element, replace

if TYPE_CHECKING:
    from vmimagemanager.hypervisor.xmltree import Element

OURS = "https://vmimagemanager/domain/1"
FORMAT = 1
AGENT_CHANNEL = "org.qemu.guest_agent.0"
WAITER_CHANNEL = "org.vmimagemanager.0"
TPM_SOCKET = "vmimagemanager-tpm"
SEED_SERIAL = "vmim-seed"
_SEED_TARGET = "vdaa"  # after all others, which keep the names that they have without it


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """What the domain boots directly; without a kernel, its disk's boot loader."""

    kernel: Path | None = None
    initrd: Path | None = None
    command_line: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What is ours in every domain, and is laid over whatever the domain was built from.

    ``disk`` becomes the first disk, and ``disks`` those of these names.  The variables of a UEFI firmware are kept in
    ``nvram``, and a software TPM listens at ``tpm_socket``.  A seed disk, where there is one, is ``seed``.  Without a
    folder for its channels' ``sockets`` libvirt chooses where they lie.
    """

    name: str
    uuid: str
    state_directory: Path
    disk: Path
    console_log: Path
    mac: str
    network: str
    boot: Boot
    disks: Mapping[str, Path] = field(default_factory=dict)
    nvram: Path | None = None
    tpm_socket: Path | None = None
    seed: Path | None = None
    sockets: Path | None = None


def lay_over(root: Element, parts: Parts) -> None:
    """Lay our parts over the domain ``root``, in place; raise ConfigError where they do not fit."""
    for tag, text in (("name", parts.name), ("uuid", parts.uuid)):
        replace(root, tag, text)
    _lay_metadata(root, parts)
    _lay_boot(root, parts.boot)
    if parts.nvram is not None:
        _lay_nvram(root, parts.nvram)
    devices = root.find("devices")
    if devices is None:
        devices = child(root, "devices")
    _lay_disks(devices, parts)
    found = seed_disk(root)
    if found is not None and parts.seed is not None:
        _lay_seed(found, parts.seed)
    _lay_network(devices, parts)
    if parts.tpm_socket is not None:
        _lay_tpm(devices, parts.tpm_socket)
    _lay_console(devices, parts.console_log)
    for name in (AGENT_CHANNEL, WAITER_CHANNEL):
        _lay_channel(devices, name, None if parts.sockets is None else parts.sockets / name)


def _lay_metadata(root: Element, parts: Parts) -> None:
    metadata = root.find("metadata")
    if metadata is None:
        metadata = child(root, "metadata")
    for old in metadata.findall(f"{{{OURS}}}box"):
        metadata.remove(old)
    box = etree.SubElement(metadata, f"{{{OURS}}}box", nsmap={"vmim": OURS})
    box.set("name", parts.name)
    box.set("state-directory", str(parts.state_directory))
    box.set("format", str(FORMAT))


def _lay_boot(root: Element, boot: Boot) -> None:
    if boot.kernel is None:
        return
    system = root.find("os")
    if system is None:
        raise ConfigError("The domain XML has no <os>: expected <os><type>hvm</type></os>.")
    for tag, text in (("kernel", boot.kernel), ("initrd", boot.initrd), ("cmdline", boot.command_line)):
        replace(system, tag, str(text) if text else None)


def _lay_nvram(root: Element, path: Path) -> None:
    system, loader = root.find("os"), root.find("os/loader")
    if system is None or (loader is not None and loader.get("stateless") == "yes"):
        return
    if system.get("firmware") != "efi" and (loader is None or loader.get("type") != "pflash"):
        return
    old = system.find("nvram")
    ours = child(system, "nvram", str(path))
    if old is not None:
        system.remove(old)
        if old.get("template") and system.get("firmware") != "efi":
            ours.set("template", old.get("template", ""))


def _lay_tpm(devices: Element, socket: Path) -> None:
    backend = devices.find("tpm/backend")
    if backend is None or backend.get("type") not in ("emulator", "external"):
        return
    source = backend.find("source")
    if backend.get("type") == "external" and Path("" if source is None else source.get("path", "")).name != TPM_SOCKET:
        return  # theirs, run by themselves
    if backend.get("version", "2.0") != "2.0" or backend.find("encryption") is not None:
        raise ConfigError("The TPM of the domain XML cannot be kept: expected version 2.0, without encryption.")
    tpm = backend.getparent()
    assert tpm is not None
    tpm.remove(backend)
    # libvirt's own emulator keeps its state where only root can copy it, and does not let QEMU in to it where it runs
    # QEMU under a static label.
    child(child(tpm, "backend", type="external"), "source", type="unix", mode="connect", path=str(socket))


def further_disks(root: Element) -> list[Element]:
    """Return the disks that a guest can write to, but for the first disk, which becomes ours whatever it is."""
    kinds = [(disk.get("device", "disk"), disk) for disk in root.iterfind("devices/disk")]
    first = next((disk for kind, disk in kinds if kind == "disk"), None)
    return [
        disk for kind, disk in kinds if kind in ("disk", "lun") and disk is not first and disk.find("readonly") is None
    ]


def add_disks(root: Element, files: Sequence[Path]) -> None:
    """Add a disk to the domain for each qcow2 file, under the first names that are free, in place."""
    devices = root.find("devices")
    if devices is None:
        devices = child(root, "devices")
    _first_disk(devices)
    taken = {target.get("dev") for target in root.iterfind("devices/disk/target")}
    free = (name for letter in string.ascii_lowercase if (name := f"vd{letter}") not in taken)
    for file, name in zip(files, free, strict=False):
        disk = child(devices, "disk", type="file", device="disk")
        child(disk, "driver", name="qemu", type="qcow2")
        child(disk, "source", file=str(file))
        child(disk, "target", dev=name, bus="virtio")


def add_seed(root: Element) -> None:
    """Add the read-only disk from which a cloud image learns who it is, unless there is one; `lay_over` names its file.

    It is a virtio disk and no CD-ROM: the kernels of some cloud images have no driver for one on SATA.
    """
    if seed_disk(root) is not None:
        return
    devices = root.find("devices")
    if devices is None:
        devices = child(root, "devices")
    _first_disk(devices)
    disk = child(devices, "disk", type="file", device="disk")
    child(disk, "driver", name="qemu", type="raw")
    child(disk, "target", dev=_SEED_TARGET, bus="virtio")
    child(disk, "readonly")
    child(disk, "serial", SEED_SERIAL)


def seed_disk(root: Element) -> Element | None:
    """Return the disk that `add_seed` added, or None."""
    return next((disk for disk in root.iterfind("devices/disk") if disk.findtext("serial") == SEED_SERIAL), None)


def _first_disk(devices: Element) -> Element:
    first = next((disk for disk in devices.iterfind("disk") if disk.get("device", "disk") == "disk"), None)
    if first is None:
        first = child(devices, "disk", device="disk")
        child(first, "target", dev="vda", bus="virtio")
    return first


def _lay_disks(devices: Element, parts: Parts) -> None:
    first = _first_disk(devices)
    _lay_disk(first, parts.disk)
    for disk in devices.iterfind("disk"):
        target = disk.find("target")
        name = "" if target is None else target.get("dev", "")
        if disk is not first and name in parts.disks:
            _lay_disk(disk, parts.disks[name])


def _lay_disk(ours: Element, disk: Path) -> None:
    for tag in ("source", "driver", "backingStore", "readonly", "shareable", "transient", "auth"):
        for old in ours.findall(tag):
            ours.remove(old)
    ours.set("type", "file")
    # A test box is thrown away, not recovered after a power cut: the host's page cache is safe enough, and fastest.
    ours.insert(0, element("driver", name="qemu", type="qcow2", cache="unsafe", discard="unmap"))
    ours.insert(1, element("source", file=str(disk)))


def _lay_seed(disk: Element, file: Path) -> None:
    for old in disk.findall("source"):
        disk.remove(old)
    disk.insert(1, element("source", file=str(file)))


def _lay_network(devices: Element, parts: Parts) -> None:
    existing = devices.findall("interface")
    if parts.network == "none":
        for one in existing:
            devices.remove(one)
        return
    ours = existing[0] if existing else child(devices, "interface")
    model = ours.find("model")
    kind = "virtio" if model is None else model.get("type", "virtio")
    for old in list(ours):
        if old.tag not in ("address", "boot"):
            ours.remove(old)
    ours.attrib.clear()
    child(ours, "mac", address=parts.mac)
    if parts.network == "user":
        ours.set("type", "user")
    else:
        ours.set("type", "network")
        child(ours, "source", network=parts.network.removeprefix("libvirt:"))
    child(ours, "model", type=kind)


def _lay_console(devices: Element, log: Path) -> None:
    serial = devices.find("serial")
    if serial is None:
        serial = child(devices, "serial", type="pty")
        child(serial, "target", port="0")
    for old in serial.findall("log"):
        serial.remove(old)
    child(serial, "log", file=str(log), append="on")


def _lay_channel(devices: Element, name: str, socket: Path | None) -> None:
    channel = devices.find(f"channel/target[@name='{name}']/..")
    if channel is None:
        channel = child(devices, "channel", type="unix")
        child(channel, "target", type="virtio", name=name)
    source = channel.find("source")
    if source is not None and Path(source.get("path", "")).name == name:  # ours, of the box that this one is a clone of
        channel.remove(source)
        source = None
    if socket is not None and channel.get("type") == "unix" and source is None:
        channel.insert(0, element("source", mode="bind", path=str(socket)))
