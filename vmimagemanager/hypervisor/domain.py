"""One libvirt domain that carries our metadata: its life, its monitor, its agent."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from enum import StrEnum
from pathlib import Path

import libvirt
import libvirt_qemu

from vmimagemanager.errors import (
    DomainNotFoundError,
    GuestError,
    GuestUnreachableError,
    HypervisorError,
    HypervisorUnreachableError,
)
from vmimagemanager.hypervisor import domainxml
from vmimagemanager.hypervisor.channel import Channel
from vmimagemanager.hypervisor.monitor import Monitor
from vmimagemanager.hypervisor.parts import WAITER_CHANNEL
from vmimagemanager.hypervisor.translate import translated


class DomainState(StrEnum):
    RUNNING = "running"
    PAUSED = "paused"
    OFF = "off"
    CRASHED = "crashed"


_STATES = {
    libvirt.VIR_DOMAIN_RUNNING: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_SHUTDOWN: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: DomainState.PAUSED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: DomainState.PAUSED,
    libvirt.VIR_DOMAIN_CRASHED: DomainState.CRASHED,
}
_PAUSED_FOR_IO = getattr(libvirt, "VIR_DOMAIN_PAUSED_IOERROR", 5)
_UNDEFINE_EVERYWHERE = (  # the drivers that have neither firmware nor checkpoints refuse their flags
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
)
_UNDEFINE = _UNDEFINE_EVERYWHERE | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM


class Domain:
    """A domain of ours.  All methods raise HypervisorError when libvirt refuses."""

    def __init__(self, domain: libvirt.virDomain) -> None:
        self._domain = domain
        self.name: str = domain.name()
        self.monitor = Monitor(domain)

    def state(self) -> DomainState:
        try:
            with translated(f"read the state of '{self.name}'"):
                number, reason = self._domain.state()
        except DomainNotFoundError:  # somebody undefined it while it ran, and now it has ended
            return DomainState.OFF
        if number == libvirt.VIR_DOMAIN_PAUSED and reason == libvirt.VIR_DOMAIN_PAUSED_CRASHED:
            return DomainState.CRASHED
        return _STATES.get(number, DomainState.OFF)

    def paused_for_space(self) -> bool:
        """Tell whether QEMU stopped the guest because a write to its disk failed."""
        with translated(f"read the state of '{self.name}'"):
            number, reason = self._domain.state()
        return bool(number == libvirt.VIR_DOMAIN_PAUSED and reason == _PAUSED_FOR_IO)

    @property
    def active(self) -> bool:
        return self.state() is not DomainState.OFF

    def definition(self, *, live: bool) -> domainxml.DomainXml:
        """Return the domain's XML: of the running guest, or as it will be at the next start."""
        flags = libvirt.VIR_DOMAIN_XML_SECURE | (0 if live else libvirt.VIR_DOMAIN_XML_INACTIVE)
        with translated(f"read the definition of '{self.name}'"):
            return domainxml.DomainXml.parse(self._domain.XMLDesc(flags), source=f"the domain '{self.name}'")

    def portable_definition(self) -> domainxml.DomainXml:
        """Return the running guest's XML as another start with the same devices needs it, as for a migration."""
        flags = libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_MIGRATABLE
        with translated(f"read the definition of '{self.name}'"):
            text = self._domain.XMLDesc(flags)
        portable = domainxml.DomainXml.parse(text, source=f"the domain '{self.name}'").without_runtime_parts()
        # A clone's was plugged in behind libvirt's back, but its definition has it.
        return portable.with_lan_card(self.definition(live=False).lan_card)

    def resume(self) -> None:
        with translated(f"resume '{self.name}'"):
            self._domain.resume()

    def suspend(self) -> None:
        with translated(f"pause '{self.name}'"):
            self._domain.suspend()

    def end(self) -> None:
        """Power the guest off at once; one that is off already is no error."""
        try:
            with translated(f"power off '{self.name}'"):
                self._domain.destroy()
        except HypervisorError:
            if self.active:
                raise

    def ask_to_shut_down(self) -> None:
        """Ask the guest to shut down, by ACPI (the agent of a stuck guest would only be waited for)."""
        with translated(f"shut down '{self.name}'"):
            self._domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)

    def undefine(self) -> None:
        """Make libvirt forget the domain, with its NVRAM, managed save and snapshot metadata."""
        with suppress(DomainNotFoundError), translated(f"undefine '{self.name}'"):
            try:
                self._domain.undefineFlags(_UNDEFINE)
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_INVALID_ARG:
                    raise
                self._domain.undefineFlags(_UNDEFINE_EVERYWHERE)

    def save(self, target: Path, definition: domainxml.DomainXml) -> None:
        """Write RAM and device state to ``target`` and end the guest; ``definition`` is what a restore will use."""
        with translated(f"save '{self.name}'"):
            self._domain.saveFlags(str(target), definition.text(), libvirt.VIR_DOMAIN_SAVE_RUNNING)

    def migration_refusal(self) -> str | None:
        """Return the sentence that names the devices for which QEMU refuses to migrate the guest, or None."""
        blockers = self.monitor.migration_blockers()
        if not blockers:
            return None
        return f"QEMU cannot migrate the guest: {'; '.join(self.definition(live=True).describe_blockers(blockers))}."

    def agent_command(self, text: str, limit: timedelta) -> str:
        """Send one JSON command to the guest agent and return its JSON answer.

        Raises GuestUnreachableError when the agent is not there or does not answer within ``limit`` (whole seconds),
        GuestError when it refuses.
        """
        seconds = max(1, round(limit.total_seconds()))
        try:
            with translated("talk to the guest agent"):
                return str(libvirt_qemu.qemuAgentCommand(self._domain, text, seconds, 0))
        except HypervisorUnreachableError:
            raise
        except HypervisorError as error:
            if self.state() is DomainState.RUNNING:
                raise GuestError(str(error)) from error
            raise GuestUnreachableError(
                f"The guest agent of '{self.name}' does not answer: it does not run."
            ) from error

    @property
    def waiter(self) -> Channel:
        """Return the channel on which our process in the guest waits."""
        return Channel(self._domain, WAITER_CHANNEL)

    def set_link(self, *, up: bool) -> None:
        """Connect the first network card, or disconnect it: the guest sees that, and nothing comes through."""
        card = self.definition(live=True).network_device
        assert card is not None
        self.monitor.command("set_link", name=card, up=up)

    def addresses(self, mac: str) -> tuple[str, ...]:
        """Return the IPv4 addresses of the guest's card with that MAC address.

        The agent knows them, or else libvirt's DHCP server.
        """
        for source in (
            libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT,
            libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE,
        ):
            try:
                interfaces = self._domain.interfaceAddresses(source)
            except libvirt.libvirtError:
                continue
            found = tuple(
                address["addr"]
                for interface in interfaces.values()
                if (interface["hwaddr"] or "").lower() == mac.lower()
                for address in interface["addrs"] or ()
                if address["type"] == libvirt.VIR_IP_ADDR_TYPE_IPV4
            )
            if found:
                return found
        return ()
