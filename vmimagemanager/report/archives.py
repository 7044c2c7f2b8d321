"""Archives of snapshots that were written and read, as lines for people and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmimagemanager.report.deeds import seconds

if TYPE_CHECKING:
    from vmimagemanager.boxes.exporting import Exported
    from vmimagemanager.boxes.importing import Imported


def exported_line(address: str, exported: Exported) -> str:
    """Return what was exported, in a line."""
    return f"{address}: exported {exported.engine} in {seconds(exported.seconds)}, {exported.size.human()}"


def exported_document(address: str, exported: Exported) -> dict[str, Any]:
    """Return what was exported for JSON, its size in bytes."""
    return {
        "address": address,
        "file": str(exported.path),
        "engine": exported.engine.value,
        "bytes": exported.size.bytes,
        "seconds": round(exported.seconds, 4),
    }


def imported_line(imported: Imported) -> str:
    """Return what was imported, in a line."""
    return f"{imported.address}: imported {imported.engine} in {seconds(imported.seconds)}, on {imported.image}"


def imported_document(imported: Imported) -> dict[str, Any]:
    """Return what was imported for JSON."""
    return {
        "address": str(imported.address),
        "box": imported.box,
        "snapshot": imported.snapshot,
        "engine": imported.engine.value,
        "image": imported.image,
        "seconds": round(imported.seconds, 4),
    }
