"""Starting a guest: from its disk, or from a frozen memory."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from vmimagemanager.durable import allocate, make_folder, translate_os_errors
from vmimagemanager.errors import HypervisorError
from vmimagemanager.hypervisor import devicestate, tpm
from vmimagemanager.hypervisor.connection import Hypervisor
from vmimagemanager.hypervisor.domain import Domain
from vmimagemanager.hypervisor.domainxml import DomainXml
from vmimagemanager.hypervisor.ramfile import RamFile
from vmimagemanager.state import StateDirectory

_log = logging.getLogger(__name__)


def boot(hypervisor: Hypervisor, definition: DomainXml, ram: RamFile | None) -> Domain:
    """Start a guest from its disk, with its RAM in ``ram``, a file that `new_ram_file` made, or in anonymous memory."""
    return _start(hypervisor, definition.with_ram_file(ram).with_new_generation(), paused=False)


def wake(
    hypervisor: Hypervisor,
    definition: DomainXml,
    ram: RamFile,
    device_state: Path,
    *,
    limit: timedelta,
    connected: bool = True,
) -> Domain:
    """Bring a guest back, running, from its RAM file and device state; on failure no domain is left running.

    One that is not ``connected`` says and hears nothing on its network until `Domain.set_link`.
    """
    domain = _start(hypervisor, definition.with_ram_file(ram, incoming=True).with_new_generation(), paused=True)
    try:
        devicestate.load(domain.monitor, device_state, limit)
        if not connected:
            domain.set_link(up=False)  # not before: the device state has it plugged in
        domain.resume()
    except BaseException:
        domain.end()
        raise
    return domain


def new_ram_file(hypervisor: Hypervisor, path: Path, definition: DomainXml) -> RamFile:
    """Make an empty file for a guest's RAM, all its blocks reserved: a full disk under a mapping would kill QEMU.

    Raises SpaceError, leaving no file.
    """
    allocate(path, definition.ram)
    give_to_qemu(hypervisor, path)
    return RamFile(path=path, size=definition.ram, shared=True)


def ram_may_be_a_file(hypervisor: Hypervisor) -> bool:
    """Tell whether QEMU may open a file that only its command line names: not under AppArmor or SELinux."""
    return hypervisor.session or hypervisor.host.confined_by is None


def give_to_qemu(hypervisor: Hypervisor, path: Path) -> None:
    """Make ``path`` the property of the user that QEMU runs as, where that is another one than this process's."""
    if hypervisor.host.qemu_owner is not None and not hypervisor.session:
        with translate_os_errors("hand to QEMU", path):
            os.chown(path, *hypervisor.host.qemu_owner)


@contextmanager
def surroundings(hypervisor: Hypervisor, definition: DomainXml) -> Iterator[None]:
    """Make what a guest needs beside libvirt, for a block that starts it: folders for its sockets, its software TPM."""
    if hypervisor.session:  # a run-time folder lasts until its user logs out
        for socket in definition.channel_sockets:
            make_folder(socket.parent, mode=0o700)
    at, ownership = definition.tpm_socket, definition.ownership
    if at is None or ownership is None:
        yield
        return
    folder = StateDirectory(Path(ownership.state_directory)).box(ownership.box)
    tpm.start(folder.tpm, at, None if hypervisor.session else hypervisor.host.qemu_owner)
    try:
        yield
    except BaseException:
        tpm.end(at)
        raise


def _start(hypervisor: Hypervisor, definition: DomainXml, *, paused: bool) -> Domain:
    try:
        with surroundings(hypervisor, definition):
            return hypervisor.start(definition.with_quick_start(), paused=paused)
    except HypervisorError as error:
        # Not every libvirt can do without the capability that the quick start leaves out.
        _log.debug("the quick start failed, trying the plain one: %s", error)
        with surroundings(hypervisor, definition):
            return hypervisor.start(definition, paused=paused)
