"""Which snapshots a box has, and the tree that they make: each stands on the disk of the one that it was taken on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vmimagemanager import disks
from vmimagemanager.durable import occupied, remove_tree, translate_os_errors
from vmimagemanager.errors import ImageError, SnapshotError
from vmimagemanager.snapshots import layers
from vmimagemanager.snapshots.manifest import Manifest
from vmimagemanager.state import BoxFolder
from vmimagemanager.units import Size


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One snapshot in its box's tree: the one that it stands on (or an empty text), and what it takes on the disk.

    ``own`` is what its removal would free; ``shared`` is what it needs of the disks below it, or that others need, too.
    """

    manifest: Manifest
    parent: str
    own: Size
    shared: Size

    @property
    def name(self) -> str:
        return self.manifest.name


def find(folder: BoxFolder, name: str) -> Manifest:
    """Return a snapshot; raise SnapshotError, with the names that there are, when there is none of that name."""
    manifest = find_or_none(folder, name)
    if manifest is None:
        existing = [one.name for one in listing(folder)]
        has = f"; it has {', '.join(existing)}" if existing else ""
        verb = "restore" if existing else "snapshot"
        hint = f"vmimagemanager {verb} {folder.name}@{existing[-1] if existing else name}"
        raise SnapshotError(f"The box '{folder.name}' has no snapshot '{name}'{has}.", hint=hint)
    return manifest


def find_or_none(folder: BoxFolder, name: str) -> Manifest | None:
    snapshot = folder.snapshot(name)
    return Manifest.read(snapshot) if snapshot.manifest.is_file() else None


def names(folder: BoxFolder) -> tuple[str, ...]:
    """Return the names of a box's snapshots, damaged ones included."""
    if not folder.snapshots.is_dir():
        return ()
    with translate_os_errors("read", folder.snapshots):
        return tuple(sorted(entry.name for entry in folder.snapshots.iterdir() if not entry.name.startswith(".")))


def listing(folder: BoxFolder) -> tuple[Manifest, ...]:
    """Return a box's snapshots, the oldest first."""
    found = [manifest for name in names(folder) if (manifest := find_or_none(folder, name)) is not None]
    return tuple(sorted(found, key=lambda manifest: (manifest.created, manifest.name)))


def tree(folder: BoxFolder) -> tuple[Snapshot, ...]:
    """Return a box's snapshots, each before those that stand on it, and those of one parent by their age."""
    manifests = listing(folder)
    by_layer = {folder.layer(manifest.layer): manifest.name for manifest in manifests}
    chains = {manifest.name: _chains(_layers(folder, manifest)) for manifest in manifests}
    users = Counter(
        link for links in (*chains.values(), _chains(map(folder.overlay_of, folder.disks))) for link in links
    )
    children: dict[str, list[Snapshot]] = {}
    for manifest in manifests:
        links, frozen = chains[manifest.name], _layers(folder, manifest)
        parent = next((by_layer[link] for link in links[1:] if link in by_layer), "")
        its_own = {layer for layer in frozen if users[layer] == 1}
        own = sum(occupied(path).bytes for path in (folder.snapshot(manifest.name).path, *its_own))
        shared = sum(occupied(link).bytes for link in set(links) - its_own)
        snapshot = Snapshot(manifest=manifest, parent=parent, own=Size(own), shared=Size(shared))
        children.setdefault(parent, []).append(snapshot)

    def below_of(name: str) -> tuple[Snapshot, ...]:
        return tuple(one for child in children.get(name, ()) for one in (child, *below_of(child.name)))

    return below_of("")


def standing_on(folder: BoxFolder) -> str:
    """Return the name of the snapshot that the box's disk stands on, or an empty text."""
    backing = disks.info(folder.overlay).backing
    for manifest in listing(folder):
        if backing == folder.layer(manifest.layer):
            return manifest.name
    return ""


def unused_layers(folder: BoxFolder) -> tuple[Path, ...]:
    """Return the layers that neither the box nor a snapshot stands on."""
    return layers.unused(folder, [layer for manifest in listing(folder) for layer in _layers(folder, manifest)])


def sweep(folder: BoxFolder) -> None:
    """Remove the layers that neither the box nor a snapshot stands on."""
    for layer in unused_layers(folder):
        remove_tree(layer)


def _layers(folder: BoxFolder, manifest: Manifest) -> tuple[Path, ...]:
    return tuple(folder.layer(manifest.layer, disk) for disk in manifest.disks)


def _chains(tops: Iterable[Path]) -> tuple[Path, ...]:
    return tuple(link for top in tops for link in _chain(top))


def _chain(top: Path) -> tuple[Path, ...]:
    try:
        return disks.chain(top)
    except ImageError:  # a damaged disk is told by whatever needs it
        return (top,)
