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
    """Put right what a killed process left: half a snapshot is removed, frozen overlays are replaced by new ones, and a
    restore or reset that had replaced a part of what the box stands on replaces all of it.

    Layers that nobody stands on stay: looking for them takes longer than a restore may.
    """
    folder = subject.folder
    for path in _staged(folder):
        remove_tree(path)
    if domain is None:
        remove_tree(folder.ram)
    frozen = layers.frozen_overlays(folder)
    if not frozen and not folder.standing.exists():
        return
    if domain is not None and domain.active:
        domain.end()
    if folder.standing.exists():
        _log.warning("a restore of '%s' was interrupted: it is put back once more", folder.name)
        layers.stand_at_last(subject.hypervisor, folder)
    else:
        _log.warning("a snapshot of '%s' was interrupted: the box goes on from its disk", folder.name)
        layers.put_in_place(layers.new_overlays(subject.hypervisor, folder, frozen), folder)
    sweep(folder)


def leftovers(folder: BoxFolder, *, active: bool) -> tuple[Path, ...]:
    """Return the files and folders of a box that nobody needs; ``active`` says whether its domain is there."""
    found = list(_staged(folder))
    if not active and folder.ram.exists():  # the host went down, and the guest with it
        found.append(folder.ram)
    if folder.standing.exists():
        return (*found, folder.standing)
    frozen = layers.frozen_overlays(folder)
    if frozen:
        return (*found, *(one.path for one in frozen.values()))
    try:
        return (*found, *unused_layers(folder))
    except (ImageError, StateError):  # what is damaged is told by `fsck`, and nothing is removed beside it
        return tuple(found)


def _staged(folder: BoxFolder) -> tuple[Path, ...]:
    half_made = (path for path in folder.snapshots.glob(".*")) if folder.snapshots.is_dir() else ()
    return (*layers.staged(folder), *half_made)
