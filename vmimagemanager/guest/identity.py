"""Identity: what a box gets of its own at its first boot, through the agent."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from vmimagemanager.errors import GuestError
from vmimagemanager.guest.agent import Agent

# Arguments: host name, user, machine-id, public host key.  Standard input: the public key that may log in, a line, and
# then the private host key.  The machine-id comes last: it tells that all the rest is there.
_SCRIPT = """
set -eu
umask 077
home=$(getent passwd "$2" | cut -d: -f6)
[ -d "$home" ] || { echo "The guest has no user '$2' with a home folder." >&2; exit 1; }
mkdir -p "$home/.ssh"
IFS= read -r line
for file in /root/.ssh/authorized_keys "$home/.ssh/authorized_keys"; do  # what opened the box that this one's image was
    [ ! -s "$file" ] || sed -i '/ vmimagemanager-[A-Za-z0-9._-]*$/d' "$file"
done
grep -qxF "$line" "$home/.ssh/authorized_keys" 2>/dev/null || printf '%s\\n' "$line" >> "$home/.ssh/authorized_keys"
chown -R "$2:" "$home/.ssh"
rm -f /etc/ssh/ssh_host_*
cat > /etc/ssh/ssh_host_ed25519_key
umask 022
printf '%s\\n' "$4" > /etc/ssh/ssh_host_ed25519_key.pub
printf '%s\\n' "$1" > /etc/hostname
printf '%s\\n' "$1" > /proc/sys/kernel/hostname
if systemctl cat ssh.service >/dev/null 2>&1; then unit=ssh.service; else unit=sshd.service; fi
systemctl restart "$unit" >&2
chmod u+w /etc/machine-id 2>/dev/null || true
printf '%s\\n' "$3" > /etc/machine-id
chmod 444 /etc/machine-id
sync
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What tells one box from every other; keys are in OpenSSH's formats, the public ones one line each."""

    host_name: str
    user: str
    machine_id: str
    authorized_key: str
    host_key: str
    private_host_key: bytes


def give_identity(agent: Agent, identity: Identity, limit: timedelta) -> None:
    """Give the guest its host name, machine-id, host key and the key that may log in, and start its SSH server.

    Keys that another box of ours was opened with, as their comments say, let nobody in any more.

    Can be repeated.  Raises GuestError with the guest's own words when it refuses; it may then have a part of them.
    """
    arguments = [identity.host_name, identity.user, identity.machine_id, identity.host_key]
    result = agent.run(
        ["/bin/sh", "-c", _SCRIPT, "identity", *arguments],
        stdin=identity.authorized_key.encode() + b"\n" + identity.private_host_key,
        limit=limit,
    )
    if result.status != 0:
        raise GuestError(
            "The guest did not take its identity.", detail=result.stderr.decode("utf-8", "replace").strip()
        )
