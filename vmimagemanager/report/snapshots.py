"""The snapshots of boxes, as rows of a table and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmimagemanager.report.boxes import moment

if TYPE_CHECKING:
    from vmimagemanager.snapshots import Manifest

HEADER = ("SNAPSHOT", "ENGINE", "STATE", "RAM", "TAKEN", "BY", "PARENT", "DESCRIPTION")


def row(box: str, snapshot: Manifest) -> tuple[str, ...]:
    """Return the cells of a snapshot, as `HEADER` names them."""
    return (
        f"{box}@{snapshot.name}",
        snapshot.engine.value,
        "running" if snapshot.running else "off",
        str(snapshot.ram),
        moment(snapshot.created),
        snapshot.owner,
        snapshot.parent or "-",
        snapshot.description,
    )


def document(box: str, snapshot: Manifest) -> dict[str, Any]:
    """Return a snapshot for JSON; the value in its memory stays a secret."""
    return {
        "address": f"{box}@{snapshot.name}",
        "box": box,
        "name": snapshot.name,
        "engine": snapshot.engine.value,
        "running": snapshot.running,
        "created": snapshot.created.isoformat(),
        "owner": snapshot.owner,
        "description": snapshot.description,
        "parent": snapshot.parent or None,
        "ram": snapshot.ram.bytes,
        "machine": snapshot.machine,
        "libvirt": snapshot.libvirt,
        "qemu": snapshot.qemu,
        "why_not": list(snapshot.why_not),
    }
