"""What a guest's memory can be brought back on: the machine that it was taken of, compared with what this host offers.

A migration stream describes devices by name and place.  QEMU reads it into the machine that the command line makes, and
finds out in the middle when the two differ; a newer QEMU reads what an older one wrote, never the reverse.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from vmimagemanager.hypervisor.connection import Hypervisor
from vmimagemanager.hypervisor.domainxml import DomainXml

PASSTHROUGH = "host-passthrough"


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """The machine of a guest when its memory was kept; what is empty was not recorded, and is not compared.

    ``cpu`` is the model that the guest saw, or libvirt's mode; where that is the host's own CPU, ``host_cpu`` names
    what the host had.  ``layout`` is the digest of the device layout (see `DomainXml.layout`).
    """

    architecture: str = ""
    accelerator: str = ""
    machine: str = ""
    cpu: str = ""
    host_cpu: tuple[str, ...] = ()
    layout: str = ""
    libvirt: str = ""
    qemu: str = ""

    @classmethod
    def of(cls, hypervisor: Hypervisor, definition: DomainXml) -> Platform:
        """Return the machine that ``definition`` describes, on this host."""
        host = hypervisor.host
        return cls(
            architecture=definition.architecture,
            accelerator=definition.virtualization,
            machine=definition.machine,
            cpu=definition.cpu,
            host_cpu=host.cpu if definition.cpu == PASSTHROUGH else (),
            layout=definition.layout(),
            libvirt=host.libvirt,
            qemu=host.qemu,
        )

    def to_record(self) -> dict[str, object]:
        return {field.name.replace("_", "-"): getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Platform:
        """Read what `to_record` returned; raise TypeError for a value of another type."""
        values = {field.name: record.get(field.name.replace("_", "-"), field.default) for field in fields(cls)}
        values["host_cpu"] = tuple(values["host_cpu"])
        if not all(isinstance(value, str) for name, value in values.items() if name != "host_cpu"):
            raise TypeError("the platform is described by texts")
        return cls(**values)


def differences(frozen: Platform, hypervisor: Hypervisor, definition: DomainXml) -> tuple[str, ...]:
    """Return, as whole sentences, why a memory of ``frozen`` cannot be brought back here; nothing when it can.

    ``definition`` is the one that it would be brought back with.  Costs one question to libvirt, asked once for each
    connection and kind of machine.
    """
    host = hypervisor.host
    found = []
    if frozen.qemu and _number(host.qemu) < _number(frozen.qemu):
        found.append(f"This host's QEMU {host.qemu} is older than {frozen.qemu}, which wrote the memory.")
    if frozen.layout and frozen.layout != definition.layout():
        found.append("The devices in 'domain.xml' are not those that were frozen.")
    machine, cpu = frozen.machine or definition.machine, frozen.cpu or definition.cpu
    architecture = frozen.architecture or definition.architecture
    accelerator = frozen.accelerator or definition.virtualization
    offer = hypervisor.offer(definition.emulator, architecture, accelerator, machine)
    if not offer.architecture:
        found.append(f"This host's QEMU does not run guests for {architecture}.")
    elif not offer.accelerator:
        found.append(f"The guest ran with {accelerator.upper()}, which libvirt cannot use here.")
    elif not offer.machine:
        found.append(f"This host's QEMU {host.qemu} does not offer the machine type '{machine}'.")
    elif cpu and cpu not in offer.cpus:
        found.append(f"This host's QEMU {host.qemu} does not offer the CPU model '{cpu}'.")
    lacking = sorted(set(frozen.host_cpu) - set(host.cpu))
    if lacking:
        found.append(f"The guest saw its host's CPU, and this one lacks {', '.join(lacking)}.")
    return tuple(found)


def _number(version: str) -> tuple[int, ...]:
    # A stable release, the third number, does not change what machines are, nor how they are written.
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
