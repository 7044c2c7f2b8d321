"""Snapshots: one protocol, three engines, one name space."""

from vmimagemanager.snapshots.catalogue import Snapshot, find, listing, standing_on, sweep, tree
from vmimagemanager.snapshots.layers import stand_on
from vmimagemanager.snapshots.manifest import Manifest
from vmimagemanager.snapshots.store import Restored, Taken, remove, restore, settle, take
from vmimagemanager.snapshots.subject import STATE_LIMIT, Subject

__all__ = [
    "STATE_LIMIT",
    "Manifest",
    "Restored",
    "Snapshot",
    "Subject",
    "Taken",
    "find",
    "listing",
    "remove",
    "restore",
    "settle",
    "stand_on",
    "standing_on",
    "sweep",
    "take",
    "tree",
]
