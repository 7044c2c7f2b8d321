"""What a box stands on: the disks under it, its firmware's variables, its TPM's state.

A box writes to the overlay of each of its disks; they stand on *layers*, which nobody writes to.  A layer is an overlay
that was frozen by a second, read-only name in ``layers/``, and then replaced by a new overlay on top.  An overlay that
has two names is therefore one whose snapshot was interrupted.

One overlay is replaced by one rename.  Where there is more to be replaced, all of it is written down first, so that
`settle` can do it once more.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vmimagemanager import disks, records
from vmimagemanager.disks import Backing
from vmimagemanager.durable import fsync_path, make_folder, remove_tree, translate_os_errors
from vmimagemanager.errors import StateError
from vmimagemanager.hypervisor import launch
from vmimagemanager.hypervisor.connection import Hypervisor
from vmimagemanager.state import FIRST_DISK, BoxFolder, SnapshotFolder

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Footing:
    """All that a box which is off is to stand on.

    ``disks`` are the names of its disks and what lies under each.  The firmware's variables are to be those of the file
    ``nvram``, and the TPM's state that of the folder ``tpm``; without those they are made anew when the guest starts.
    """

    disks: Mapping[str, Backing]
    nvram: Path | None = None
    tpm: Path | None = None

    def write(self, path: Path) -> None:
        record = {
            "nvram": None if self.nvram is None else str(self.nvram),
            "tpm": None if self.tpm is None else str(self.tpm),
            "disks": {name: one.to_record() for name, one in self.disks.items()},
        }
        records.write(path, record, version=FORMAT)

    @classmethod
    def read(cls, path: Path) -> Footing:
        record = records.read(path, version=FORMAT)
        nvram, tpm = (Path(record[key]) if key in record else None for key in ("nvram", "tpm"))
        try:
            found = {name: Backing.from_record(one) for name, one in record["disks"].items()}
        except (KeyError, TypeError, AttributeError) as error:
            raise StateError(f"The record '{path}' is damaged: {error}.") from error
        return cls(disks=found, nvram=nvram, tpm=tpm)


# -- a snapshot's own --------------------------------------------------------------------------------------------------


def freeze(folder: BoxFolder, layer: str) -> None:
    """Keep the overlays of all of the box's disks under the name ``layer``, too, read-only."""
    make_folder(folder.layers)
    for disk in folder.disks:
        overlay = folder.overlay_of(disk)
        with translate_os_errors("freeze", overlay):
            os.link(overlay, folder.layer(layer, disk))
            overlay.chmod(0o444)
        fsync_path(overlay)
    fsync_path(folder.layers)


def unfreeze(folder: BoxFolder, layer: str) -> None:
    """Undo `freeze`, be it half done, as long as no other overlay has taken a frozen one's place."""
    for disk in folder.disks:
        if folder.layer(layer, disk).exists():
            folder.overlay_of(disk).chmod(0o644)
            remove_tree(folder.layer(layer, disk))


def frozen_overlays(folder: BoxFolder) -> dict[str, Backing]:
    """Return the layers that overlays of the box themselves are, after an interrupted snapshot, by their disks."""
    if not folder.layers.is_dir():
        return {}
    by_inode: dict[int, Path] = {}
    found: dict[str, Backing] = {}
    for disk in folder.disks:
        overlay = folder.overlay_of(disk).stat()
        if overlay.st_nlink > 1:
            by_inode = by_inode or {one.stat().st_ino: one for one in folder.layers.iterdir()}
            if overlay.st_ino in by_inode:
                found[disk] = Backing(path=by_inode[overlay.st_ino])
    return found


def keep_firmware(folder: BoxFolder, stage: SnapshotFolder) -> None:
    """Copy the firmware's variables and the TPM's state, as far as there are any, into a snapshot."""
    if folder.nvram.exists():
        _copy_file(folder.nvram, stage.nvram)
    if folder.tpm.exists():
        _copy_folder(folder.tpm, stage.tpm)


def layers_of(folder: BoxFolder, layer: str, names: Iterable[str]) -> dict[str, Backing]:
    """Return what the box's disks of these names were frozen to."""
    return {name: Backing(path=folder.layer(layer, name)) for name in names}


# -- the box's own -----------------------------------------------------------------------------------------------------


def stand_on(
    hypervisor: Hypervisor, folder: BoxFolder, footing: Footing, successors: Mapping[str, Path] | None = None
) -> None:
    """Give a box that is off new, empty overlays on a footing: ``successors``, where `new_overlays` made them before.

    On failure it keeps the old ones, or `settle` has to be called once more.
    """
    staged = new_overlays(hypervisor, folder, footing.disks) if successors is None else successors
    gone = set(folder.disks) - set(footing.disks)
    alone = set(footing.disks) == {FIRST_DISK} and not gone
    if not alone or footing.nvram or footing.tpm or folder.nvram.exists() or folder.tpm.exists():
        footing.write(folder.standing)
    put_in_place(staged, folder)
    for disk in gone:
        remove_tree(folder.overlay_of(disk))
    _lay_nvram(hypervisor, folder, footing.nvram)
    _lay_tpm(hypervisor, folder, footing.tpm)
    remove_tree(folder.standing)


def add_disks(hypervisor: Hypervisor, folder: BoxFolder, backings: Mapping[str, Backing]) -> None:
    """Give a box an overlay for each disk that it has none for."""
    missing = {disk: backing for disk, backing in backings.items() if disk not in folder.disks}
    put_in_place(new_overlays(hypervisor, folder, missing), folder)


def stand_at_last(hypervisor: Hypervisor, folder: BoxFolder) -> bool:
    """Do what an interrupted `stand_on` did not finish; return whether there was anything."""
    if not folder.standing.exists():
        return False
    stand_on(hypervisor, folder, Footing.read(folder.standing))
    return True


def new_overlays(hypervisor: Hypervisor, folder: BoxFolder, backings: Mapping[str, Backing]) -> dict[str, Path]:
    """Make empty overlays beside the box's own, and return them by their disks; on failure none is left."""
    staged: dict[str, Path] = {}
    try:
        for disk, backing in backings.items():
            overlay = folder.overlay_of(disk)
            staged[disk] = overlay.with_name(f".{overlay.name}.{os.getpid()}")
            staged[disk].unlink(missing_ok=True)
            disks.create_overlay(staged[disk], backing.path, backing_format=backing.format)
            launch.give_to_qemu(hypervisor, staged[disk])
    except BaseException:
        for path in staged.values():
            path.unlink(missing_ok=True)
        raise
    return staged


def put_in_place(staged: Mapping[str, Path], folder: BoxFolder) -> None:
    """Make overlays that `new_overlays` made the box's own."""
    for disk, path in staged.items():
        with translate_os_errors("replace", folder.overlay_of(disk)):
            path.replace(folder.overlay_of(disk))


def staged(folder: BoxFolder) -> tuple[Path, ...]:
    """Return what was made to stand on and never put in place."""
    patterns = (".overlay*.qcow2.*", f".{folder.nvram.name}.*", f".{folder.standing.name}.*")
    return tuple(path for pattern in patterns for path in folder.path.glob(pattern))


def unused(folder: BoxFolder, in_use: Iterable[Path]) -> tuple[Path, ...]:
    """Return the layers that neither the box's overlays nor one of the layers ``in_use`` stands on."""
    if not folder.layers.is_dir():
        return ()
    tops = [*in_use, *map(folder.overlay_of, folder.disks)]
    used = {link for top in tops for link in disks.chain(top)}
    return tuple(layer for layer in folder.layers.iterdir() if layer not in used)


def _lay_nvram(hypervisor: Hypervisor, folder: BoxFolder, source: Path | None) -> None:
    if source is None:
        remove_tree(folder.nvram)
        return
    staged = folder.nvram.with_name(f".{folder.nvram.name}.{os.getpid()}")
    _copy_file(source, staged)
    launch.give_to_qemu(hypervisor, staged)
    with translate_os_errors("replace", folder.nvram):
        staged.replace(folder.nvram)


def _lay_tpm(hypervisor: Hypervisor, folder: BoxFolder, source: Path | None) -> None:
    remove_tree(folder.tpm)
    if source is not None:
        _copy_folder(source, folder.tpm)
        for path in (folder.tpm, *folder.tpm.iterdir()):
            launch.give_to_qemu(hypervisor, path)


def _copy_file(source: Path, target: Path) -> None:
    with translate_os_errors("copy", source):
        shutil.copyfile(source, target)
        target.chmod(0o600)
    fsync_path(target)


def _copy_folder(source: Path, target: Path) -> None:
    make_folder(target, mode=0o700)
    with translate_os_errors("read", source):
        for path in source.iterdir():
            _copy_file(path, target / path.name)
    fsync_path(target)
