"""What runs the guests' instructions, and whether libvirt has to find out about it again and again."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from vmimagemanager.config import Accelerator as Requested
from vmimagemanager.config import HostSettings
from vmimagemanager.doctor.access import READ, WRITE, Account, is_folder, may
from vmimagemanager.doctor.check import Check, as_root, failure, ok, warning
from vmimagemanager.hypervisor import accelerator
from vmimagemanager.hypervisor.accelerator import Accelerator
from vmimagemanager.state import StateDirectory

NAME = "accelerator"


def checks(settings: HostSettings, owner: tuple[int, int] | None) -> Iterator[Check]:
    """Say what ``auto`` chooses; ``owner`` is the user that QEMU runs as, None for this one."""
    yield _choice(settings)
    if owner is not None and accelerator.DEVICE.exists():
        yield device_of(Account.of(*owner), accelerator.DEVICE)


def device_of(account: Account, device: Path) -> Check:
    """Say whether QEMU's own user may use the device, too."""
    if may(account, device, READ | WRITE):
        return ok("KVM for QEMU", f"'{account.name}', the user that QEMU runs as, may use {device}.")
    # virQEMUCapsIsValid: what libvirt learnt of QEMU with KVM is void as long as QEMU's user cannot open the device.
    return warning(
        "KVM for QEMU",
        f"'{account.name}', the user that QEMU runs as, may not use {device}, so that libvirt asks QEMU anew what it "
        "can do each time libvirt is started (several seconds).",
        as_root(f"chgrp kvm {device} && chmod 660 {device}"),
    )


def _choice(settings: HostSettings) -> Check:
    cache = StateDirectory(settings.state_dir).cache
    if is_folder(cache):
        choice = accelerator.choose("auto", cache)
    else:  # making the folder here would leave a state directory that is not one
        with tempfile.TemporaryDirectory() as folder:
            choice = accelerator.choose("auto", Path(folder))
    if choice.accelerator is Accelerator.KVM or settings.accelerator is Requested.TCG:
        asked = "" if settings.accelerator is not Requested.TCG else "  The configuration asks for emulation."
        return ok(NAME, choice.reason + asked)
    if settings.accelerator is Requested.KVM:
        return failure(NAME, f"{choice.reason}  The configuration asks for 'kvm'.")
    return warning(NAME, f"{choice.reason}  Guests run about ten times slower.")
