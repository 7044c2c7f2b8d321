"""libvirt and QEMU: the daemons, the Python binding, the emulator, confinement, and the networks that boxes use."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from vmimagemanager import process
from vmimagemanager.boxes.record import BoxRecord
from vmimagemanager.doctor import host
from vmimagemanager.doctor.check import Check, as_root, failure, ok, warning
from vmimagemanager.errors import VmimError
from vmimagemanager.hypervisor.accelerator import EMULATOR

if TYPE_CHECKING:
    from vmimagemanager.hypervisor.connection import Host

BUS = Path("/run/dbus/system_bus_socket")
SOCKETS = Path("/run/libvirt")
BOOTED_BY_SYSTEMD = Path("/run/systemd/system")  # sd_booted(3)
_LIMIT = timedelta(seconds=5)
_NETWORK = "libvirt:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What came of connecting: the host as libvirt describes it, or why not; whether it answered; the binding's error.

    A libvirt that answers and cannot describe its host has no QEMU.
    """

    host: Host | None = None
    answered: bool = False
    error: str = ""
    binding: str = ""


def connect(uri: str) -> Found:
    """Connect to libvirt and ask it to describe its host; never raises."""
    try:
        from vmimagemanager.hypervisor.connection import Hypervisor
    except ImportError as error:
        return Found(binding=str(error))
    try:
        hypervisor = Hypervisor.connect(uri)
    except VmimError as error:
        return Found(error=error.message)
    with hypervisor:
        try:
            return Found(host=hypervisor.host, answered=True)
        except VmimError as error:
            return Found(answered=True, error=error.message)


def libvirt_checks(uri: str, found: Found, *, system: bool) -> Iterator[Check]:
    """Say whether Python can talk to libvirt, and whether libvirt answers."""
    if found.binding:
        yield failure(
            "Python binding",
            f"Python cannot load libvirt's binding: {found.binding}.",
            as_root("apt-get install python3-libvirt"),
        )
    else:
        yield ok("Python binding", "Python's binding of libvirt can be loaded.")
    if found.host is not None:
        yield ok("libvirt", f"libvirt {found.host.libvirt} answers at '{uri}'.")
    elif found.answered:
        yield ok("libvirt", f"libvirt answers at '{uri}'.")
    elif not found.binding:
        yield failure("libvirt", found.error, _to_reach_it(system=system))
    if system:
        yield _virtlogd()


def qemu_checks(found: Found) -> Iterator[Check]:
    """Say whether there is a QEMU and whether libvirt can use it."""
    program = process.find(EMULATOR)
    if program is None:
        yield failure("QEMU", f"The program '{EMULATOR}' is not installed.", as_root("apt-get install qemu-system-x86"))
    elif found.answered and found.host is None:
        yield failure("QEMU", f"'{program}' is there, and libvirt cannot use it: {found.error}", f"{program} --version")
    elif found.host is not None:
        yield ok("QEMU", f"QEMU {found.host.qemu} is at '{program}'.")
    else:
        said = process.run([program, "--version"], limit=_LIMIT).stdout.decode("utf-8", "replace").splitlines()
        yield ok("QEMU", f"'{program}' is there: {said[0] if said else 'it does not tell its version'}.")


def security_checks(found: Found, *, system: bool) -> Iterator[Check]:
    """Say whether a security driver keeps QEMU from the files of the live engine."""
    if found.host is None:
        return
    driver = found.host.confined_by
    if driver is None:
        yield ok("security driver", "No security driver keeps QEMU from files, so that all snapshot engines fit.")
    elif system:
        yield warning(
            "security driver",
            f"libvirt confines QEMU with '{driver}', so that live snapshots cannot be taken: saved ones are used.",
        )
    else:
        yield ok("security driver", f"libvirt knows '{driver}', which does not confine a session's QEMU.")


def network_checks(uri: str, boxes: Iterable[BoxRecord]) -> Iterator[Check]:
    """Say whether the libvirt networks that boxes are connected to are active; without such a box, say nothing."""
    needed: dict[str, str] = {}
    for box in boxes:
        if box.settings.network.startswith(_NETWORK):
            needed.setdefault(box.settings.network.removeprefix(_NETWORK), box.name)
    virsh = process.find("virsh")
    if not needed or virsh is None:
        return
    listed = process.run([virsh, "--quiet", "--connect", uri, "net-list", "--name"], limit=_LIMIT, check=False)
    if listed.status != 0:
        return  # libvirt's own line says why
    active = listed.stdout.decode("utf-8", "replace").split("\n")
    for network, user in needed.items():
        if network in (name.strip() for name in active):
            yield ok("network", f"libvirt's network '{network}' is active.")
        else:
            yield failure(
                "network",
                f"libvirt's network '{network}', which the box '{user}' is connected to, is not active.",
                f"virsh --connect {uri} net-start {network}",
            )


def _to_reach_it(*, system: bool) -> str:
    if process.find("libvirtd") is None and process.find("virtqemud") is None:
        return as_root("apt-get install libvirt-daemon-system")
    if not system:
        return "libvirtd --verbose"  # it is started by itself: this shows why it ends
    if os.geteuid() != 0 and (SOCKETS / "libvirt-sock").exists():
        if not BUS.exists():  # libvirt asks polkit about every user but root
            return "VMIM_URI=qemu:///session vmimagemanager doctor"
        if not host.in_group(host.LIBVIRT_GROUP):
            return host.to_join(host.LIBVIRT_GROUP)
    return as_root("systemctl start libvirtd" if BOOTED_BY_SYSTEMD.is_dir() else "virtlogd -d && libvirtd -d")


def _virtlogd() -> Check:
    path = SOCKETS / "virtlogd-sock"
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(_LIMIT.total_seconds())
        try:
            client.connect(str(path))
        except PermissionError:
            return ok("virtlogd", f"virtlogd has its socket '{path}'; only root can see whether it answers.")
        except OSError as error:
            return failure(
                "virtlogd",
                f"virtlogd, which libvirt needs for consoles, does not answer at '{path}': {error.strerror or error}.",
                as_root("systemctl start virtlogd" if BOOTED_BY_SYSTEMD.is_dir() else "virtlogd -d"),
            )
    return ok("virtlogd", f"virtlogd answers at '{path}'.")
