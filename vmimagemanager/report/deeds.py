"""What was done to a box, as lines for people and as JSON; ``title`` is the box, or the address of a snapshot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vmimagemanager.config import Channel, Engine

if TYPE_CHECKING:
    from vmimagemanager.boxes.define import Changed
    from vmimagemanager.boxes.life import Down, Up
    from vmimagemanager.snapshots import Restored, Taken


def seconds(number: float) -> str:
    """Return a measured time as people read it."""
    return f"{number:.2f} s" if number < 10 else f"{number:.1f} s"


def phases(durations: Mapping[str, float]) -> str:
    """Return named times on one line."""
    return ", ".join(f"{name} {seconds(number)}" for name, number in durations.items())


def up_lines(title: str, up: Up, taken: float, *, verbose: bool) -> list[str]:
    first = " (first boot)" if up.first_boot else ""
    what = f"up in {seconds(taken)}{first}" if up.started or up.first_boot else "was up already"
    channel = up.channel if up.channel is not Channel.NONE else "not proven: nothing in the guest can be asked"
    system = f", system {up.system}" if up.system not in {"", "running"} else ""
    return [f"{title}: {what}, {channel}{system}", *_details(up.phases, verbose=verbose)]


def up_document(up: Up) -> dict[str, Any]:
    return {
        "started": up.started,
        "first_boot": up.first_boot,
        "channel": up.channel.value,
        "system": up.system,
        "boot_id": up.boot_id,
        "phases": _rounded(up.phases),
    }


def down_lines(title: str, down: Down, taken: float) -> list[str]:
    if not down.was_up:
        return [f"{title}: was off already"]
    forced = ", forced: the guest did not shut down within its down-timeout" if down.forced else ""
    return [f"{title}: off in {seconds(taken)}{forced}"]


def down_document(down: Down) -> dict[str, Any]:
    return {"was_up": down.was_up, "forced": down.forced}


def taken_lines(title: str, taken: Taken, time: float, *, verbose: bool) -> list[str]:
    head = f"{title}: taken {taken.engine} in {seconds(time)}"
    return [head, *_reasons(taken.engine, taken.why_not), *_details(taken.phases, verbose=verbose)]


def taken_document(taken: Taken) -> dict[str, Any]:
    return {
        "snapshot": taken.name,
        "engine": taken.engine.value,
        "why_not": list(taken.why_not),
        "phases": _rounded(taken.phases),
    }


def restored_lines(title: str, restored: Restored, time: float, *, verbose: bool) -> list[str]:
    if not restored.running:
        state = "off, as it was"
    elif restored.proven:
        state = "proven"
    elif restored.engine is Engine.DISK:
        state = "booted"
    else:
        state = "not proven: nothing in the guest could be asked"
    head = f"{title}: restored {restored.engine} in {seconds(time)}, {state}"
    return [head, *_reasons(restored.engine, restored.why_not), *_details(restored.phases, verbose=verbose)]


def restored_document(restored: Restored) -> dict[str, Any]:
    return {
        "snapshot": restored.name,
        "engine": restored.engine.value,
        "running": restored.running,
        "proven": restored.proven,
        "why_not": list(restored.why_not),
        "phases": _rounded(restored.phases),
    }


def changed_lines(title: str, changed: Changed) -> list[str]:
    if not changed.keys:
        return [f"{title}: nothing has changed"]
    waits = f", from {changed.waits_for} on" if changed.waits_for else ""
    changes = [f"  {key}: {_value(old)} -> {_value(new)}" for key, (old, new) in changed.keys.items()]
    return [f"{title}: changed{waits}", *changes]


def changed_document(changed: Changed) -> dict[str, Any]:
    return {
        "changed": {key: {"before": old, "after": new} for key, (old, new) in changed.keys.items()},
        "waits_for": changed.waits_for,
    }


def _value(value: object) -> str:
    return "not set" if value is None else str(value)


def _reasons(engine: Engine, why_not: Sequence[str]) -> list[str]:
    if engine is Engine.LIVE or not why_not:
        return []
    return [f"  {engine}, because {why_not[0]}", *(f"  and {reason}" for reason in why_not[1:])]


def _details(durations: Mapping[str, float], *, verbose: bool) -> list[str]:
    return [f"  {phases(durations)}"] if verbose and durations else []


def _rounded(durations: Mapping[str, float]) -> dict[str, float]:
    return {name: round(number, 4) for name, number in durations.items()}
