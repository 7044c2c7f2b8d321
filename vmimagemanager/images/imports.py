"""What an import is to be, and its file: copied from the user's, or fetched and compared with what is expected."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vmimagemanager.images import checksums, download, intake, signature
from vmimagemanager.images.catalogue import DISK_SIZE
from vmimagemanager.images.download import Expected
from vmimagemanager.images.signature import Standing
from vmimagemanager.progress import Progress
from vmimagemanager.units import Size

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """How a list of checksums is signed: the address of its signature, or None for a list that is signed in clear text.

    ``key`` is the fingerprint of who signs, or empty, and ``keyrings`` are files of the host that may hold the key.
    """

    signature: str | None
    key: str = ""
    keyrings: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """How something is taken in.

    ``format`` is one of `intake.FORMATS`, or None for what the file begins like.  ``size`` (of the file, in bytes),
    ``digests`` (by algorithm) and the list that ``checksums`` leads to are what the file has to be; with ``keep`` what
    was fetched stays in the cache.  ``disk_size`` is that of a disk that is made of a root file system.  ``kernel`` and
    ``initrd`` are files of the host, and win over those in the archive.  ``signed`` says how the list is signed.  The
    rest is what the manifest says.
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
    seed: str = ""
    signed: Signed | None = None
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
    if wanted.signed is not None:
        _verify(content, wanted.signed, named(wanted.checksums))
    found = checksums.find(content, name, source=named(wanted.checksums))
    return {**wanted.digests, found.algorithm: found.digest}


def _verify(content: bytes, signed: Signed, source: str) -> None:
    """Raise ImageError when a list is not signed as it says; where nobody can tell, that is said and no error."""
    detached = None if signed.signature is None else download.document(signed.signature)
    verdict = signature.verify(content, detached, keyrings=signed.keyrings, key=signed.key, source=source)
    if verdict.standing is Standing.GOOD:
        _log.info("'%s' is signed by the key %s", source, verdict.key)
    else:
        _log.warning("The signature of '%s' is unverified: %s", source, verdict.reason)
