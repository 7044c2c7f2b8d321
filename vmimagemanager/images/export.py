"""Export: the disk of an image as one file that other programs read."""

from __future__ import annotations

import hashlib
import logging
import os
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vmimagemanager import disks
from vmimagemanager.deadline import Stopwatch
from vmimagemanager.durable import fsync_path, occupied, remove_tree, require_space, translate_os_errors
from vmimagemanager.errors import StateError, UsageError
from vmimagemanager.images.manifest import Image
from vmimagemanager.images.store import ImageStore
from vmimagemanager.progress import Progress
from vmimagemanager.state import staged_folder
from vmimagemanager.units import Size

OVA = "ova"
_STREAM = ("-o", "subformat=streamOptimized,adapter_type=lsilogic")
# The words for qemu-img convert.
_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "qcow2": ("-c",),
    "raw": (),
    "vmdk": _STREAM,
    "vdi": (),
    "vhdx": ("-o", "subformat=dynamic"),
}
FORMATS = (*_OPTIONS, OVA)
_SUFFIXES = {"img": "raw", **{name: name for name in FORMATS}}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A file that was written: of which generation, in which format, its size, and the seconds that it took."""

    address: str
    path: Path
    format: str
    size: Size
    seconds: float


def format_of(target: Path) -> str:
    """Return the format that a file's suffix stands for; raise UsageError when it stands for none."""
    found = _SUFFIXES.get(target.suffix.removeprefix(".").lower())
    if found is None:
        raise UsageError(
            f"The suffix of '{target.name}' is not that of a format: expected one of .{', .'.join(_SUFFIXES)}.",
            hint=f"Or name the format: --format {FORMATS[0]}",
        )
    return found


def export(store: ImageStore, image: Image, target: Path, *, file_format: str | None, progress: Progress) -> Exported:
    """Write the disk of an image to the new file ``target``, in the format of its suffix unless one is named.

    What is written was read and compared with its digests before.  Raises UsageError, StateError when there is such a
    file, ImageError for an image that was changed, SpaceError; no file is left then.
    """
    watch = Stopwatch()
    target = target.absolute()
    chosen = file_format or format_of(target)
    if chosen not in FORMATS:
        raise UsageError(f"'{chosen}' is not a format of an export: expected one of {', '.join(FORMATS)}.")
    if target.exists() or target.is_symlink():
        raise StateError(f"There is a file '{target}' already.", hint="Choose another name, or remove it.")
    if not target.parent.is_dir():
        raise StateError(f"There is no folder '{target.parent}'.", hint=f"mkdir -p '{target.parent}'")
    links = [image.disk, *map(store.blob, image.parents)]
    needed = sum(occupied(link).bytes for link in links) * (2 if chosen == OVA else 1)
    require_space(target.parent, Size(needed), purpose=f"The export '{target.name}'")
    progress("comparing the image with its digests", 0.0)
    store.verify(image)
    _sweep(target)
    with staged_folder(target) as own:
        progress(f"writing {chosen}", 0.3)
        made = own / target.name
        if chosen == OVA:
            _write_ova(image, made, own, progress)
        else:
            _convert(image, made, chosen)
        _put_in_place(made, target)
    progress("done", 1.0)
    _log.info("exported '%s' to '%s' in %.1f s", image.address, target, watch.total)
    size = Size(target.stat().st_size)
    return Exported(address=image.address, path=target, format=chosen, size=size, seconds=watch.total)


def _convert(image: Image, target: Path, file_format: str) -> None:
    disks.convert(
        image.disk,
        target,
        source_format=image.disk_format,
        target_format=file_format,
        options=_OPTIONS[file_format],
    )


def _write_ova(image: Image, target: Path, own: Path, progress: Progress) -> None:
    """Write an OVA: a tar of description, digests and disk, in the order that its standard (DSP0243) has."""
    from vmimagemanager.images import ovf

    disk = own / f"{image.name}-disk1.vmdk"
    _convert(image, disk, "vmdk")
    description = ovf.describe(image, disk.name, Size(disk.stat().st_size))
    progress("packing the ova", 0.8)
    name = f"{image.name}.ovf"
    # The standard asks for ustar, which cannot hold a file of 8 GiB.
    kind = tarfile.USTAR_FORMAT if disk.stat().st_size < 8 << 30 else tarfile.GNU_FORMAT
    with (
        translate_os_errors("write", target),
        disk.open("rb") as stream,
        tarfile.open(target, "w", format=kind) as archive,
    ):
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        digests = f"SHA256({name})= {hashlib.sha256(description).hexdigest()}\nSHA256({disk.name})= {digest}\n"
        _add(archive, name, description, image)
        _add(archive, f"{image.name}.mf", digests.encode(), image)
        stream.seek(0)
        archive.addfile(_member(disk.name, disk.stat().st_size, image), stream)
    remove_tree(disk)


def _add(archive: tarfile.TarFile, name: str, content: bytes, image: Image) -> None:
    from io import BytesIO

    archive.addfile(_member(name, len(content), image), BytesIO(content))


def _member(name: str, size: int, image: Image) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, 0o644, int(image.created.timestamp())
    return member


def _put_in_place(made: Path, target: Path) -> None:
    with translate_os_errors("write", target):
        made.chmod(0o666 & ~_umask())
        fsync_path(made)
        os.link(made, target)  # never in another file's place
        fsync_path(target.parent)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sweep(target: Path) -> None:
    """Remove what an export to this file left whose process was killed."""
    for folder in target.parent.glob(f".{target.name}.*"):
        owner = folder.name.rpartition(".")[2]
        if owner.isdecimal() and folder.is_dir() and not Path("/proc", owner).exists():
            remove_tree(folder)
