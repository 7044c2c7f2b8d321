"""A new MAC address and a new address for a guest's network card, while nothing is connected to it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from vmimagemanager.errors import GuestError
from vmimagemanager.guest.agent import Agent

# Arguments: old and new MAC address, new address with the length of its prefix.  The card is taken down, so that all
# that the kernel made of its old MAC address goes: routes, neighbours, the IPv6 addresses.  The gateway stays.
_SCRIPT = """
set -eu
for card in /sys/class/net/*; do
    [ ! -e "$card/device" ] || ! read -r mac < "$card/address" || [ "$mac" != "$1" ] || break
    card=
done
card=${card##*/}
[ -n "$card" ] || { echo "The guest has no network card with the address $1." >&2; exit 1; }
routes=$(ip -4 route show default dev "$card")
{
    printf 'link set dev %s down\\nlink set dev %s address %s\\n' "$card" "$card" "$2"
    printf 'address flush dev %s\\nlink set dev %s up\\n' "$card" "$card"
    printf 'address add %s broadcast + dev %s\\n' "$3" "$card"
    set -- $routes
    while [ $# -gt 1 ]; do
        [ "$1" != via ] || gateway=$2
        shift
    done
    [ -z "${gateway-}" ] || printf 'route replace default via %s dev %s\\n' "$gateway" "$card"
} | ip -batch -
"""


def move(agent: Agent, *, old_mac: str, mac: str, address: str, limit: timedelta, check: Callable[[], None]) -> None:
    """Give the card that has ``old_mac`` another MAC address, and ``address`` in place of all that it has.

    ``address`` comes with the length of its prefix.  The gateway stays what it was.  Raises GuestError with the
    guest's own words when it refuses.
    """
    result = agent.run(["/bin/sh", "-c", _SCRIPT, "move", old_mac, mac, address], limit=limit, check=check)
    if result.status != 0:
        raise GuestError(
            "The guest did not take an address of its own.", detail=result.stderr.decode("utf-8", "replace").strip()
        )
