"""Disk images through qemu-img: overlays, inspection, conversion, checking.

The one owner of ``qemu-img``.  An image that somebody handed us is inspected by its own header first
(`refuse_outside_files`): qemu-img would open whatever other file of the host it names.
"""

from __future__ import annotations

import json
import signal
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from vmimagemanager import process
from vmimagemanager.durable import free_space, translate_os_errors
from vmimagemanager.errors import ImageError, SpaceError, ToolError
from vmimagemanager.units import Size

_LIMIT = timedelta(minutes=2)
_LONG_LIMIT = timedelta(hours=1)
_MAGIC = b"QFI\xfb"
_EXTERNAL_DATA = 1 << 2
_MEMORY = 2 << 30  # bytes of address space: 0.4 GiB are used for an image of 16 TiB
_SLACK = 16 << 20
_ALMOST_FULL = 1 << 20
_CLEAN, _CORRUPT, _LEAKS, _NOT_CHECKABLE = 0, 2, 3, 63


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskInfo:
    """What an image says of itself: sizes as the guest sees them and as they are on disk, and the next of its chain."""

    format: str
    virtual_size: Size
    actual_size: Size
    backing: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Backing:
    """What an overlay stands on: a file, and its format, which is never guessed from what a guest may have written."""

    path: Path
    format: str = "qcow2"

    def to_record(self) -> dict[str, str]:
        return {"path": str(self.path), "format": self.format}

    @classmethod
    def from_record(cls, record: Mapping[str, str]) -> Backing:
        return cls(path=Path(record["path"]), format=record["format"])


def create_empty(path: Path, size: Size) -> None:
    """Make ``path`` a qcow2 of ``size`` in which nothing was written; raise SpaceError or ToolError, leaving none."""
    try:
        _qemu_img("create", "-q", "-f", "qcow2", path.absolute(), str(size.bytes), path=path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def create_overlay(path: Path, backing: Path, *, backing_format: str = "qcow2", size: Size | None = None) -> None:
    """Make ``path`` a new, empty qcow2 overlay on ``backing``, as large as it or of ``size``.

    Raises ImageError, SpaceError or ToolError; no overlay is left then.  An existing ``path`` is refused.
    """
    if path.exists():
        raise ImageError(f"The overlay '{path}' exists already.")
    if size is not None and size < (smallest := info(backing, disk_format=backing_format).virtual_size):
        raise ImageError(f"A disk of {size} is too small for the image '{backing.name}', which needs {smallest}.")
    words: list[str | Path] = ["-q", "-f", "qcow2", "-F", backing_format, "-b", backing.absolute(), path.absolute()]
    if size is not None:
        words.append(str(size.bytes))
    try:
        _qemu_img("create", *words, path=backing)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def rename_backing(path: Path, backing: Path) -> None:
    """Write into an overlay that its backing file, whose content is the same, is found at ``backing``."""
    _qemu_img("rebase", "-u", "-q", "-f", "qcow2", "-F", "qcow2", "-b", backing.absolute(), path.absolute(), path=path)


def info(path: Path, *, disk_format: str = "qcow2", foreign: bool = False) -> DiskInfo:
    """Inspect an image, which a running domain may have open; with ``foreign`` one that nobody here made."""
    words: list[str | Path] = ["--force-share", "-f", disk_format, "--output=json", path.absolute()]
    finished = _qemu_img("info", *words, path=path, guard=_guard() if foreign else ())
    facts = json.loads(finished.stdout)
    backing = facts.get("full-backing-filename", facts.get("backing-filename"))
    return DiskInfo(
        format=str(facts["format"]),
        virtual_size=Size(int(facts["virtual-size"])),
        actual_size=Size(int(facts["actual-size"])),
        backing=Path(backing) if backing is not None else None,
    )


def chain(path: Path) -> tuple[Path, ...]:
    """Return an image of our own and all that it stands on, the top first."""
    finished = _qemu_img(
        "info", "--force-share", "--backing-chain", "-f", "qcow2", "--output=json", path.absolute(), path=path
    )
    return tuple(Path(link["filename"]) for link in json.loads(finished.stdout))


def measure(path: Path, *, disk_format: str) -> Size:
    """Return how large a qcow2 of what the guest sees in the image ``path``, which nobody here made, can become."""
    words: list[str | Path] = ["-f", disk_format, "-O", "qcow2", "--output=json", path.absolute()]
    finished = _qemu_img("measure", *words, path=path, limit=_LONG_LIMIT, guard=_guard())
    return Size(int(json.loads(finished.stdout)["required"]))


def convert(
    source: Path,
    target: Path,
    *,
    source_format: str,
    target_format: str = "qcow2",
    options: Sequence[str] = (),
    at_most: Size | None = None,
) -> None:
    """Write what the guest sees in ``source`` to the new image ``target``: no chain, no internal snapshots, sparse.

    ``options`` are further words for ``qemu-img convert``.  With ``at_most``, for images that nobody here made,
    ``target`` becomes no larger.  Raises ImageError, SpaceError or ToolError; no ``target`` is left then.
    """
    words: list[str | Path] = ["-q", "-f", source_format, "-O", target_format, *options]
    words += [source.absolute(), target.absolute()]
    guard = _guard(at_most) if at_most is not None else ()
    try:
        _qemu_img("convert", *words, path=source, limit=_LONG_LIMIT, guard=guard)
    except ImageError as error:
        full = free_space(target.parent).bytes < _ALMOST_FULL
        target.unlink(missing_ok=True)
        if full:  # of a stream-optimised vmdk QEMU 7.2 says "Invalid argument", or aborts
            raise SpaceError(f"The disk became full in '{target.parent}'.", detail=error.detail) from error
        raise
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def copy(source: Path, target: Path) -> None:
    """Copy a disk of any format as it is, by reference where the file system can do that; raise SpaceError."""
    try:
        process.run(["cp", "--reflink=auto", "--sparse=always", "--", source.absolute(), target.absolute()])
    except ToolError as error:
        if "No space left on device" in error.detail:
            raise SpaceError(f"The disk became full in '{target.parent}'.", detail=error.detail) from error
        raise


def convert_above(source: Path, target: Path, base: Path) -> None:
    """Write what an overlay, and those between it and ``base``, hold to the new image ``target``, an overlay on it.

    ``base`` is a qcow2 that ``source``, one of our own, stands on.  Raises ImageError, SpaceError or ToolError; no
    ``target`` is left then.
    """
    below = info(source).backing
    if below is None:
        raise ImageError(f"The disk '{source}' stands on nothing.")
    onto: list[str | Path] = ["-f", "qcow2", "-O", "qcow2", "-F", "qcow2", "-B", below.absolute()]
    try:
        _qemu_img("convert", "-q", *onto, source.absolute(), target.absolute(), path=source, limit=_LONG_LIMIT)
        if below != base:  # only what the top one holds was written
            words: list[str | Path] = ["-q", "-f", "qcow2", "-F", "qcow2", "-b", base.absolute(), target.absolute()]
            _qemu_img("rebase", *words, path=target, limit=_LONG_LIMIT)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def name_backing(path: Path, name: str) -> None:
    """Write into an overlay that what it stands on is called ``name``, in the folder that it will lie in."""
    _qemu_img("rebase", "-u", "-q", "-f", "qcow2", "-F", "qcow2", "-b", name, path.absolute(), path=path)


def check(path: Path, *, foreign: bool = False) -> None:
    """Raise ImageError when the structure of a qcow2 that nobody has open is damaged; leaked clusters are harmless."""
    words: list[str | Path] = ["-q", "-f", "qcow2", path.absolute()]
    guard = _guard() if foreign else ()
    finished = _qemu_img("check", *words, path=path, limit=_LONG_LIMIT, check=False, guard=guard)
    if finished.status in (_CLEAN, _LEAKS, _NOT_CHECKABLE):
        return
    with _image_errors(path):
        raise process.failure(finished)


def detect_format(path: Path) -> str | None:
    """Return 'qcow2' when the file begins like one, else None: a raw image cannot be told from anything else."""
    return "qcow2" if _head(path).startswith(_MAGIC) else None


def refuse_outside_files(path: Path) -> None:
    """Raise ImageError when a qcow2 names a backing or a data file; its header is read without qemu-img."""
    head = _head(path)
    if not head.startswith(_MAGIC) or len(head) < 72:
        raise ImageError(f"'{path}' is not a qcow2 image.")
    version, backing_offset = struct.unpack_from(">IQ", head, 4)
    if backing_offset:
        raise ImageError(
            f"The image '{path}' has a backing file, which is not followed.",
            hint=f"Make it stand alone first: qemu-img convert -O qcow2 '{path}' OUTPUT",
        )
    if version >= 3 and len(head) >= 80 and struct.unpack_from(">Q", head, 72)[0] & _EXTERNAL_DATA:
        raise ImageError(
            f"The image '{path}' keeps its data in another file, which is not followed.",
            hint=f"Make it stand alone first: qemu-img convert -O qcow2 '{path}' OUTPUT",
        )


def _head(path: Path) -> bytes:
    with translate_os_errors("read", path), path.open("rb") as stream:
        return stream.read(104)


def _qemu_img(
    verb: str,
    *words: str | Path,
    path: Path,
    limit: timedelta = _LIMIT,
    check: bool = True,
    guard: Sequence[str] = (),
) -> process.Finished:
    program = process.require("qemu-img", package="qemu-utils")
    with _image_errors(path):
        return process.run([*guard, program, verb, *words], limit=limit, check=check)


def _guard(at_most: Size | None = None) -> Sequence[str]:
    """Return what qemu-img is started by for an image that nobody here made: it may be made to take all there is."""
    written = at_most.bytes + _SLACK if at_most is not None else 0
    limits = {"as": _MEMORY, "cpu": round(_LONG_LIMIT.total_seconds()), "fsize": written, "core": 0}
    return (
        str(process.require("prlimit", package="util-linux")),
        *(f"--{name}={number}" for name, number in limits.items()),
        "--",
    )


@contextmanager
def _image_errors(path: Path) -> Iterator[None]:
    # qemu-img ends with status 1 whatever went wrong: only its words tell a full disk from a damaged image.
    try:
        yield
    except ToolError as error:
        if error.status is None:
            raise
        if "No space left on device" in error.detail:
            raise SpaceError(
                f"The disk is full: qemu-img could not write beside '{path}'.", detail=error.detail
            ) from error
        if not path.exists():
            raise ImageError(f"The disk image '{path}' does not exist.", detail=error.detail) from error
        if error.status in (-signal.SIGXFSZ, -signal.SIGXCPU):
            what = "time" if error.status == -signal.SIGXCPU else "space"
            message = f"The disk image '{path}' is damaged: it takes more {what} than what it says of itself can need."
            raise ImageError(message, detail=error.detail) from error
        raise ImageError(
            f"The disk image '{path}' is damaged, of another format, or may not be read.", detail=error.detail
        ) from error
