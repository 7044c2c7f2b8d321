"""The guest's side of a common network: the address of its card, and the names of all who are there.

The card is known by its MAC address, and named by its index, because udev renames it while it comes up; udev's own
record says that it is done.  systemd-networkd is told first, so that it takes no other address for the card (the
image's own configuration wants one by DHCP), and gives this one again when the guest boots.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta

from vmimagemanager.errors import GuestError
from vmimagemanager.guest.agent import Agent

_MARK = "# vmimagemanager"
# Arguments: MAC address, address with the length of its prefix.  Standard input: lines for /etc/hosts.
_SCRIPT = f"""
set -eu
hosts=
while IFS= read -r line || [ -n "$line" ]; do
    case $line in *'{_MARK}') ;; *) hosts="$hosts$line
" ;; esac
done < /etc/hosts
while IFS= read -r line; do hosts="$hosts$line {_MARK}
"; done
printf '%s' "$hosts" > /etc/hosts
if [ -d /run/systemd/netif ]; then
    [ -d /etc/systemd/network ] || mkdir -p /etc/systemd/network
    printf '[Match]\\nMACAddress=%s\\n[Link]\\nRequiredForOnline=no\\n[Network]\\nAddress=%s\\nLLMNR=no\\n' "$1" "$2" \\
        > /etc/systemd/network/10-vmimagemanager-lan.network
    networkctl reload
fi
found() {{
    for card in /sys/class/net/*; do
        read -r mac 2>/dev/null < "$card/address" || continue
        [ "$mac" != "$1" ] || return 0
    done
    return 1
}}
tries=200
until found "$1" && read -r index < "$card/ifindex" && {{ [ ! -d /run/udev ] || [ -e "/run/udev/data/n$index" ]; }}; do
    [ $tries -gt 0 ] || {{ echo "No network card with the address $1 came up." >&2; exit 1; }}
    tries=$((tries - 1))
    sleep 0.05
done
printf 'link set dev if%s up\\naddress replace %s dev if%s\\n' "$index" "$2" "$index" | ip -batch -
"""


def join(
    agent: Agent,
    *,
    mac: str,
    address: str,
    hosts: Mapping[str, str],
    limit: timedelta,
    check: Callable[[], None],
) -> None:
    """Give the card with ``mac`` its ``address`` (and prefix length), and the guest the names of the ``hosts``.

    It needs systemd-networkd, or nothing that cares for cards that it does not know, and the program ip.  Can be
    repeated.  Raises GuestError with the guest's own words when it refuses, or no such card comes up.
    """
    lines = "".join(f"{one} {name}\n" for name, one in hosts.items())
    words = ["/bin/sh", "-c", _SCRIPT, "lan", mac, address]
    result = agent.run(words, stdin=lines.encode(), limit=limit, check=check)
    if result.status != 0:
        raise GuestError(
            "The guest did not join the common network.", detail=result.stderr.decode("utf-8", "replace").strip()
        )
