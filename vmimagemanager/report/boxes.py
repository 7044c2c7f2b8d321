"""Boxes and their history: a row of the list, all that is known about one, its operations; as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from vmimagemanager.report.deeds import phases, seconds

if TYPE_CHECKING:
    from vmimagemanager.boxes.lan import Lan
    from vmimagemanager.boxes.operations import Operation
    from vmimagemanager.boxes.status import Status
    from vmimagemanager.leases import Hold
    from vmimagemanager.locks import Holder

HEADER = ("BOX", "STATE", "IMAGE", "SNAPSHOT", "RAM", "USE")


def row(status: Status) -> tuple[str, ...]:
    """Return the cells of a box in the list, as `HEADER` names them."""
    return (
        status.name,
        status.state,
        status.image or "(adopted)",
        status.snapshot or "-",
        str(status.settings.ram),
        use(status),
    )


def use(status: Status) -> str:
    """Return who has the box: 'free', or that it is a spare, who leases and who holds it."""
    users = [f"spare of {status.fork_of}"] if status.spare else []
    if status.leased_by is not None:
        users.append(f"leased by {status.leased_by.user} (process {status.leased_by.pid})")
    if status.held_by is not None:
        users.append(f"held by {status.held_by}")
    return ", ".join(users) or "free"


def lines(status: Status) -> list[str]:
    """Return all that is known about a box."""
    settings = status.settings.to_record()
    hooks = settings.pop("hooks", [])
    settings.pop("image", None)
    settings.pop("user", None)
    facts: list[tuple[str, str]] = [
        ("state", status.state),
        ("image", status.image or "none: an adopted domain"),
        ("snapshot", f"stands on '{status.snapshot}'" if status.snapshot else "stands on none"),
        *([("fork of", status.fork_of)] if status.fork_of else []),
        *([("lan", _lan(status.lan))] if status.lan else []),
        ("use", use(status)),
        ("ssh", f"{status.user}@{status.ssh[0]}, port {status.ssh[1]}" if status.ssh else "not reachable"),
        ("host key", status.host_key),
        ("user", status.user if status.settings.user else f"{status.user}, as no setting says another"),
        ("accelerator", f"{status.accelerator}: {status.accelerator_reason}"),
        ("defined", f"{moment(status.created)} by {status.owner}" + (", adopted" if status.adopted else "")),
        *((key, _shown(value)) for key, value in settings.items()),
        *(("hook", _hook(hook)) for hook in hooks),
    ]
    if status.drift:
        apply = f"'vmimagemanager define --update {status.name}' applies it"
        facts.append(("drift", f"the configuration says otherwise about {', '.join(status.drift)}: {apply}"))
    width = max(len(key) for key, _ in facts)
    return [status.name, *(f"  {key:{width}}  {value}" for key, value in facts)]


def document(status: Status) -> dict[str, Any]:
    """Return a box for JSON."""
    return {
        "name": status.name,
        "state": status.state,
        "image": status.image or None,
        "snapshot": status.snapshot or None,
        "adopted": status.adopted,
        "fork_of": status.fork_of or None,
        "lan": None if status.lan is None else status.lan.to_record(),
        "created": status.created.isoformat(),
        "owner": status.owner,
        "spare": status.spare,
        "free": status.free,
        "leased_by": _holder(status.leased_by),
        "held_by": None if status.held_by is None else hold_document(status.held_by),
        "user": status.user,
        "ssh": None if status.ssh is None else {"host": status.ssh[0], "port": status.ssh[1]},
        "host_key": status.host_key,
        "accelerator": {"name": status.accelerator, "reason": status.accelerator_reason},
        "settings": status.settings.to_record(),
        "drift": list(status.drift),
    }


def hold_document(hold: Hold) -> dict[str, Any]:
    """Return a hold for JSON."""
    return {
        "owner": hold.owner,
        "reason": hold.reason,
        "since": hold.since.isoformat(),
        "until": hold.until.isoformat(),
    }


def operation_lines(operations: Iterable[Operation], *, verbose: bool) -> list[str]:
    """Return the history of a box, the oldest first."""
    shown = []
    for operation in operations:
        facts = ", ".join(f"{key} {_shown(value)}" for key, value in operation.facts.items() if value not in ("", None))
        when = operation.when[:19].replace("T", " ")
        line = f"{when}  {operation.owner}  {operation.verb}  {operation.outcome} in {seconds(operation.seconds)}"
        shown.append(f"{line}  ({facts})" if facts else line)
        if verbose and operation.phases:
            shown.append(f"    {phases(operation.phases)}")
    return shown


def operation_document(operation: Operation) -> dict[str, Any]:
    """Return one operation for JSON."""
    return {
        "when": operation.when,
        "owner": operation.owner,
        "verb": operation.verb,
        "outcome": operation.outcome,
        "seconds": operation.seconds,
        "facts": operation.facts,
        "phases": operation.phases,
    }


def moment(when: datetime) -> str:
    """Return a moment in local time."""
    return when.astimezone().isoformat(sep=" ", timespec="seconds")


def _holder(holder: Holder | None) -> dict[str, Any] | None:
    if holder is None:
        return None
    return {
        "user": holder.user,
        "host": holder.host,
        "pid": holder.pid,
        "since": holder.since,
        "purpose": holder.purpose,
    }


def _lan(lan: Lan) -> str:
    others = [name for name, address in lan.hosts.items() if address != lan.address]
    return f"{lan.address}, in common with {', '.join(others) or 'nobody'}"


def _shown(value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case list() | tuple():
            return ", ".join(map(str, value))
        case _:
            return str(value)


def _hook(hook: Mapping[str, Any]) -> str:
    what = hook.get("script") or " ".join(hook.get("command", ()))
    return f"{hook['moment']}, on the {hook['where']}: {what}"
