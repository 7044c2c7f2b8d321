"""The disks under a box: its overlay, which it writes to, on *layers*, which nobody writes to.

A layer is an overlay that was frozen by a second, read-only name in ``layers/``, and then replaced by a new overlay on
top.  An overlay that has two names is therefore one whose snapshot was interrupted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from vmimagemanager import disks
from vmimagemanager.durable import fsync_path, make_folder, remove_tree, translate_os_errors
from vmimagemanager.hypervisor import launch
from vmimagemanager.hypervisor.connection import Hypervisor
from vmimagemanager.state import BoxFolder


def freeze(folder: BoxFolder, layer: str) -> None:
    """Keep the box's overlay under the name ``layer``, too, read-only."""
    make_folder(folder.layers)
    with translate_os_errors("freeze", folder.overlay):
        os.link(folder.overlay, folder.layer(layer))
        folder.overlay.chmod(0o444)
    fsync_path(folder.overlay)
    fsync_path(folder.layers)


def unfreeze(folder: BoxFolder, layer: str) -> None:
    """Undo `freeze`, as long as no other overlay has taken the frozen one's place."""
    if folder.layer(layer).exists():
        folder.overlay.chmod(0o644)
        remove_tree(folder.layer(layer))


def frozen_overlay(folder: BoxFolder) -> str | None:
    """Return the layer that the box's overlay itself is, after an interrupted snapshot, or None."""
    if not folder.overlay.exists() or not folder.layers.is_dir():
        return None
    overlay = folder.overlay.stat()
    if overlay.st_nlink < 2:
        return None
    return next((one.stem for one in folder.layers.iterdir() if one.stat().st_ino == overlay.st_ino), None)


def stand_on(hypervisor: Hypervisor, folder: BoxFolder, backing: Path) -> None:
    """Give a box a new, empty overlay on ``backing``, in one rename; on failure it keeps the old one."""
    put_in_place(new_overlay(hypervisor, folder, backing), folder)


def new_overlay(hypervisor: Hypervisor, folder: BoxFolder, backing: Path) -> Path:
    """Make an empty overlay on ``backing`` beside the box's own, and return it."""
    staged = folder.overlay.with_name(f".{folder.overlay.name}.{os.getpid()}")
    staged.unlink(missing_ok=True)
    disks.create_overlay(staged, backing)
    try:
        launch.give_to_qemu(hypervisor, staged)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    return staged


def put_in_place(staged: Path, folder: BoxFolder) -> None:
    """Make an overlay that `new_overlay` made the box's own."""
    with translate_os_errors("replace", folder.overlay):
        staged.replace(folder.overlay)


def staged_overlays(folder: BoxFolder) -> tuple[Path, ...]:
    """Return the overlays that were made and never put in place."""
    return tuple(folder.path.glob(f".{folder.overlay.name}.*"))


def unused(folder: BoxFolder, in_use: Iterable[str]) -> tuple[Path, ...]:
    """Return the layers that neither the box's overlay nor one of the layers ``in_use`` stands on."""
    if not folder.layers.is_dir():
        return ()
    tops = [folder.layer(layer) for layer in in_use]
    if folder.overlay.exists():
        tops.append(folder.overlay)
    used = {link for top in tops for link in disks.chain(top)}
    return tuple(layer for layer in folder.layers.iterdir() if layer not in used)
