"""What an adopted domain lends: files that QEMU's own user has to read, and that go back as they were.

libvirt hands a domain's files to QEMU's user while it runs, and takes them back; our domains do without that (see
`DomainXml.with_owner`), so a disk that only root can read would not do as a base.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from vmimagemanager import disks, records
from vmimagemanager.durable import translate_os_errors
from vmimagemanager.errors import StateError
from vmimagemanager.hypervisor.connection import Hypervisor
from vmimagemanager.hypervisor.domainxml import DomainXml
from vmimagemanager.state import BoxFolder

FORMAT = 1
_RECORD = "borrowed.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Borrowed:
    """A file that QEMU's group may read for now, with the group and the permissions that it had and that it has."""

    path: str
    group: int
    mode: int
    lent_group: int
    lent_mode: int


def files_of(definition: DomainXml) -> tuple[Path, ...]:
    """Return the files that a domain reads: its disks, and a kernel and an initrd that are booted directly."""
    return (*definition.disks(), *(path for path in definition.boot_files if path.is_file()))


def needed(hypervisor: Hypervisor, files: Iterable[Path]) -> tuple[Borrowed, ...]:
    """Return which of the files, and of those that they stand on, QEMU's user cannot read as they are."""
    owner = None if hypervisor.session else hypervisor.host.qemu_owner
    if owner is None:
        return ()
    found: dict[str, Borrowed] = {}
    for path in _with_backing_files(files):
        with translate_os_errors("look at", path):
            status = path.stat()
        if not _readable(status, *owner):
            mode = stat.S_IMODE(status.st_mode)
            lent = mode & ~stat.S_IRWXG | stat.S_IRGRP
            found[str(path)] = Borrowed(
                path=str(path), group=status.st_gid, mode=mode, lent_group=owner[1], lent_mode=lent
            )
    return tuple(found.values())


def borrow(files: Iterable[Borrowed], folder: BoxFolder) -> None:
    """Let QEMU's group read the files, after ``folder`` keeps how they were; raise StateError when we may not."""
    files = tuple(files)
    if not files:
        return
    records.write(folder.path / _RECORD, {"files": [asdict(one) for one in files]}, version=FORMAT)
    for one in files:
        _change(one.path, one.lent_group, one.lent_mode)


def give_back(folder: BoxFolder) -> None:
    """Give what was borrowed its group and permissions back, except where somebody has changed them since."""
    record = folder.path / _RECORD
    if not record.exists():
        return
    try:
        files = [Borrowed(**one) for one in records.read(record, version=FORMAT)["files"]]
    except (KeyError, TypeError) as error:
        raise StateError(f"The record '{record}' is damaged: {error}.") from error
    for one in files:
        try:
            status = Path(one.path).stat()
        except OSError:  # it is gone: nobody misses its permissions
            continue
        if (status.st_gid, stat.S_IMODE(status.st_mode)) == (one.lent_group, one.lent_mode):
            _change(one.path, one.group, one.mode)


def _with_backing_files(files: Iterable[Path]) -> Iterable[Path]:
    for path in files:
        yield from disks.chain(path) if disks.detect_format(path) == "qcow2" else (path,)


def _readable(status: os.stat_result, user: int, group: int) -> bool:
    for is_ours, bit in ((status.st_uid == user, stat.S_IRUSR), (status.st_gid == group, stat.S_IRGRP)):
        if is_ours:
            return bool(status.st_mode & bit)
    return bool(status.st_mode & stat.S_IROTH)


def _change(path: str, group: int, mode: int) -> None:
    with translate_os_errors("change the permissions of", Path(path)):
        os.chown(path, -1, group)
        Path(path).chmod(mode)
