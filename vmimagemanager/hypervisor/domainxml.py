"""Domain XML: built, read and transformed, always with lxml, never by formatting text.

Foreign input (a user's XML, a site's XSLT) is parsed without entities, without the network, and transformed without
access to files.  The vocabulary is libvirt's: https://libvirt.org/formatdomain.html; what libvirt has no word for goes
through its QEMU namespace: https://libvirt.org/drvqemu.html#pass-through-of-arbitrary-qemu-commands.
"""

from __future__ import annotations

import copy
import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lxml import etree

from vmimagemanager.errors import ConfigError
from vmimagemanager.hypervisor import lancard, ramfile, unmovable, xmltree
from vmimagemanager.hypervisor.accelerator import Accelerator
from vmimagemanager.hypervisor.lancard import LanCard
from vmimagemanager.hypervisor.parts import (
    OURS,
    TPM_SOCKET,
    Boot,
    Parts,
    add_disks,
    add_seed,
    further_disks,
    lay_over,
    seed_disk,
)
from vmimagemanager.hypervisor.qemuline import QEMU
from vmimagemanager.hypervisor.ramfile import RamFile
from vmimagemanager.hypervisor.xmltree import child, replace
from vmimagemanager.units import Size

if TYPE_CHECKING:
    from vmimagemanager.hypervisor.xmltree import Element

_XSLT = "http://www.w3.org/1999/XSL/Transform"
# Skips some 400 monitor round trips at each start (0.2 s): libvirt then asks for the CPU's properties in one old query.
SLOW_CPU_QUERY = "cpu-unavailable-features"
_MEMORY_UNITS = {"b": 1, "bytes": 1} | {  # libvirt takes them in any case
    f"{letter}{ending}": base**power
    for power, letter in enumerate("kmgtpe", 1)
    for ending, base in (("", 1024), ("ib", 1024), ("b", 1000))
}
_NOT_LAYOUT = (
    *("name", "uuid", "title", "description", "metadata", "seclabel", "os/cmdline", f"{{{QEMU}}}capabilities"),
    *("on_poweroff", "on_reboot", "on_crash", "devices/emulator", "devices/graphics", "devices/interface/mac"),
    *("devices/*/source", "devices/*/log", "devices/*/alias", "devices/*/backingStore", "devices/*/backend"),
)
_CONTENT_IS_NOT_LAYOUT = ("genid", "os/kernel", "os/initrd", "os/nvram")
_PORTS = 10  # one for each device, and some to plug into a running guest


@dataclass(frozen=True, slots=True, kw_only=True)
class Ownership:
    """What our metadata element says of a domain: whose box it is."""

    box: str
    state_directory: str
    format: int


class DomainXml:
    """A domain's description as a tree that is never changed in place: each step returns a new one."""

    def __init__(self, root: Element) -> None:
        self._root = root

    # -- sources ---------------------------------------------------------------------------------------------------

    @classmethod
    def parse(cls, text: str | bytes, *, source: str) -> DomainXml:
        """Parse a ``<domain>``; raise ConfigError that names ``source`` when it is not one or uses entities."""
        root = xmltree.parse(text, source=source)
        if root.tag != "domain":
            raise ConfigError(f"{source} is not libvirt domain XML: expected <domain>, found <{root.tag!s}>.")
        return cls(root)

    @classmethod
    def read(cls, path: Path) -> DomainXml:
        """Parse a user's file."""
        return cls.parse(xmltree.read_file(path), source=f"'{path}'")

    @classmethod
    def plain(cls, *, ram: Size, cpus: int, accelerator: Accelerator) -> DomainXml:
        """Return the domain that a box gets when its owner gives no XML: q35, virtio, one serial console."""
        root = etree.Element("domain", type="kvm" if accelerator is Accelerator.KVM else "qemu")
        child(root, "memory", str(ram.bytes // 1024), unit="KiB")
        child(root, "vcpu", str(cpus))
        system = child(root, "os")
        child(system, "type", "hvm", arch="x86_64", machine="q35")
        features = child(root, "features")
        child(features, "acpi")
        child(features, "apic")
        if accelerator is Accelerator.KVM:
            child(root, "cpu", mode="host-passthrough", check="none", migratable="on")
        else:
            cpu = child(root, "cpu", mode="custom", match="exact", check="none")
            child(cpu, "model", "qemu64", fallback="forbid")
            # Or the guest's kernel loads KVM at its boot, to nobody's use: 4 to 6 s under emulation.
            child(cpu, "feature", policy="disable", name="svm")
        child(root, "genid")
        child(root, "clock", offset="utc")
        child(root, "on_poweroff", "destroy")
        child(root, "on_reboot", "restart")
        child(root, "on_crash", "preserve")
        devices = child(root, "devices")
        child(devices, "controller", type="usb", model="none")
        child(devices, "controller", type="pci", index="0", model="pcie-root")
        for index in range(1, _PORTS + 1):
            child(devices, "controller", type="pci", index=str(index), model="pcie-root-port")
        child(child(devices, "rng", model="virtio"), "backend", "/dev/urandom", model="random")
        child(devices, "memballoon", model="none")
        return cls(root)

    # -- steps -----------------------------------------------------------------------------------------------------

    def transformed(self, stylesheet: Path) -> DomainXml:
        """Apply a site's XSLT, which may read and write nothing but the tree; raise ConfigError when it fails."""
        program = xmltree.parse(xmltree.read_file(stylesheet), source=f"'{stylesheet}'")
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
        """Lay our name, disk, network, console, channels and metadata over the domain."""
        root = self._copy()
        lay_over(root, parts)
        return DomainXml(root)

    def with_disks(self, files: Sequence[Path]) -> DomainXml:
        """Add disks, which are qcow2 files, under the first names that are free."""
        root = self._copy()
        add_disks(root, files)
        return DomainXml(root)

    def with_seed(self) -> DomainXml:
        """Add the disk from which a cloud image learns who it is."""
        root = self._copy()
        add_seed(root)
        return DomainXml(root)

    def with_uefi(self) -> DomainXml:
        """Start the guest by a UEFI firmware that libvirt chooses, unless its XML chooses a firmware itself."""
        root = self._copy()
        system = root.find("os")
        if system is not None and "firmware" not in system.attrib and system.find("loader") is None:
            system.set("firmware", "efi")
            # Secure Boot would refuse a kernel that is booted directly.
            child(child(system, "firmware"), "feature", name="secure-boot", enabled="no")
        return DomainXml(root)

    def with_tpm(self) -> DomainXml:
        """Give the guest a software TPM, unless it has a TPM."""
        root = self._copy()
        devices = root.find("devices")
        if devices is not None and devices.find("tpm") is None:
            child(child(devices, "tpm", model="tpm-crb"), "backend", type="emulator", version="2.0")
        return DomainXml(root)

    def with_owner(self, owner: tuple[int, int] | None) -> DomainXml:
        """Let libvirt run QEMU as ``owner`` without giving it the files of the whole backing chain.

        By default libvirt's DAC driver hands every file that a domain names to QEMU's user and does not take the shared
        ones back: an image would belong to whoever breaks out of a guest.  We hand over what the guest may write.
        """
        root = self._copy()
        if owner is not None and root.find("seclabel[@model='dac']") is None:
            label = child(root, "seclabel", type="static", model="dac", relabel="no")
            child(label, "label", f"+{owner[0]}:+{owner[1]}")
        return DomainXml(root)

    def with_ram_file(self, ram: RamFile | None, *, incoming: bool = False) -> DomainXml:
        """Put the RAM into a file (or no longer), waiting for a migration stream when ``incoming``."""
        root = self._copy()
        ramfile.remove(root)
        if ram is not None:
            ramfile.add(root, ram, incoming=incoming)
        return DomainXml(root)

    def with_lan_card(self, card: LanCard | None) -> DomainXml:
        """Give the domain a card in a common network of clones from its start on, or no longer."""
        root = self._copy()
        lancard.remove(root)
        if card is not None:
            lancard.add(root, card)
        return DomainXml(root)

    def without_runtime_parts(self) -> DomainXml:
        """Drop what libvirt adds to a running domain and would refuse or misread in a definition."""
        root = self._copy()
        root.attrib.pop("id", None)
        for disk in root.iterfind("devices/disk"):
            for chain in disk.findall("backingStore"):
                disk.remove(chain)
        return DomainXml(root)

    def without_host(self) -> DomainXml:
        """Drop what binds a definition to the host that it comes from: emulator, users, the place of the RAM."""
        root = self._copy()
        ramfile.remove(root)
        for path in ("seclabel", "devices/emulator", "metadata"):
            for one in root.findall(path):
                parent = one.getparent()
                if parent is not None:
                    parent.remove(one)
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

    def with_new_generation(self) -> DomainXml:
        """Give the guest a new generation id, where it has one: it is not the machine that it was before."""
        root = self._copy()
        if root.find("genid") is not None:
            replace(root, "genid", str(uuid.uuid4()))
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
        return ramfile.find(self._root)

    @property
    def lan_card(self) -> LanCard | None:
        """Return the card in a common network of clones that the domain has from its start on, or None."""
        return lancard.find(self._root)

    @property
    def free_pci_port(self) -> str | None:
        """Return a PCIe port in which there is no device, or None."""
        return lancard.free_pci_port(self._root)

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
    def virtualization(self) -> str:
        """Return what runs the guest's instructions: ``kvm`` or ``tcg``."""
        return (Accelerator.KVM if self.uses_kvm else Accelerator.TCG).value

    @property
    def architecture(self) -> str:
        element = self._root.find("os/type")
        return "" if element is None else element.get("arch", "")

    @property
    def emulator(self) -> str:
        """Return the program that runs the guest, or an empty text where libvirt chooses it."""
        return self._root.findtext("devices/emulator", "")

    @property
    def cpu(self) -> str:
        """Return the model of the guest's CPU, or the mode where that says it; empty where libvirt chooses."""
        element = self._root.find("cpu")
        if element is None:
            return ""
        return element.findtext("model", "") or element.get("mode", "")

    def layout(self) -> str:
        """Return the digest of what the guest's memory depends on: its machine and devices, and where they are.

        What is the box's own (name, UUID, addresses, files) or the host's business (networks, graphics) is left out,
        and so is the order of elements: a clone and an import have the layout of their snapshot.
        """
        root = self._copy()
        ramfile.remove(root)
        for path in _NOT_LAYOUT:
            for one in root.findall(path):
                parent = one.getparent()
                if parent is not None:
                    parent.remove(one)
        for interface in root.iterfind("devices/interface"):
            interface.attrib.pop("type", None)
        for path in _CONTENT_IS_NOT_LAYOUT:
            for one in root.findall(path):
                one.text = None
        return hashlib.sha512(repr(_shape(root)).encode()).hexdigest()

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
    def has_more_shared_cards(self) -> bool:
        """Tell whether there are cards beside the first one that are on a network with others."""
        return any(interface.get("type") != "user" for interface in self._root.findall("devices/interface")[1:])

    @property
    def user_network_device(self) -> str | None:
        """Return QEMU's name of the first user-mode network of a running domain, or None."""
        alias = self._root.find("devices/interface[@type='user']/alias")
        return None if alias is None else f"host{alias.get('name', '')}"

    @property
    def network_device(self) -> str | None:
        """Return QEMU's name of the first network card of a running domain, or None."""
        alias = self._root.find("devices/interface/alias")
        return None if alias is None else alias.get("name")

    @property
    def channel_sockets(self) -> tuple[Path, ...]:
        """Return where the definition itself puts the sockets of its channels."""
        return tuple(Path(source.get("path", "")) for source in self._root.iterfind("devices/channel/source[@path]"))

    def channel_is_open(self, name: str) -> bool:
        """Tell whether a program in the running guest has opened the channel."""
        target = self._root.find(f"devices/channel/target[@name='{name}']")
        return target is not None and target.get("state") == "connected"

    @property
    def nvram(self) -> Path | None:
        """Return the file of the firmware's variables, if the domain names one."""
        text = self._root.findtext("os/nvram", "").strip()
        return Path(text) if text else None

    @property
    def tpm_kind(self) -> str | None:
        """Return what the guest's TPM is, in libvirt's words, or None when it has none."""
        backend = self._root.find("devices/tpm/backend")
        return None if backend is None else backend.get("type")

    @property
    def tpm_socket(self) -> Path | None:
        """Return the socket of the software TPM that we run for the guest, or None."""
        source = self._root.find("devices/tpm/backend[@type='external']/source")
        path = Path("" if source is None else source.get("path", ""))
        return path if path.name == TPM_SOCKET else None

    def disks(self) -> tuple[Path, ...]:
        """Return the files of all disks that are not CD-ROMs, floppies or the seed, in their order."""
        seed = seed_disk(self._root)
        return tuple(
            Path(source.get("file", ""))
            for disk in self._root.iterfind("devices/disk")
            if disk is not seed
            and disk.get("device", "disk") == "disk"
            and (source := disk.find("source[@file]")) is not None
        )

    @property
    def seed(self) -> Path | None:
        """Return the file from which a cloud image learns who it is, if the domain names one."""
        disk = seed_disk(self._root)
        source = None if disk is None else disk.find("source[@file]")
        return None if source is None else Path(source.get("file", ""))

    def further_disks(self) -> dict[str, tuple[Path, str]]:
        """Return the disks that the guest can write to, but for the first one, by their targets: files and formats.

        Raises ConfigError for one that is no file: its content could belong to no snapshot.
        """
        found = {}
        for disk in further_disks(self._root):
            target, source, driver = disk.find("target"), disk.find("source"), disk.find("driver")
            name = "" if target is None else target.get("dev", "")
            path = None if source is None else source.get("file")
            if disk.get("type") != "file" or not path or not name.isalnum():
                raise ConfigError(
                    f"The disk '{name}' of the domain XML could belong to no snapshot: expected a file.",
                    hint="Make it <readonly/>, or a file: <disk type='file' device='disk'>.",
                )
            found[name] = Path(path), "raw" if driver is None else driver.get("type", "raw")
        return found

    @property
    def host_files(self) -> tuple[Path, ...]:
        """Return the files and folders of the host that it names, but for those that a box brings along."""
        own = {*self.disks()[:1], *(path for path, _ in self.further_disks().values()), self.seed}
        sources = self._root.iterfind("devices/*/source")
        named = (source.get(key, "") for source in sources for key in ("file", "dir"))
        paths = (Path(text) for text in (*named, self._root.findtext("os/loader", "")) if text)
        return tuple(path for path in paths if path not in own)

    @property
    def boot_files(self) -> tuple[Path, ...]:
        """Return the kernel and the initrd that the domain boots directly, where it does."""
        found = (self._root.findtext(f"os/{tag}") for tag in ("kernel", "initrd"))
        return tuple(Path(text) for text in found if text)

    def describe_blockers(self, blockers: Sequence[str]) -> tuple[str, ...]:
        """Return QEMU's reasons against a migration with the devices that they speak of."""
        return unmovable.describe(self._root, blockers)

    @property
    def boot(self) -> Boot:
        """Return what the domain boots directly, if it does."""
        kernel, initrd, command_line = (self._root.findtext(f"os/{tag}") for tag in ("kernel", "initrd", "cmdline"))
        return Boot(
            kernel=Path(kernel) if kernel else None,
            initrd=Path(initrd) if initrd else None,
            command_line=command_line or "",
        )

    def text(self) -> str:
        etree.cleanup_namespaces(self._root)
        return etree.tostring(self._root, pretty_print=True, encoding="unicode")

    def _copy(self) -> Element:
        return copy.deepcopy(self._root)


def _shape(element: Element) -> tuple[str, list[tuple[str, str]], str, list[Any]]:
    attributes = sorted((str(name), str(value)) for name, value in element.attrib.items())
    return str(element.tag), attributes, (element.text or "").strip(), sorted(map(_shape, element.iterchildren("*")))
