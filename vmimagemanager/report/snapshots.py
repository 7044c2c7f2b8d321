"""The snapshots of boxes, as rows of a table and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmimagemanager.snapshots import Snapshot

HEADER = ("SNAPSHOT", "ENGINE", "STATE", "RAM", "OWN", "SHARED", "AGE", "BY", "DESCRIPTION")
_UNITS = (("day", timedelta(days=1)), ("hour", timedelta(hours=1)), ("minute", timedelta(minutes=1)))


def rows(box: str, tree: Sequence[Snapshot]) -> Iterable[tuple[str, ...]]:
    """Return the cells of a box's snapshots, as `HEADER` names them; the first of each row draws the tree."""
    now = datetime.now(UTC)
    for snapshot, branch in zip(tree, _branches(tree), strict=True):
        manifest = snapshot.manifest
        yield (
            f"{branch}{box}@{snapshot.name}",
            manifest.engine.value,
            "running" if manifest.running else "off",
            str(manifest.ram),
            snapshot.own.human(),
            snapshot.shared.human(),
            age(now - manifest.created),
            manifest.owner,
            manifest.description,
        )


def age(length: timedelta) -> str:
    """Return how long ago something was, in the largest unit that it fills: ``3 hours``."""
    for unit, size in _UNITS:
        if length >= size:
            number = length // size
            return f"{number} {unit}{'s' if number > 1 else ''}"
    return "now"


def document(box: str, snapshot: Snapshot) -> dict[str, Any]:
    """Return a snapshot for JSON, sizes in bytes; the value in its memory stays a secret."""
    manifest = snapshot.manifest
    return {
        "address": f"{box}@{snapshot.name}",
        "box": box,
        "name": snapshot.name,
        "parent": snapshot.parent or None,
        "engine": manifest.engine.value,
        "running": manifest.running,
        "created": manifest.created.isoformat(),
        "owner": manifest.owner,
        "description": manifest.description,
        "own": snapshot.own.bytes,
        "shared": snapshot.shared.bytes,
        "ram": manifest.ram.bytes,
        **{key: getattr(manifest.platform, key) for key in ("architecture", "accelerator", "machine", "cpu")},
        "libvirt": manifest.platform.libvirt,
        "qemu": manifest.platform.qemu,
        "why_not": list(manifest.why_not),
    }


def _branches(tree: Sequence[Snapshot]) -> Iterable[str]:
    last = {snapshot.parent: snapshot.name for snapshot in tree}  # the last child of each parent
    parents = {snapshot.name: snapshot.parent for snapshot in tree}
    for snapshot in tree:
        if not snapshot.parent:
            yield ""
            continue
        branch = "└─ " if last[snapshot.parent] == snapshot.name else "├─ "
        above = snapshot.parent
        while parents[above]:
            branch = ("   " if last[parents[above]] == above else "│  ") + branch
            above = parents[above]
        yield branch
