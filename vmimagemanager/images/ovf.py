"""The description of a machine in an OVA: Open Virtualization Format 1.0 (DMTF DSP0243)."""

from __future__ import annotations

from lxml import etree

from vmimagemanager.images.manifest import Image
from vmimagemanager.units import Size

_OVF = "http://schemas.dmtf.org/ovf/envelope/1"
_RASD = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
_VSSD = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData"
_STREAM_OPTIMIZED = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"
_LINUX_64_BIT = "101"  # CIM_OperatingSystem.OsType
_PROCESSORS, _MEMORY, _ETHERNET, _SCSI, _DISK = "3", "4", "10", "6", "17"  # CIM's resource types
_CPUS, _MEBIBYTES = "1", "1024"


def describe(image: Image, disk: str, size: Size) -> bytes:
    """Return the .ovf of a machine with one disk: the file ``disk`` of ``size``, and a usual machine around it.

    An image says nothing of processors and memory: it gets one and 1 GiB, which whoever imports it can change.
    """
    root = etree.Element(f"{{{_OVF}}}Envelope", nsmap={None: _OVF, "ovf": _OVF, "rasd": _RASD, "vssd": _VSSD})
    references = _child(root, "References")
    _child(references, "File", href=disk, id="file1", size=str(size.bytes))
    section = _section(root, "DiskSection", "Virtual disks")
    _child(
        section,
        "Disk",
        capacity=str(image.disk_size.bytes),
        diskId="vmdisk1",
        fileRef="file1",
        format=_STREAM_OPTIMIZED,
    )
    networks = _section(root, "NetworkSection", "Networks")
    _child(_child(networks, "Network", name="nat"), "Description", "A network with DHCP")
    machine = _child(root, "VirtualSystem", id=image.name)
    _child(machine, "Info", "A virtual machine")
    _child(machine, "Name", image.name)
    system = _section(machine, "OperatingSystemSection", "The guest's system")
    system.set(f"{{{_OVF}}}id", _LINUX_64_BIT)
    _child(system, "Description", " ".join(filter(None, (image.os, image.release))) or "Linux")
    hardware = _section(machine, "VirtualHardwareSection", "Virtual hardware")
    kind = _child(hardware, "System")
    _setting(kind, _VSSD, {"ElementName": "Virtual hardware", "InstanceID": "0", "VirtualSystemType": "vmx-10"})
    items = (
        {"ElementName": "Processors", "InstanceID": "1", "ResourceType": _PROCESSORS, "VirtualQuantity": _CPUS},
        {
            "AllocationUnits": "byte * 2^20",
            "ElementName": "Memory",
            "InstanceID": "2",
            "ResourceType": _MEMORY,
            "VirtualQuantity": _MEBIBYTES,
        },
        {"ElementName": "SCSI", "InstanceID": "3", "ResourceSubType": "lsilogic", "ResourceType": _SCSI},
        {
            "AddressOnParent": "0",
            "ElementName": "Disk",
            "HostResource": "ovf:/disk/vmdisk1",
            "InstanceID": "4",
            "Parent": "3",
            "ResourceType": _DISK,
        },
        {
            "AutomaticAllocation": "true",
            "Connection": "nat",
            "ElementName": "Network card",
            "InstanceID": "5",
            "ResourceSubType": "E1000",
            "ResourceType": _ETHERNET,
        },
    )
    for item in items:
        _setting(_child(hardware, "Item"), _RASD, item)
    return etree.tostring(root, pretty_print=True, xml_declaration=True, encoding="UTF-8")


def _section(parent: etree._Element, tag: str, info: str) -> etree._Element:
    section = _child(parent, tag)
    _child(section, "Info", info)
    return section


def _child(parent: etree._Element, tag: str, text: str | None = None, **attributes: str) -> etree._Element:
    element = etree.SubElement(
        parent, f"{{{_OVF}}}{tag}", {f"{{{_OVF}}}{key}": value for key, value in attributes.items()}
    )
    element.text = text
    return element


def _setting(parent: etree._Element, namespace: str, values: dict[str, str]) -> None:
    for key, value in values.items():  # in the order of the alphabet, as the schema has them
        etree.SubElement(parent, f"{{{namespace}}}{key}").text = value
