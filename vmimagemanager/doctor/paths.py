"""The permissions along every path: what we write, and what QEMU's user has to reach."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

from vmimagemanager import process
from vmimagemanager.doctor import host
from vmimagemanager.doctor.access import SEARCH, Account, folders_above, is_folder, may
from vmimagemanager.doctor.check import Check, as_root, failure, ok, warning
from vmimagemanager.locks import user_name
from vmimagemanager.state import StateDirectory

NAME = "state directory"
_OURS = os.W_OK | os.X_OK
_READ_ONLY = 1  # ST_RDONLY of statvfs(3)


def checks(folder: Path, owner: tuple[int, int] | None, *, shared: bool) -> Iterator[Check]:
    """Say whether we may write the state directory, and whether ``owner``, QEMU's user, reaches what is in it."""
    yield _writable(folder, shared=shared)
    if owner is not None:
        yield reachable(folder, Account.of(*owner))


def reachable(folder: Path, account: Account) -> Check:
    """Say whether an account can search every folder that leads to the disks; name the first that blocks it."""
    inside = StateDirectory(folder)
    ends = (inside.boxes, folder / "blobs" / "sha512", *_boxes(inside))
    folders = list(dict.fromkeys(step for end in ends for step in folders_above(end)))
    closed = [step for step in folders if not may(account, step, SEARCH)]
    if not closed:
        return ok("path for QEMU", f"'{account.name}', the user that QEMU runs as, can reach '{folder}'.")
    command = _search_command(account.name, closed)
    ours = all(step.stat().st_uid == os.geteuid() for step in closed)
    return failure(
        "path for QEMU",
        f"'{account.name}', the user that QEMU runs as, cannot reach '{folder}': '{closed[0]}' is closed to it.",
        command if ours else as_root(command),
    )


def _boxes(state: StateDirectory) -> list[Path]:
    try:
        return [state.box(name).path for name in state.box_names()]
    except OSError:  # it is closed to ourselves, which another line says
        return []


def _writable(folder: Path, *, shared: bool) -> Check:
    above = folders_above(folder)
    closed = next((step for step in above if not os.access(step, os.X_OK)), None)
    if closed is not None:
        return failure(
            NAME,
            f"'{user_name()}' cannot reach '{folder}': '{closed}' is closed.",
            _to_enter(closed) if closed != folder else _to_open(closed, shared=shared),
        )
    nearest = above[-1]
    exists = is_folder(folder)
    if os.statvfs(nearest).f_flag & _READ_ONLY:
        return failure(NAME, f"'{nearest}' is in a file system that is mounted read-only.")
    if not exists and (folder.exists() or folder.is_symlink()):
        return failure(NAME, f"'{folder}' is not a folder.")
    if not exists and os.access(nearest, _OURS):
        return ok(NAME, f"The state directory '{folder}' does not exist yet, and can be made.")
    if not exists:
        command = f"install -d -m 2775 -g {host.LIBVIRT_GROUP} {folder}" if shared else f"mkdir -p {folder}"
        return failure(
            NAME,
            f"'{user_name()}' cannot make the state directory '{folder}': '{nearest}' may not be written.",
            as_root(command),
        )
    state = StateDirectory(folder)
    inside = [state.boxes, state.holds, state.locks, state.cache, *(folder / name for name in ("images", "blobs"))]
    refused = [step for step in (folder, *inside) if is_folder(step) and not os.access(step, _OURS)]
    if refused:
        return failure(NAME, f"'{user_name()}' may not write '{refused[0]}'.", _to_open(refused[0], shared=shared))
    missing = [step for step in (state.boxes, state.holds, state.locks, state.cache) if not is_folder(step)]
    if missing:
        return warning(NAME, f"The folder '{missing[0]}' is missing.", f"mkdir {shlex.join(map(str, missing))}")
    return ok(NAME, f"The state directory '{folder}' may be written.")


def _to_enter(folder: Path) -> str:
    if folder.stat().st_uid == os.geteuid():
        return f"chmod u+x {shlex.quote(str(folder))}"
    return as_root(_search_command(user_name(), [folder]))


def _search_command(user: str, folders: Iterable[Path]) -> str:
    words = shlex.join(str(folder) for folder in folders)
    return f"setfacl -m u:{user}:x {words}" if process.find("setfacl") is not None else f"chmod o+x {words}"


def _to_open(folder: Path, *, shared: bool) -> str:
    quoted = shlex.quote(str(folder))
    if shared:
        if os.geteuid() != 0 and not host.in_group(host.LIBVIRT_GROUP):
            return host.to_join(host.LIBVIRT_GROUP)
        return as_root(f"chgrp {host.LIBVIRT_GROUP} {quoted} && chmod 2775 {quoted}")
    if folder.stat().st_uid == os.geteuid():
        return f"chmod u+rwx {quoted}"
    return as_root(f"chown {user_name()} {quoted}")
