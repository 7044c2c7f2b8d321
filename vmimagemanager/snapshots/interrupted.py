"""What killed processes left in a box's folder: found, and put right."""

from __future__ import annotations

import logging
from pathlib import Path

from vmimagemanager.durable import remove_tree
from vmimagemanager.errors import ImageError, StateError
from vmimagemanager.hypervisor.domain import Domain
from vmimagemanager.snapshots import layers
from vmimagemanager.snapshots.catalogue import sweep, unused_layers
from vmimagemanager.snapshots.subject import Subject
from vmimagemanager.state import BoxFolder

_log = logging.getLogger(__name__)


def settle(subject: Subject, domain: Domain | None) -> None:
    """Put right what a killed process left: half a snapshot is removed, a frozen overlay replaced by a new one.

    Layers that nobody stands on stay: looking for them takes longer than a restore may.
    """
    folder = subject.folder
    for path in _staged(folder):
        remove_tree(path)
    if domain is None:
        remove_tree(folder.ram)
    layer = layers.frozen_overlay(folder)
    if layer is not None:
        _log.warning("a snapshot of '%s' was interrupted: the box goes on from its disk", folder.name)
        if domain is not None and domain.active:
            domain.end()
        layers.stand_on(subject.hypervisor, folder, folder.layer(layer))
        sweep(folder)


def leftovers(folder: BoxFolder, *, active: bool) -> tuple[Path, ...]:
    """Return the files and folders of a box that nobody needs; ``active`` says whether its domain is there."""
    found = list(_staged(folder))
    if not active and folder.ram.exists():  # the host went down, and the guest with it
        found.append(folder.ram)
    layer = layers.frozen_overlay(folder)
    if layer is not None:
        return (*found, folder.layer(layer))
    try:
        return (*found, *unused_layers(folder))
    except (ImageError, StateError):  # what is damaged is told by `fsck`, and nothing is removed beside it
        return tuple(found)


def _staged(folder: BoxFolder) -> tuple[Path, ...]:
    half_made = (path for path in folder.snapshots.glob(".*")) if folder.snapshots.is_dir() else ()
    return (*layers.staged_overlays(folder), *half_made)
