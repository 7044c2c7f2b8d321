"""QEMU's monitor, through libvirt: the few commands that libvirt has no call for.

The protocol is QMP (docs/interop/qmp-spec in QEMU's source); descriptors are passed with the ``getfd`` command, so that
neither a socket's path nor its permissions matter to a QEMU that runs as another user.
"""

from __future__ import annotations

import json
import re
from typing import Any

import libvirt
import libvirt_qemu

from vmimagemanager.errors import HypervisorError
from vmimagemanager.hypervisor.translate import translated

_FORWARD = re.compile(r"TCP\[HOST_FORWARD\]\s+\S+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+22\b")


class Monitor:
    """The monitor of one running domain."""

    def __init__(self, domain: libvirt.virDomain) -> None:
        self._domain = domain

    def command(self, name: str, /, **arguments: object) -> Any:
        """Run a QMP command and return its ``return`` value; raise HypervisorError with QEMU's own words."""
        text = json.dumps({"execute": name, "arguments": arguments})
        with translated(f"run the monitor command '{name}'"):
            answer = libvirt_qemu.qemuMonitorCommand(self._domain, text, 0)
        return _result(name, answer)

    def pass_descriptor(self, name: str, descriptor: int) -> None:
        """Give QEMU a duplicate of an open file, to be known there as ``name``."""
        text = json.dumps({"execute": "getfd", "arguments": {"fdname": name}})
        with translated("pass a file to QEMU"):
            answer, _ = libvirt_qemu.qemuMonitorCommandWithFiles(self._domain, text, [descriptor], 0)
        _result("getfd", answer)

    def human(self, line: str) -> str:
        """Run a line of the human monitor and return what it printed."""
        with translated(f"run the monitor line '{line}'"):
            return str(libvirt_qemu.qemuMonitorCommand(self._domain, line, 1))

    # -- migration ---------------------------------------------------------------------------------------------------

    def migration_blockers(self) -> tuple[str, ...]:
        """Return why QEMU refuses to migrate this guest (a 9p share, a host device), or nothing."""
        return tuple(self.command("query-migrate").get("blocked-reasons", ()))

    def ignore_shared(self, state: bool) -> None:
        """Leave shared RAM out of later migrations and saves, or no longer."""
        capability = {"capability": "x-ignore-shared", "state": state}
        self.command("migrate-set-capabilities", capabilities=[capability])

    # -- port forwards of user-mode networks ---------------------------------------------------------------------------

    def forward_ssh(self, netdev: str, preferred: int) -> int:
        """Forward a port of 127.0.0.1 to the guest's port 22 and return it.

        ``preferred`` is tried first; when it is taken the kernel chooses, so two processes never collide.
        """
        for port in (preferred, 0) if preferred else (0,):
            if not self.human(f"hostfwd_add {netdev} tcp:127.0.0.1:{port}-:22").strip():
                break
        forwarded = self.forwarded_ssh()
        if forwarded is None:
            raise HypervisorError("QEMU did not forward a port of 127.0.0.1 to the guest's SSH.")
        return forwarded

    def forwarded_ssh(self) -> int | None:
        """Return the port of 127.0.0.1 that leads to the guest's port 22, or None."""
        match = _FORWARD.search(self.human("info usernet"))
        return int(match[1]) if match else None


def _result(name: str, answer: str) -> Any:
    parsed = json.loads(answer)
    if "error" in parsed:
        raise HypervisorError(f"QEMU refused the monitor command '{name}': {parsed['error'].get('desc', answer)}.")
    return parsed["return"]
