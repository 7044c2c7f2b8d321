"""The clones of a fork, as lines for people and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vmimagemanager.report.deeds import phases, seconds

if TYPE_CHECKING:
    from vmimagemanager.boxes.fork import Forked
    from vmimagemanager.names import Address

Ssh = tuple[str, int] | None


def lines(
    address: Address, made: Sequence[Forked], ports: Mapping[str, Ssh], taken: float, *, verbose: bool
) -> list[str]:
    """Return a line for each clone, and one about them all."""
    shown = []
    for forked in made:
        ssh = ports[forked.name]
        proven = "proven" if forked.proven else "not proven"
        line = f"{forked.name}: running, {proven}" + (f", SSH on {ssh[0]}, port {ssh[1]}" if ssh else "")
        shown.append(line + (f", {forked.place.address} in the common network" if forked.place else ""))
        if verbose:
            shown.append(f"  {phases(forked.phases)}")
    clones = "1 clone" if len(made) == 1 else f"{len(made)} clones"
    return [*shown, f"{address}: {clones} in {seconds(taken)}"]


def document(forked: Forked, ssh: Ssh) -> dict[str, Any]:
    """Return a clone for JSON."""
    return {
        "name": forked.name,
        "proven": forked.proven,
        "ssh": None if ssh is None else {"host": ssh[0], "port": ssh[1]},
        "lan": None
        if forked.place is None
        else {"address": forked.place.address, "network": str(forked.place.network)},
        "phases": {name: round(number, 4) for name, number in forked.phases.items()},
    }
