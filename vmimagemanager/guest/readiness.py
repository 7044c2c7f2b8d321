"""Readiness: proven by a command that ran, never by a banner, a lease or a sleep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vmimagemanager.deadline import Deadline
from vmimagemanager.errors import GuestError
from vmimagemanager.guest.result import Runner

# Waits for what tells that a boot is over: nobody is refused any more, cloud-init is through, systemd's queue is empty.
_SCRIPT = """
while [ -e /run/nologin ]; do sleep 0.2; done
if [ -d /run/cloud-init ] && [ ! -e /run/cloud-init/result.json ] && command -v cloud-init >/dev/null; then
    cloud-init status --wait >/dev/null
fi
if [ -d /run/systemd/system ]; then systemctl is-system-running --wait; else echo unknown; fi
cat /proc/sys/kernel/random/boot_id
cat /etc/machine-id 2>/dev/null || echo none
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """What a guest that is up says of itself: boot id, machine-id, and systemd's word for its state."""

    boot_id: str
    machine_id: str
    system: str


def wait_until_ready(runner: Runner, deadline: Deadline, check: Callable[[], None]) -> Readiness:
    """Return when the guest has booted and a command has run in it; ``check`` raises when there is no more hope.

    Raises GuestError when the answer makes no sense, DeadlineError when the time is up.
    """
    result = runner.run(["/bin/sh", "-c", _SCRIPT], limit=deadline, check=check)
    lines = result.text.split()
    if result.status != 0 or len(lines) != 3:
        raise GuestError(f"The guest's readiness cannot be told: {result.stderr.decode('utf-8', 'replace').strip()}.")
    return Readiness(system=lines[0], boot_id=lines[1], machine_id=lines[2])
