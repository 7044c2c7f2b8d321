"""The connection to libvirt, and the domains on it."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from urllib.parse import urlsplit

import libvirt
from lxml import etree

from vmimagemanager.errors import (
    DomainNotFoundError,
    ForeignDomainError,
    HypervisorError,
    HypervisorUnreachableError,
)
from vmimagemanager.hypervisor import tpm
from vmimagemanager.hypervisor.domain import Domain
from vmimagemanager.hypervisor.domainxml import DomainXml
from vmimagemanager.hypervisor.network import Network
from vmimagemanager.hypervisor.translate import silence_libvirt, translated

# With these drivers in force, QEMU may open only the files that libvirt itself names.
CONFINING = ("apparmor", "selinux")
_NOT_OFFERED = (libvirt.VIR_ERR_INVALID_ARG, libvirt.VIR_ERR_CONFIG_UNSUPPORTED, libvirt.VIR_ERR_NO_SUPPORT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What libvirt says of its host: versions as ``9.0.0``, security drivers, and the user that QEMU runs as.

    ``cpu`` is the host's CPU in words: its vendor, its nearest model and its features.
    """

    libvirt: str
    qemu: str
    security: tuple[str, ...]
    qemu_owner: tuple[int, int] | None
    cpu: tuple[str, ...] = ()

    @property
    def confined_by(self) -> str | None:
        """Return the security driver that confines QEMU to the files that libvirt names, or None."""
        return next((driver for driver in self.security if driver in CONFINING), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Whether one emulator offers an architecture, an accelerator and a machine type, and which CPUs it knows then."""

    architecture: bool
    accelerator: bool = False
    machine: bool = False
    cpus: frozenset[str] = frozenset()


def default_uri() -> str:
    """Return the URI that libvirt would choose: LIBVIRT_DEFAULT_URI, else the system's for root, else the session's."""
    return os.environ.get("LIBVIRT_DEFAULT_URI") or ("qemu:///system" if os.geteuid() == 0 else "qemu:///session")


class Hypervisor:
    """An open connection.  All methods raise HypervisorError when libvirt refuses."""

    def __init__(self, connection: libvirt.virConnect, uri: str) -> None:
        self._connection = connection
        self.uri = uri
        self._host: Host | None = None
        self._offers: dict[tuple[str, ...], Offer] = {}

    @classmethod
    def connect(cls, uri: str) -> Hypervisor:
        """Open a connection; raise HypervisorUnreachableError with the way to start the daemon when there is none."""
        silence_libvirt()
        try:
            with translated(f"connect to '{uri}'"):
                return cls(libvirt.open(uri), uri)
        except HypervisorUnreachableError:
            raise
        except HypervisorError as error:
            raise HypervisorUnreachableError(error.message, hint="vmimagemanager doctor") from error

    @property
    def session(self) -> bool:
        """Whether this is the caller's own libvirt, which runs QEMU as the caller."""
        return urlsplit(self.uri).path.strip("/") == "session"

    @property
    def host(self) -> Host:
        if self._host is None:
            with translated("describe its host"):
                capabilities = etree.fromstring(self._connection.getCapabilities().encode())
                versions = self._connection.getLibVersion(), self._connection.getVersion()
            models = {
                model.findtext("model", ""): model.findtext("baselabel[@type='kvm']", "")
                for model in capabilities.iterfind("host/secmodel")
            }
            self._host = Host(
                libvirt=_version(versions[0]),
                qemu=_version(versions[1]),
                cpu=_cpu(capabilities),
                security=tuple(models),
                qemu_owner=_owner(models.get("dac", "")),
            )
        return self._host

    def offer(self, emulator: str, architecture: str, accelerator: str, machine: str) -> Offer:
        """Return what an emulator (or, for an empty name, libvirt's own choice) offers; asked once a connection."""
        key = (emulator, architecture, accelerator, machine)
        if key not in self._offers:
            self._offers[key] = self._ask_offer(*key)
        return self._offers[key]

    def _ask_offer(self, emulator: str, architecture: str, accelerator: str, machine: str) -> Offer:
        found = self._domain_capabilities(emulator, architecture, accelerator, machine)
        if found is not None:
            modes = {mode.get("name", "") for mode in found.iterfind("cpu/mode[@supported='yes']")}
            models = {model.text or "" for model in found.iterfind("cpu/mode[@name='custom']/model")}
            return Offer(architecture=True, accelerator=True, machine=True, cpus=frozenset(modes | models))
        # libvirt has one error for all of them: what is refused is found by asking for less.
        if self._domain_capabilities(emulator, architecture, accelerator) is not None:
            return Offer(architecture=True, accelerator=True)
        return Offer(architecture=self._domain_capabilities(emulator, architecture) is not None)

    def _domain_capabilities(
        self, emulator: str, architecture: str, accelerator: str = "", machine: str | None = None
    ) -> etree._Element | None:
        kind = {"kvm": "kvm", "tcg": "qemu"}.get(accelerator)
        try:
            text = self._connection.getDomainCapabilities(emulator or None, architecture, machine, kind)
        except libvirt.libvirtError as error:
            if error.get_error_code() not in _NOT_OFFERED:
                with translated("describe what it offers"):
                    raise
            return None
        return etree.fromstring(text.encode())

    def find(self, name: str) -> Domain | None:
        """Return the domain ``name``, whoever owns it, or None."""
        try:
            with translated(f"look up the domain '{name}'"):
                return Domain(self._connection.lookupByName(name))
        except DomainNotFoundError:
            return None

    def knows(self, uuid: str) -> bool:
        """Tell whether a domain has this UUID, whoever owns it."""
        try:
            with translated(f"look up the domain {uuid}"):
                self._connection.lookupByUUIDString(uuid)
        except DomainNotFoundError:
            return False
        return True

    def domain(self, name: str, state_directory: str) -> Domain | None:
        """Return the domain of our box ``name``, or None; raise ForeignDomainError when it is not ours."""
        domain = self.find(name)
        if domain is not None:
            require_ownership(domain, name, state_directory)
        return domain

    def owned_by(self, state_directory: str) -> tuple[str, ...]:
        """Return the names of the domains that carry our metadata for a state directory, sorted."""
        owned = []
        for name in self.names():
            with suppress(DomainNotFoundError):  # it has gone since
                domain = self.find(name)
                ownership = None if domain is None else domain.definition(live=False).ownership
                if ownership is not None and (ownership.box, ownership.state_directory) == (name, state_directory):
                    owned.append(name)
        return tuple(owned)

    def define(self, definition: DomainXml) -> Domain:
        """Define or redefine a domain, validated against libvirt's schema.

        Raises ToolError for a domain with a software TPM when a program of its is missing, HypervisorError.
        """
        if definition.tpm_socket is not None:
            tpm.require()
        with translated("define the domain"):
            return Domain(self._connection.defineXMLFlags(definition.text(), libvirt.VIR_DOMAIN_DEFINE_VALIDATE))

    def start(self, definition: DomainXml, *, paused: bool = False) -> Domain:
        """Start a guest from ``definition``; a persistent domain of that name keeps its own for the next start."""
        with translated("start the domain"):
            flags = libvirt.VIR_DOMAIN_START_PAUSED if paused else 0
            return Domain(self._connection.createXML(definition.text(), flags))

    def restore(self, saved: str, definition: DomainXml) -> None:
        """Bring a guest back from the file that `Domain.save` wrote."""
        with translated("restore the domain"):
            self._connection.restoreFlags(saved, definition.text(), libvirt.VIR_DOMAIN_SAVE_RUNNING)

    def network(self, name: str) -> Network:
        """Return a network of libvirt's; raise HypervisorError when there is none of that name."""
        with translated(f"look up the network '{name}'"):
            return Network(self._connection.networkLookupByName(name))

    def names(self) -> tuple[str, ...]:
        """Return the names of all domains, ours or not."""
        with translated("list its domains"):
            return tuple(sorted(domain.name() for domain in self._connection.listAllDomains()))

    def close(self) -> None:
        try:
            self._connection.close()
        except libvirt.libvirtError:  # the daemon is gone: there is nothing left to close
            return

    def __enter__(self) -> Hypervisor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def require_ownership(domain: Domain, box: str, state_directory: str) -> None:
    """Raise ForeignDomainError unless ``domain`` carries our metadata for this box of this state directory."""
    ownership = domain.definition(live=False).ownership
    if ownership is None:
        raise ForeignDomainError(
            f"The domain '{domain.name}' was not made by vmimagemanager, and is left alone.",
            hint=f"Choose another name, or take it over: vmimagemanager adopt {domain.name}",
        )
    if (ownership.box, ownership.state_directory) != (box, state_directory):
        raise ForeignDomainError(
            f"The domain '{domain.name}' belongs to the box '{ownership.box}' of '{ownership.state_directory}', "
            f"not of '{state_directory}', and is left alone.",
            hint=f"vmimagemanager --state-dir {ownership.state_directory} show {ownership.box}",
        )


def _cpu(capabilities: etree._Element) -> tuple[str, ...]:
    cpu = capabilities.find("host/cpu")
    if cpu is None:
        return ()
    words = [f"{cpu.findtext('vendor', '')} {cpu.findtext('model', '')}".strip()]
    return (*words, *sorted(feature.get("name", "") for feature in cpu.iterfind("feature")))


def _version(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def _owner(label: str) -> tuple[int, int] | None:
    # libvirt writes "+64055:+107"
    user, separator, group = label.replace("+", "").partition(":")
    if not separator or (int(user), int(group)) == (os.geteuid(), os.getegid()):
        return None
    return int(user), int(group)


__all__ = ["CONFINING", "Host", "Hypervisor", "HypervisorError", "Offer", "default_uri", "require_ownership"]
