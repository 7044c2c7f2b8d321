"""The state directory: where everything lies.

It is bound to one host, because domains, RAM files and device states are: another host is refused.  See
``vmimagemanager-internals(7)`` for the whole tree.
"""

from __future__ import annotations

import grp
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vmimagemanager import records
from vmimagemanager.durable import make_folder, remove_tree, translate_os_errors
from vmimagemanager.errors import StateError

FORMAT = 1
FIRST_DISK = ""  # the name of the disk that stands on the image; others are named as the guest's XML names them
_SHARED_GROUP = "libvirt"


@dataclass(frozen=True, slots=True)
class SnapshotFolder:
    """Where one snapshot's files lie; which of them exist depends on its engine."""

    path: Path

    @property
    def box(self) -> str:
        return self.path.parent.parent.name

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.toml"

    @property
    def definition(self) -> Path:
        return self.path / "domain.xml"

    @property
    def inventory(self) -> Path:
        """What its guest answered when it was asked what is in it."""
        return self.path / "inventory"

    @property
    def proofs(self) -> Path:
        """The folder that keeps what the trials of proofs came to; it may be removed at any time."""
        return self.path / "proofs"

    @property
    def ram(self) -> Path:
        return self.path / "ram"

    @property
    def device_state(self) -> Path:
        return self.path / "state"

    @property
    def saved(self) -> Path:
        return self.path / "saved"

    @property
    def nvram(self) -> Path:
        """The variables of the guest's UEFI firmware."""
        return self.path / "nvram"

    @property
    def tpm(self) -> Path:
        """The folder of the software TPM's state."""
        return self.path / "tpm"


@dataclass(frozen=True, slots=True)
class BoxFolder:
    """Where one box's files lie."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def record(self) -> Path:
        return self.path / "box.toml"

    @property
    def definition(self) -> Path:
        return self.path / "domain.xml"

    @property
    def overlay(self) -> Path:
        return self.overlay_of(FIRST_DISK)

    def overlay_of(self, disk: str) -> Path:
        return self.path / f"{_with_disk('overlay', disk)}.qcow2"

    @property
    def disks(self) -> tuple[str, ...]:
        """The names of the disks that have an overlay, the first one first."""
        found = (path.stem.removeprefix("overlay").removeprefix("-") for path in self.path.glob("overlay*.qcow2"))
        return tuple(sorted(found))

    def seed(self, name: str) -> Path:
        """The small disk from which the guest of a cloud image learns who it is."""
        return self.path / f"seed-{name}.iso"

    @property
    def seeds(self) -> tuple[Path, ...]:
        return tuple(self.path.glob("seed-*.iso"))

    @property
    def standing(self) -> Path:
        """What the box was about to stand on when that was interrupted."""
        return self.path / "standing.toml"

    @property
    def borrowed(self) -> Path:
        """There when the box was off, and is to be off again once whoever uses it has ended."""
        return self.path / "borrowed"

    @property
    def frozen(self) -> Path:
        """There when the guest's file systems are frozen, or may be."""
        return self.path / "frozen"

    @property
    def nvram(self) -> Path:
        """The variables of the guest's UEFI firmware."""
        return self.path / "nvram"

    @property
    def tpm(self) -> Path:
        """The folder of the software TPM's state."""
        return self.path / "tpm"

    @property
    def ram(self) -> Path:
        return self.path / "ram"

    @property
    def keys(self) -> Path:
        return self.path / "keys"

    @property
    def console_log(self) -> Path:
        return self.path / "console.log"

    @property
    def operations_log(self) -> Path:
        return self.path / "operations.log"

    @property
    def adopted(self) -> Path:
        """The definition that an adopted domain had before."""
        return self.path / "adopted.xml"

    @property
    def snapshots(self) -> Path:
        return self.path / "snapshots"

    @property
    def layers(self) -> Path:
        """The frozen disks that snapshots are made of: a snapshot's name can go while others stand on its disk."""
        return self.path / "layers"

    def layer(self, name: str, disk: str = FIRST_DISK) -> Path:
        return self.layers / f"{_with_disk(name, disk)}.qcow2"

    def snapshot(self, name: str) -> SnapshotFolder:
        return SnapshotFolder(self.snapshots / name)


class StateDirectory:
    """The state directory of one user, or of the whole system."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open(cls, path: Path, *, shared: bool) -> StateDirectory:
        """Open the state directory, making it when it is new; ``shared`` ones belong to the group libvirt.

        Raises StateError when it may not be used, or belongs to another host.
        """
        state = cls(path.absolute())
        if not state._record.exists():
            state._make(shared=shared)
        record = records.read(state._record, version=FORMAT)
        if record.get("host") != _host():
            raise StateError(
                f"The state directory '{state.path}' belongs to the host {record.get('host')!r}, not {_host()!r}.",
                hint="Domains and memory cannot be carried over; use another one: --state-dir, or VMIM_STATE_DIR.",
            )
        return state

    def box(self, name: str) -> BoxFolder:
        return BoxFolder(self.boxes / name)

    def box_names(self) -> tuple[str, ...]:
        """Return the names of all boxes, sorted."""
        if not self.boxes.is_dir():
            return ()
        with translate_os_errors("read", self.boxes):
            return tuple(sorted(entry.name for entry in self.boxes.iterdir() if _is_box(entry)))

    @property
    def boxes(self) -> Path:
        return self.path / "boxes"

    @property
    def empty(self) -> Path:
        """Empty disks, one of each size, which the further disks of boxes stand on."""
        return self.path / "empty"

    @property
    def holds(self) -> Path:
        return self.path / "holds"

    @property
    def locks(self) -> Path:
        """Where locks lie: here and not below $XDG_RUNTIME_DIR, so that all who share the state share its locks."""
        return self.path / "locks"

    @property
    def cache(self) -> Path:
        return self.path / "cache"

    @property
    def runs(self) -> Path:
        """What is kept of nightly runs: see `nightly.runs`."""
        return self.path / "runs"

    def private_folder(self, *parts: str) -> Path:
        """Make a folder, and those that it is in, that only those can look into who share the state; return it."""
        mode = 0o2770 if self.path.stat().st_mode & stat.S_ISGID else 0o700
        folder = self.path
        for part in parts:
            folder = make_folder(folder / part, mode=mode)
        return folder

    @property
    def _record(self) -> Path:
        return self.path / "state.toml"

    def _make(self, *, shared: bool) -> None:
        make_folder(self.path, mode=0o755)
        if shared:
            _share(self.path)
        for folder in (self.boxes, self.holds, self.locks, self.cache):
            make_folder(folder)
            if shared:
                _share(folder)
        records.write(self._record, {"host": _host()}, version=FORMAT)


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """Yield a new hidden folder beside ``target``, and remove it if it is still there at the end."""
    staged = make_folder(target.parent / f".{target.name}.{os.getpid()}", mode=0o755)
    try:
        yield staged
    finally:
        remove_tree(staged)


def _with_disk(name: str, disk: str) -> str:
    return f"{name}-{disk}" if disk else name


def _is_box(entry: Path) -> bool:
    return not entry.name.startswith(".") and (entry / "box.toml").is_file()  # a hidden one is still being made


def _host() -> str:
    for path in (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id")):
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text:
            return text
    return socket.gethostname()


def _share(folder: Path) -> None:
    try:
        group = grp.getgrnam(_SHARED_GROUP).gr_gid
    except KeyError:
        return
    with translate_os_errors("share", folder):
        os.chown(folder, -1, group)
        folder.chmod(0o2775)
