"""The host itself: who the caller is, and the disk and memory that are left."""

from __future__ import annotations

import grp
import os
from collections.abc import Iterator
from pathlib import Path

from vmimagemanager.config.settings import DEFAULT_RAM
from vmimagemanager.doctor.access import folders_above
from vmimagemanager.doctor.check import Check, as_root, failure, ok, warning
from vmimagemanager.durable import free_space
from vmimagemanager.hypervisor import accelerator, memory
from vmimagemanager.locks import user_name
from vmimagemanager.units import Size

LIBVIRT_GROUP = "libvirt"
_LITTLE_DISK, _NO_DISK = Size(5 << 30), Size(1 << 30)
_LITTLE_MEMORY = Size(1 << 30)


def group_checks(uri: str, *, system: bool) -> Iterator[Check]:
    """Say whether an ordinary user is in the groups that its way to libvirt needs; of root, say nothing."""
    if os.geteuid() == 0:
        return
    needed = []
    if system and not in_group(LIBVIRT_GROUP):
        needed.append((LIBVIRT_GROUP, f"'{uri}' and its state directory are shared by that group"))
    group = _group_of(accelerator.DEVICE)
    if not system and group is not None and not os.access(accelerator.DEVICE, os.R_OK | os.W_OK):
        needed.append((group, f"{accelerator.DEVICE} is for that group"))
    for group, reason in needed:
        yield warning("groups", f"'{user_name()}' is not in the group '{group}', and {reason}.", to_join(group))
    if not needed:
        yield ok("groups", f"'{user_name()}' is in the groups that it needs for '{uri}'.")


def in_group(name: str) -> bool:
    """Say whether this process is in a group; one that was joined after the login does not count yet."""
    try:
        return grp.getgrnam(name).gr_gid in {os.getegid(), *os.getgroups()}
    except KeyError:
        return False


def to_join(group: str) -> str:
    """Return the command that lets the caller into a group, and says that it counts from the next login on."""
    return f"{as_root(f'usermod -aG {group} {user_name()}')}  # then log in again"


def disk_checks(folder: Path) -> Iterator[Check]:
    """Say how much may still be written where the state directory is, or will be."""
    free = free_space(folders_above(folder)[-1])
    message = f"{free.human()} are free in the file system of '{folder}'"
    if free < _NO_DISK:
        yield failure("disk", f"{message}, which does not suffice for a box.", "vmimagemanager image list")
    elif free < _LITTLE_DISK:
        yield warning("disk", f"{message}, which is little: an image needs 2 GiB.", "vmimagemanager image list")
    else:
        yield ok("disk", f"{message}.")


def memory_checks() -> Iterator[Check]:
    """Say how much memory programs can still get."""
    free = memory.available()
    if free is None:
        yield warning("memory", "The kernel does not say how much memory is available.")
        return
    message = f"{free.human()} of memory are available"
    if free < DEFAULT_RAM:
        yield failure("memory", f"{message}, less than the {DEFAULT_RAM} of one box.", "vmimagemanager list --used")
    elif free < _LITTLE_MEMORY:
        yield warning("memory", f"{message}, which is little.", "vmimagemanager list --used")
    else:
        yield ok("memory", f"{message}.")


def _group_of(device: Path) -> str | None:
    """Return the group that a device is open to; one that has no name is nothing that a user can join."""
    try:
        status = device.stat()
        return grp.getgrgid(status.st_gid).gr_name if status.st_mode & 0o060 == 0o060 else None
    except (OSError, KeyError):
        return None
