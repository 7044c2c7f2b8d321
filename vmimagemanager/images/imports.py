"""What an import is to be, and its file: copied from the user's, or fetched and compared with what is expected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vmimagemanager.images import checksums, download, intake
from vmimagemanager.images.catalogue import DISK_SIZE
from vmimagemanager.images.download import Expected
from vmimagemanager.progress import Progress
from vmimagemanager.units import Size


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """How something is taken in.

    ``format`` is one of `intake.FORMATS`, or None for what the file begins like.  ``size`` (of the file, in bytes),
    ``digests`` (by algorithm) and the list that ``checksums`` leads to are what the file has to be; with ``keep`` what
    was fetched stays in the cache.  ``disk_size`` is that of a disk that is made of a root file system.  ``kernel`` and
    ``initrd`` are files of the host, and win over those in the archive.  The rest is what the manifest says.
    """

    format: str | None = None
    size: Size | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    checksums: str | None = None
    keep: bool = False
    disk_size: Size = DISK_SIZE
    kernel: Path | None = None
    initrd: Path | None = None
    command_line: str = ""
    firmware: str = "bios"
    agent: bool = False
    user: str = "root"
    description: str = ""


def named(source: str | Path) -> str:
    """Return what messages call a source."""
    return download.shown(source) if isinstance(source, str) and download.is_address(source) else str(source)


def brought(source: str | Path, stage: Path, cache: Path, wanted: Import, *, progress: Progress) -> Path:
    """Copy or fetch a source into the stage, and return it; raise ImageError when it is not what is expected."""
    expected = Expected(size=wanted.size, digests=_digests(source, wanted, progress))
    if isinstance(source, str) and download.is_address(source):
        return download.fetch(source, stage, cache, expected=expected, keep=wanted.keep, progress=progress)
    progress("copying the file", 0.0)
    copy = intake.copied(Path(source), stage)
    expected.refuse_other(copy, str(source))
    return copy


def _digests(source: str | Path, wanted: Import, progress: Progress) -> Mapping[str, str]:
    if wanted.checksums is None:
        return wanted.digests
    progress("reading the checksums", 0.0)
    if download.is_address(wanted.checksums):
        content = download.document(wanted.checksums)
    else:
        content = intake.small_file(Path(wanted.checksums))
    name = download.file_name(source) if isinstance(source, str) and download.is_address(source) else Path(source).name
    found = checksums.find(content, name, source=named(wanted.checksums))
    return {**wanted.digests, found.algorithm: found.digest}
