"""Domain XML: built, read and transformed, always with lxml, never by formatting text.

Foreign input (a user's XML, a site's XSLT) is parsed without entities, without the network, and transformed without
access to files.  The vocabulary is libvirt's: https://libvirt.org/formatdomain.html; what libvirt has no word for goes
through its QEMU namespace: https://libvirt.org/drvqemu.html#pass-through-of-arbitrary-qemu-commands.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from lxml import etree

from vmimagemanager.errors import ConfigError
from vmimagemanager.hypervisor.accelerator import Accelerator
from vmimagemanager.units import Size

if TYPE_CHECKING:
    Element = etree._Element

QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
OURS = "https://vmimagemanager/domain/1"
_XSLT = "http://www.w3.org/1999/XSL/Transform"
FORMAT = 1
RAM_ID = "vmim-ram"
AGENT_CHANNEL = "org.qemu.guest_agent.0"
# Skips some 400 monitor round trips at each start (0.2 s): libvirt then asks for the CPU's properties in one old query.
SLOW_CPU_QUERY = "cpu-unavailable-features"
_OUR_ARGUMENTS = (("-machine", f"memory-backend={RAM_ID}"), ("-incoming", "defer"))
_AGENT = f"devices/channel/target[@name='{AGENT_CHANNEL}']/.."
_MEMORY_UNITS = {"b": 1, "bytes": 1} | {  # libvirt takes them in any case
    f"{letter}{ending}": base**power
    for power, letter in enumerate("kmgtpe", 1)
    for ending, base in (("", 1024), ("ib", 1024), ("b", 1000))
}
_PORTS = 10  # one for each device, and some to plug into a running guest


@dataclass(frozen=True, slots=True, kw_only=True)
class Ownership:
    """What our metadata element says of a domain: whose box it is."""

    box: str
    state_directory: str
    format: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RamFile:
    """The guest's RAM as a file; ``shared`` writes go to the file, otherwise they stay private to this guest."""

    path: Path
    size: Size
    shared: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """What the domain boots directly; without a kernel, its disk's boot loader."""

    kernel: Path | None = None
    initrd: Path | None = None
    command_line: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What is ours in every domain, and is laid over whatever the domain was built from.

    Without an ``agent_socket`` libvirt chooses where the agent's socket lies.
    """

    name: str
    uuid: str
    state_directory: Path
    disk: Path
    console_log: Path
    mac: str
    network: str
    boot: Boot
    agent_socket: Path | None = None


class DomainXml:
    """A domain's description as a tree that is never changed in place: each step returns a new one."""

    def __init__(self, root: Element) -> None:
        self._root = root

    # -- sources ---------------------------------------------------------------------------------------------------

    @classmethod
    def parse(cls, text: str | bytes, *, source: str) -> DomainXml:
        """Parse a ``<domain>``; raise ConfigError that names ``source`` when it is not one or uses entities."""
        root = _parse(text, source=source)
        if root.tag != "domain":
            raise ConfigError(f"{source} is not libvirt domain XML: expected <domain>, found <{root.tag!s}>.")
        return cls(root)

    @classmethod
    def read(cls, path: Path) -> DomainXml:
        """Parse a user's file."""
        return cls.parse(read_file(path), source=f"'{path}'")

    @classmethod
    def plain(cls, *, ram: Size, cpus: int, accelerator: Accelerator) -> DomainXml:
        """Return the domain that a box gets when its owner gives no XML: q35, virtio, one serial console."""
        root = etree.Element("domain", type="kvm" if accelerator is Accelerator.KVM else "qemu")
        _child(root, "memory", str(ram.bytes // 1024), unit="KiB")
        _child(root, "vcpu", str(cpus))
        system = _child(root, "os")
        _child(system, "type", "hvm", arch="x86_64", machine="q35")
        features = _child(root, "features")
        _child(features, "acpi")
        _child(features, "apic")
        if accelerator is Accelerator.KVM:
            _child(root, "cpu", mode="host-passthrough", check="none", migratable="on")
        else:
            cpu = _child(root, "cpu", mode="custom", match="exact", check="none")
            _child(cpu, "model", "qemu64", fallback="forbid")
            # Or the guest's kernel loads KVM at its boot, to nobody's use: 4 to 6 s under emulation.
            _child(cpu, "feature", policy="disable", name="svm")
        _child(root, "clock", offset="utc")
        _child(root, "on_poweroff", "destroy")
        _child(root, "on_reboot", "restart")
        _child(root, "on_crash", "preserve")
        devices = _child(root, "devices")
        _child(devices, "controller", type="usb", model="none")
        _child(devices, "controller", type="pci", index="0", model="pcie-root")
        for index in range(1, _PORTS + 1):
            _child(devices, "controller", type="pci", index=str(index), model="pcie-root-port")
        _child(_child(devices, "rng", model="virtio"), "backend", "/dev/urandom", model="random")
        _child(devices, "memballoon", model="none")
        return cls(root)

    # -- steps -----------------------------------------------------------------------------------------------------

    def transformed(self, stylesheet: Path) -> DomainXml:
        """Apply a site's XSLT, which may read and write nothing but the tree; raise ConfigError when it fails."""
        program = _parse(read_file(stylesheet), source=f"'{stylesheet}'")
        # libxslt reads these while it compiles, before any access control is asked.
        if any(True for _ in program.iter(f"{{{_XSLT}}}include", f"{{{_XSLT}}}import")):
            raise ConfigError(f"The stylesheet '{stylesheet}' includes or imports another file: expected one file.")
        try:
            transform = etree.XSLT(program, access_control=etree.XSLTAccessControl.DENY_ALL)
            root: Element | None = transform(copy.deepcopy(self._root)).getroot()
        except etree.LxmlError as error:
            said = str(error).strip().rstrip(".")
            raise ConfigError(f"The stylesheet '{stylesheet}' could not be applied: {said}.") from error
        if root is None or root.tag != "domain":  # the result was text, or nothing
            raise ConfigError(f"The stylesheet '{stylesheet}' did not return a <domain>.")
        return DomainXml(root)

    def with_parts(self, parts: Parts) -> DomainXml:
        """Lay our name, disk, network, console, agent channel and metadata over the domain."""
        root = self._copy()
        for tag, text in (("name", parts.name), ("uuid", parts.uuid)):
            _replace(root, tag, text)
        _lay_metadata(root, parts)
        _lay_boot(root, parts.boot)
        devices = root.find("devices")
        if devices is None:
            devices = _child(root, "devices")
        _lay_disk(devices, parts.disk)
        _lay_network(devices, parts)
        _lay_console(devices, parts.console_log)
        _lay_agent(devices, parts.agent_socket)
        return DomainXml(root)

    def with_owner(self, owner: tuple[int, int] | None) -> DomainXml:
        """Let libvirt run QEMU as ``owner`` without giving it the files of the whole backing chain.

        By default libvirt's DAC driver hands every file that a domain names to QEMU's user and does not take the shared
        ones back: an image would belong to whoever breaks out of a guest.  We hand over what the guest may write.
        """
        root = self._copy()
        if owner is not None and root.find("seclabel[@model='dac']") is None:
            label = _child(root, "seclabel", type="static", model="dac", relabel="no")
            _child(label, "label", f"+{owner[0]}:+{owner[1]}")
        return DomainXml(root)

    def with_ram_file(self, ram: RamFile | None, *, incoming: bool = False) -> DomainXml:
        """Put the RAM into a file (or no longer), waiting for a migration stream when ``incoming``."""
        root = self._copy()
        _remove_our_arguments(root)
        if ram is not None:
            sharing = "on" if ram.shared else "off"
            backend = f"memory-backend-file,id={RAM_ID},mem-path={_escaped(ram.path)},size={ram.size.bytes}"
            arguments = ["-object", f"{backend},share={sharing}", "-machine", f"memory-backend={RAM_ID}"]
            if incoming:
                arguments += ["-incoming", "defer"]
            line = root.find(f"{{{QEMU}}}commandline")
            if line is None:
                line = etree.SubElement(root, f"{{{QEMU}}}commandline", nsmap={"qemu": QEMU})
            for argument in arguments:
                etree.SubElement(line, f"{{{QEMU}}}arg", value=argument)
        return DomainXml(root)

    def without_runtime_parts(self) -> DomainXml:
        """Drop what libvirt adds to a running domain and would refuse or misread in a definition."""
        root = self._copy()
        root.attrib.pop("id", None)
        for disk in root.iterfind("devices/disk"):
            for chain in disk.findall("backingStore"):
                disk.remove(chain)
        return DomainXml(root)

    def with_quick_start(self) -> DomainXml:
        """Ask libvirt for its old, quick query of the CPU at each start (see `SLOW_CPU_QUERY`)."""
        root = self._copy()
        capabilities = root.find(f"{{{QEMU}}}capabilities")
        if capabilities is None:
            capabilities = etree.SubElement(root, f"{{{QEMU}}}capabilities", nsmap={"qemu": QEMU})
        if not any(one.get("capability") == SLOW_CPU_QUERY for one in capabilities):
            etree.SubElement(capabilities, f"{{{QEMU}}}del", capability=SLOW_CPU_QUERY)
        return DomainXml(root)

    # -- what it says ----------------------------------------------------------------------------------------------

    @property
    def ownership(self) -> Ownership | None:
        """Return what our metadata says, or None for a foreign domain."""
        element = self._root.find(f"metadata/{{{OURS}}}box")
        if element is None:
            return None
        return Ownership(
            box=element.get("name", ""),
            state_directory=element.get("state-directory", ""),
            format=int(number) if (number := element.get("format", "")).isdecimal() else 0,
        )

    @property
    def ram(self) -> Size:
        element = self._root.find("memory")
        if element is None or element.text is None:
            raise ConfigError("The domain XML does not say how much memory the guest has: expected <memory>.")
        number, unit = element.text.strip(), element.get("unit", "KiB")
        factor = _MEMORY_UNITS.get(unit.lower())
        if factor is None or not number.isdecimal():
            raise ConfigError(f"The domain XML says that the guest has '{number} {unit}' of memory, which is no size.")
        return Size(int(number) * factor)

    @property
    def ram_file(self) -> RamFile | None:
        """Return the file that the guest's RAM is in, if it is in one of ours."""
        arguments = [one.get("value", "") for one in self._root.iterfind(f"{{{QEMU}}}commandline/{{{QEMU}}}arg")]
        for argument in arguments:
            if argument.startswith(f"memory-backend-file,id={RAM_ID},"):
                options = _options(argument)
                return RamFile(
                    path=Path(options["mem-path"]), size=Size(int(options["size"])), shared=options["share"] == "on"
                )
        return None

    @property
    def machine(self) -> str:
        element = self._root.find("os/type")
        return "" if element is None else element.get("machine", "")

    @property
    def uuid(self) -> str:
        return self._root.findtext("uuid", "")

    @property
    def uses_kvm(self) -> bool:
        return self._root.get("type") == "kvm"

    @property
    def mac(self) -> str | None:
        """Return the MAC address of the first network interface, or None."""
        element = self._root.find("devices/interface/mac")
        return None if element is None else element.get("address")

    @property
    def network(self) -> str | None:
        """Return the first interface's network in the setting's words, or None where it has no word for it."""
        interface = self._root.find("devices/interface")
        if interface is None:
            return "none"
        if interface.get("type") == "user":
            return "user"
        source = interface.find("source")
        if interface.get("type") == "network" and source is not None:
            return f"libvirt:{source.get('network', '')}"
        return None

    @property
    def user_network_device(self) -> str | None:
        """Return QEMU's name of the first user-mode network of a running domain, or None."""
        alias = self._root.find("devices/interface[@type='user']/alias")
        return None if alias is None else f"host{alias.get('name', '')}"

    @property
    def agent_socket(self) -> Path | None:
        """Return where the definition itself puts the agent's socket, or None."""
        source = self._root.find(f"{_AGENT}/source[@path]")
        return None if source is None else Path(source.get("path", ""))

    def disks(self) -> tuple[Path, ...]:
        """Return the files of all disks that are not CD-ROMs or floppies, in their order."""
        return tuple(
            Path(source.get("file", ""))
            for disk in self._root.iterfind("devices/disk")
            if disk.get("device", "disk") == "disk" and (source := disk.find("source")) is not None
        )

    @property
    def boot_files(self) -> tuple[Path, ...]:
        """Return the kernel and the initrd that the domain boots directly, where it does."""
        found = (self._root.findtext(f"os/{tag}") for tag in ("kernel", "initrd"))
        return tuple(Path(text) for text in found if text)

    def text(self) -> str:
        etree.cleanup_namespaces(self._root)
        return etree.tostring(self._root, pretty_print=True, encoding="unicode")

    def _copy(self) -> Element:
        return copy.deepcopy(self._root)


def read_file(path: Path) -> bytes:
    """Return a user's file; raise ConfigError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be read: {error.strerror}.") from error


# -- parsing -------------------------------------------------------------------------------------------------------


def _parse(text: str | bytes, *, source: str) -> Element:
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, dtd_validation=False, remove_blank_text=True
    )
    try:
        root = etree.fromstring(text, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise ConfigError(f"{source} is not XML: {error}.") from error
    if root.getroottree().docinfo.internalDTD is not None or any(True for _ in root.iter(etree.Entity)):
        raise ConfigError(f"{source} has a document type or entities, which are refused: expected plain elements.")
    return root


# -- laying our parts over -----------------------------------------------------------------------------------------


def _lay_metadata(root: Element, parts: Parts) -> None:
    metadata = root.find("metadata")
    if metadata is None:
        metadata = _child(root, "metadata")
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
        _replace(system, tag, str(text) if text else None)


def _lay_disk(devices: Element, disk: Path) -> None:
    existing = [one for one in devices.iterfind("disk") if one.get("device", "disk") == "disk"]
    if existing:
        ours = existing[0]
        for tag in ("source", "driver", "backingStore", "readonly", "shareable", "transient", "auth"):
            for old in ours.findall(tag):
                ours.remove(old)
    else:
        ours = _child(devices, "disk", device="disk")
        _child(ours, "target", dev="vda", bus="virtio")
    ours.set("type", "file")
    # A test box is thrown away, not recovered after a power cut: the host's page cache is safe enough, and fastest.
    ours.insert(0, _element("driver", name="qemu", type="qcow2", cache="unsafe", discard="unmap"))
    ours.insert(1, _element("source", file=str(disk)))


def _lay_network(devices: Element, parts: Parts) -> None:
    existing = devices.findall("interface")
    if parts.network == "none":
        for one in existing:
            devices.remove(one)
        return
    ours = existing[0] if existing else _child(devices, "interface")
    model = ours.find("model")
    kind = "virtio" if model is None else model.get("type", "virtio")
    for child in list(ours):
        if child.tag not in ("address", "boot"):
            ours.remove(child)
    ours.attrib.clear()
    _child(ours, "mac", address=parts.mac)
    if parts.network == "user":
        ours.set("type", "user")
    else:
        ours.set("type", "network")
        _child(ours, "source", network=parts.network.removeprefix("libvirt:"))
    _child(ours, "model", type=kind)


def _lay_console(devices: Element, log: Path) -> None:
    serial = devices.find("serial")
    if serial is None:
        serial = _child(devices, "serial", type="pty")
        _child(serial, "target", port="0")
    for old in serial.findall("log"):
        serial.remove(old)
    _child(serial, "log", file=str(log), append="on")


def _lay_agent(devices: Element, socket: Path | None) -> None:
    channel = devices.find(_AGENT.removeprefix("devices/"))
    if channel is None:
        channel = _child(devices, "channel", type="unix")
        _child(channel, "target", type="virtio", name=AGENT_CHANNEL)
    if socket is not None and channel.get("type") == "unix" and channel.find("source") is None:
        channel.insert(0, _element("source", mode="bind", path=str(socket)))


def _remove_our_arguments(root: Element) -> None:
    line = root.find(f"{{{QEMU}}}commandline")
    if line is None:
        return
    arguments = line.findall(f"{{{QEMU}}}arg")
    for option, value in pairwise(arguments):
        pair = (option.get("value", ""), value.get("value", ""))
        is_ours = pair[1].startswith(f"memory-backend-file,id={RAM_ID},") or pair in _OUR_ARGUMENTS
        if is_ours:
            line.remove(option)
            line.remove(value)
    if len(line) == 0:
        root.remove(line)


# -- small change --------------------------------------------------------------------------------------------------


def _element(tag: str, text: str | None = None, **attributes: str) -> Element:
    element = etree.Element(tag, attrib=attributes)
    element.text = text
    return element


def _child(parent: Element, tag: str, text: str | None = None, **attributes: str) -> Element:
    element = _element(tag, text, **attributes)
    parent.append(element)
    return element


def _replace(parent: Element, tag: str, text: str | None) -> None:
    for old in parent.findall(tag):
        parent.remove(old)
    if text is not None:
        _child(parent, tag, text)


def _escaped(path: Path) -> str:
    # QEMU's option syntax doubles a comma inside a value.
    return str(path).replace(",", ",,")


def _options(argument: str) -> dict[str, str]:
    pairs = argument.replace(",,", "\0").split(",")
    return dict(_split_pairs(pairs))


def _split_pairs(pairs: Sequence[str]) -> Iterator[tuple[str, str]]:
    for pair in pairs:
        key, _, value = pair.partition("=")
        yield key, value.replace("\0", ",")
