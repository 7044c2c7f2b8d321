"""Files into and out of the guest, over SFTP.

What comes out of a guest is not trusted: names are checked, files are made anew and never written through a symbolic
link, and a tree becomes visible only when it is whole.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path, PurePosixPath

import paramiko

from vmimagemanager.durable import remove_tree, translate_os_errors
from vmimagemanager.errors import TransferError
from vmimagemanager.guest.session import Session

_DEEPEST = 200  # folders: a guest could make believe that there is no end


def put(session: Session, source: Path, target: PurePosixPath) -> int:
    """Copy a file or a folder into the guest, with permissions and symbolic links; return the bytes of its files.

    ``target`` is the new path, or an existing folder that the copy goes into.  Raises TransferError; a file that was
    being copied is then incomplete under its name with '.part' appended.
    """
    if not source.exists():
        raise TransferError(f"There is no file or folder '{source}' on the host.")
    with session.files() as client:
        place = str(target)
        if _is_folder(client, place) and not _is_folder_copy(source, target):
            place = str(target / source.name)
        return _put(client, source, place)


def get(session: Session, source: PurePosixPath, target: Path) -> int:
    """Copy a file or a folder out of the guest, with permissions and symbolic links; return the bytes of its files.

    ``target`` is the new path, or an existing folder that the copy goes into.  Raises TransferError, leaving nothing of
    the copy; an existing file is replaced, an existing folder is not.
    """
    place = target / source.name if target.is_dir() else target
    if place.is_dir() and not place.is_symlink():
        raise TransferError(f"The folder '{place}' exists already on the host.", hint="Choose another target.")
    if not place.parent.is_dir():
        raise TransferError(f"There is no folder '{place.parent}' on the host.", hint=f"mkdir -p '{place.parent}'")
    staged = place.with_name(f".{place.name}.{os.getpid()}.part")
    with session.files() as client, translate_os_errors("write", staged):
        try:
            copied = _get(client, str(source), staged, follow=True)
            staged.rename(place)
        except BaseException:
            remove_tree(staged)
            raise
    return copied


def _put(client: paramiko.SFTPClient, source: Path, target: str) -> int:
    try:
        if source.is_symlink():
            part = f"{target}.part"  # renamed over what is there: SFTP's symlink replaces nothing
            with suppress(OSError):
                client.remove(part)
            client.symlink(str(source.readlink()), part)
            client.posix_rename(part, target)
            return 0
        if source.is_dir():
            if not _is_folder(client, target):
                client.mkdir(target)
            copied = sum(_put(client, entry, f"{target}/{entry.name}") for entry in sorted(source.iterdir()))
            client.chmod(target, stat.S_IMODE(source.stat().st_mode))
            return copied
        if not source.is_file():
            raise TransferError(f"'{source}' is neither a file, a folder nor a symbolic link.")
        part = f"{target}.part"
        client.put(str(source), part, confirm=True)
        client.chmod(part, stat.S_IMODE(source.stat().st_mode))
        client.posix_rename(part, target)
        return source.stat().st_size
    except (OSError, ValueError) as error:  # ValueError: a name that one of both sides has no bytes for
        raise TransferError(f"'{source}' cannot be copied to '{target}' in the guest: {_reason(error)}.") from error


def _get(client: paramiko.SFTPClient, source: str, target: Path, *, follow: bool) -> int:
    try:
        status = client.stat(source) if follow else client.lstat(source)
        mode = status.st_mode or 0
        if len(PurePosixPath(source).parts) > _DEEPEST:
            raise TransferError(f"'{source[:80]}…' in the guest lies too deep.")
        if stat.S_ISLNK(mode):
            target.symlink_to(client.readlink(source) or "")
            return 0
        if stat.S_ISDIR(mode):
            target.mkdir(mode=0o700)
            entries = [
                (_safe(entry.filename), stat.S_ISLNK(entry.st_mode or 0)) for entry in client.listdir_attr(source)
            ]
            # Links come last, so that nothing is ever written through one.
            ordered = [name for name, is_link in sorted(entries, key=lambda entry: entry[1])]
            copied = sum(_get(client, f"{source}/{name}", target / name, follow=False) for name in ordered)
            target.chmod(stat.S_IMODE(mode) & 0o777)
            return copied
        if not stat.S_ISREG(mode):
            raise TransferError(f"'{source}' in the guest is neither a file, a folder nor a symbolic link.")
        descriptor = os.open(target, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            copied = client.getfo(source, stream)
            os.fchmod(descriptor, stat.S_IMODE(mode) & 0o777)
        return copied
    except (OSError, ValueError) as error:
        raise TransferError(f"'{source}' cannot be copied out of the guest: {_reason(error)}.") from error


def _is_folder(client: paramiko.SFTPClient, path: str) -> bool:
    try:
        return stat.S_ISDIR(client.stat(path).st_mode or 0)
    except OSError:
        return False


def _is_folder_copy(source: Path, target: PurePosixPath) -> bool:
    # 'put tree/ /srv/tree' again is meant to update it, not to nest it
    return source.is_dir() and source.name == target.name


def _safe(name: str) -> str:
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise TransferError(f"The guest named a file {name!r}, which is refused.")
    return name


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
