"""Snapshots: one protocol, three engines, one name space."""

from vmimagemanager.snapshots.catalogue import Snapshot, find, listing, names, standing_on, sweep, tree
from vmimagemanager.snapshots.contents import keep_inventory, kept_inventory
from vmimagemanager.snapshots.fitness import hindrances, require_platform, require_whole
from vmimagemanager.snapshots.interrupted import leftovers, settle
from vmimagemanager.snapshots.layers import Footing, add_disks, new_overlays, put_in_place, stand_on
from vmimagemanager.snapshots.manifest import Manifest
from vmimagemanager.snapshots.store import (
    Restored,
    Taken,
    footing_of,
    remove,
    require_engine,
    restore,
    take,
)
from vmimagemanager.snapshots.subject import STATE_LIMIT, Subject

__all__ = [
    "STATE_LIMIT",
    "Footing",
    "Manifest",
    "Restored",
    "Snapshot",
    "Subject",
    "Taken",
    "add_disks",
    "find",
    "footing_of",
    "hindrances",
    "keep_inventory",
    "kept_inventory",
    "leftovers",
    "listing",
    "names",
    "new_overlays",
    "put_in_place",
    "remove",
    "require_engine",
    "require_platform",
    "require_whole",
    "restore",
    "settle",
    "stand_on",
    "standing_on",
    "sweep",
    "take",
    "tree",
]
