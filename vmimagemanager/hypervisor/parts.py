"""Our parts of every domain, laid over whatever it was built from: name, disk, network, console, channels, metadata."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """What the domain boots directly; without a kernel, its disk's boot loader."""

    kernel: Path | None = None
    initrd: Path | None = None
    command_line: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What is ours in every domain, and is laid over whatever the domain was built from.

    Without a folder for the ``sockets`` of its channels libvirt chooses where they lie.
    """

    name: str
    uuid: str
    state_directory: Path
    disk: Path
    console_log: Path
    mac: str
    network: str
    boot: Boot
    sockets: Path | None = None


def lay_over(root: Element, parts: Parts) -> None:
    """Lay our parts over the domain ``root``, in place; raise ConfigError where they do not fit."""
    for tag, text in (("name", parts.name), ("uuid", parts.uuid)):
        replace(root, tag, text)
    _lay_metadata(root, parts)
    _lay_boot(root, parts.boot)
    devices = root.find("devices")
    if devices is None:
        devices = child(root, "devices")
    _lay_disk(devices, parts.disk)
    _lay_network(devices, parts)
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


def _lay_disk(devices: Element, disk: Path) -> None:
    existing = [one for one in devices.iterfind("disk") if one.get("device", "disk") == "disk"]
    if existing:
        ours = existing[0]
        for tag in ("source", "driver", "backingStore", "readonly", "shareable", "transient", "auth"):
            for old in ours.findall(tag):
                ours.remove(old)
    else:
        ours = child(devices, "disk", device="disk")
        child(ours, "target", dev="vda", bus="virtio")
    ours.set("type", "file")
    # A test box is thrown away, not recovered after a power cut: the host's page cache is safe enough, and fastest.
    ours.insert(0, element("driver", name="qemu", type="qcow2", cache="unsafe", discard="unmap"))
    ours.insert(1, element("source", file=str(disk)))


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
