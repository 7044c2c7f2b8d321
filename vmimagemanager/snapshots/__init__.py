"""Snapshots: one protocol, three engines, one name space."""

from vmimagemanager.snapshots.manifest import Manifest
from vmimagemanager.snapshots.store import (
    Restored,
    Taken,
    find,
    listing,
    remove,
    renew_overlay,
    restore,
    settle,
    standing_on,
    sweep,
    take,
)
from vmimagemanager.snapshots.subject import Subject

__all__ = [
    "Manifest",
    "Restored",
    "Subject",
    "Taken",
    "find",
    "listing",
    "remove",
    "renew_overlay",
    "restore",
    "settle",
    "standing_on",
    "sweep",
    "take",
]
