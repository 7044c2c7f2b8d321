"""Taking out of a disk what tells its guest from every other, so that an image made of it is nobody's.

debugfs writes to the disk as `images.look` reads it: a program of its own, through QEMU's storage daemon, with nothing
mounted.  What is removed is overwritten first, because a block that is free keeps its content, and the image would hand
it out.  A journal that was not replayed is replayed before anything, or the next mount would bring all of it back.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path

from vmimagemanager.errors import ImageError, ToolError
from vmimagemanager.images import look
from vmimagemanager.images.look import FileSystem, Found

MACHINE_ID = "/etc/machine-id"
HOST_KEYS = "/etc/ssh"
CLOUD = "/var/lib/cloud"
_USERS = "/etc/passwd"
_SECRETS = (
    "/var/lib/dbus/machine-id",  # a link where systemd made it
    "/var/lib/systemd/credential.secret",
    "/var/lib/systemd/random-seed",
    "/var/lib/urandom/random-seed",
)
_HOST_KEY = re.compile(r"ssh_host_[A-Za-z0-9_.-]+", re.ASCII)
_PLAIN = re.compile(r"(?:/[A-Za-z0-9_.+@:,=~-]+)+", re.ASCII)  # one word for debugfs, and no option
_OURS = re.compile(rb" vmimagemanager-[A-Za-z0-9._-]+$")
_NEWLINE = 10
_DEEPEST = 12
_LARGEST = 1 << 20


def take_out(disk: Path, work: Path, *, disk_format: str, login_keys: Collection[str]) -> tuple[str, ...]:
    """Make a disk that nobody has open nobody's, and return the paths of what was removed or emptied, sorted.

    These go: host keys of SSH, the lines of ``authorized_keys`` files that have one of ``login_keys`` (public keys in
    OpenSSH's format) or were given by a box at all, the machine-id (its file stays, empty), random seeds, and what
    cloud-init was told and remembers.  Keys that its users were given otherwise stay.

    ``work`` is a folder for what is in progress.  Raises ImageError for a disk without a file system that can be read,
    or with one that has the feature inline_data, ToolError when debugfs fails.
    """
    with look.opened(disk, work, disk_format=disk_format, writable=True) as system:
        if "inline_data" in system.features:
            raise ImageError(f"The file system on '{disk}' keeps small files where debugfs cannot overwrite them.")
        system.replay_journal()
        plan = _Plan(system)
        host_keys = [f"{HOST_KEYS}/{name}" for name in system.names(HOST_KEYS) if _HOST_KEY.fullmatch(name)]
        found = system.find([*_SECRETS, MACHINE_ID, CLOUD, _USERS, *host_keys])
        for path in (*_SECRETS, *host_keys):
            plan.remove(path, found.get(path))
        plan.empty(MACHINE_ID, found.get(MACHINE_ID))
        plan.clear(CLOUD, found.get(CLOUD))
        material = frozenset(key.split()[1].encode() for key in login_keys)
        files = [f"{home}/.ssh/authorized_keys" for home in _homes(system, found.get(_USERS))]
        for path, one in system.find(files).items():
            plan.take_keys(path, one, material)
        system.change(plan.commands)
        left = system.find(plan.removed)
        if left:
            raise ToolError(f"debugfs did not remove '{min(left)}'.")
        return tuple(sorted({*plan.removed, *plan.changed}))


class _Plan:
    """The commands of debugfs that take things out, collected before the first of them runs."""

    def __init__(self, system: FileSystem) -> None:
        self._system = system
        self.commands: list[str] = []
        self.removed: list[str] = []
        self.changed: list[str] = []

    def remove(self, path: str, found: Found | None) -> None:
        if found is None or found.kind not in ("regular", "symlink"):
            return
        if found.kind == "regular":
            self._overwrite(found)
        self.commands.append(f"rm {path}")
        self.removed.append(path)

    def clear(self, path: str, found: Found | None, depth: int = 0) -> None:
        """Remove what is in a folder; itself it stays, with the owner and the mode that its package gave it."""
        if found is None or found.kind != "directory" or depth > _DEEPEST:
            return
        names = [f"{path}/{name}" for name in self._system.names(path)]
        if not all(map(_PLAIN.fullmatch, names)):
            raise ToolError(f"A file in '{path}' has a name that debugfs cannot be told.")
        for below, one in self._system.find(names).items():
            self.remove(below, one)
            if one.kind == "directory":
                self.clear(below, one, depth + 1)
                self.commands.append(f"rmdir {below}")
                self.removed.append(below)

    def empty(self, path: str, found: Found | None) -> None:
        if found is None or found.kind != "regular" or not found.size:
            return
        self._overwrite(found)
        self.commands += [f"punch <{found.inode}> 0", f"sif <{found.inode}> size 0"]
        self.changed.append(path)

    def take_keys(self, path: str, found: Found, material: frozenset[bytes]) -> None:
        if found.kind != "regular" or not 0 < found.size < _LARGEST:
            return
        lines = self._system.content(found).splitlines(keepends=True)
        ours = [bool(_OURS.search(line.rstrip()) or material & set(line.split())) for line in lines]
        if not any(ours):
            return
        if not any(line.strip() for line, our in zip(lines, ours, strict=True) if not our):
            self.remove(path, found)
            return
        at = 0
        for line, our in zip(lines, ours, strict=True):
            if our:  # empty lines take its place, so that nothing else moves
                self.commands += self._filled(found, at, at + len(line.rstrip(b"\n")))
            at += len(line)
        self.changed.append(path)

    def _overwrite(self, found: Found) -> None:
        size = self._system.block_size
        self.commands += [f"zap -f <{found.inode}> {block}" for block in range(-(-found.size // size))]

    def _filled(self, found: Found, start: int, end: int) -> Iterator[str]:
        size = self._system.block_size
        while start < end:
            block, offset = divmod(start, size)
            length = min(end - start, size - offset)
            yield f"zap -f <{found.inode}> -o {offset} -l {length} -p {_NEWLINE} {block}"
            start += length


def _homes(system: FileSystem, users: Found | None) -> list[str]:
    """Return the home folders of all users, as far as debugfs can be told of them."""
    text = system.content(users).decode("utf-8", "replace") if users is not None else ""
    fields = [line.split(":") for line in text.splitlines()]
    homes = {"/root", *(entry[5].rstrip("/") for entry in fields if len(entry) == 7)}
    return sorted(home for home in homes if _PLAIN.fullmatch(home))
