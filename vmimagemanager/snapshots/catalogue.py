"""Which snapshots a box has."""

from __future__ import annotations

from vmimagemanager import disks
from vmimagemanager.durable import translate_os_errors
from vmimagemanager.errors import SnapshotError
from vmimagemanager.snapshots import layers
from vmimagemanager.snapshots.manifest import Manifest
from vmimagemanager.state import BoxFolder


def find(folder: BoxFolder, name: str) -> Manifest:
    """Return a snapshot; raise SnapshotError, with the names that there are, when there is none of that name."""
    manifest = find_or_none(folder, name)
    if manifest is None:
        names = [one.name for one in listing(folder)]
        has = f"; it has {', '.join(names)}" if names else ""
        verb = "restore" if names else "snapshot"
        hint = f"vmimagemanager {verb} {folder.name}@{names[-1] if names else name}"
        raise SnapshotError(f"The box '{folder.name}' has no snapshot '{name}'{has}.", hint=hint)
    return manifest


def find_or_none(folder: BoxFolder, name: str) -> Manifest | None:
    snapshot = folder.snapshot(name)
    return Manifest.read(snapshot) if snapshot.manifest.is_file() else None


def listing(folder: BoxFolder) -> tuple[Manifest, ...]:
    """Return a box's snapshots, the oldest first."""
    if not folder.snapshots.is_dir():
        return ()
    with translate_os_errors("read", folder.snapshots):
        names = [entry.name for entry in folder.snapshots.iterdir() if not entry.name.startswith(".")]
    found = [manifest for name in names if (manifest := find_or_none(folder, name)) is not None]
    return tuple(sorted(found, key=lambda manifest: (manifest.created, manifest.name)))


def standing_on(folder: BoxFolder) -> str:
    """Return the name of the snapshot that the box's disk stands on, or an empty text."""
    backing = disks.info(folder.overlay).backing
    for manifest in listing(folder):
        if backing == folder.layer(manifest.layer):
            return manifest.name
    return ""


def sweep(folder: BoxFolder) -> None:
    """Remove the layers that neither the box nor a snapshot stands on."""
    layers.remove_unused(folder, [manifest.layer for manifest in listing(folder)])
