"""State that survives a kill at any moment: staged in the same file system, fsynced, renamed.

A reader sees the old content or the new one, never a mixture.  After `replace_file` or `publish` has returned, a power
cut does not take the result back.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from vmimagemanager.errors import SpaceError, StateError
from vmimagemanager.units import Size


@contextmanager
def translate_os_errors(deed: str, path: Path) -> Iterator[None]:
    """Turn an OSError into SpaceError or StateError with ``deed`` ("write", "read" …) and the path in its message."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SpaceError(
                f"Cannot {deed} '{path}': {reason}.", hint=f"Free some space in the file system of '{path.parent}'."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StateError(
                f"Cannot {deed} '{path}': {reason}.", hint="'vmimagemanager doctor' checks the permissions."
            ) from error
        raise StateError(f"Cannot {deed} '{path}': {reason}.") from error


def fsync_path(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """Flush every regular file and folder below ``folder``, and itself."""
    for root, _, names in os.walk(folder):
        for name in names:
            entry = Path(root, name)
            if entry.is_file() and not entry.is_symlink():
                fsync_path(entry)
        fsync_path(Path(root))


def replace_file(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Write ``content`` to ``path`` so that it is there whole or not at all, with exactly ``mode``.

    Raises SpaceError or StateError; the old content is then untouched and nothing is left beside it.
    """
    with translate_os_errors("write", path):
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        staged = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                os.fchmod(stream.fileno(), mode)
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            staged.replace(path)
        except BaseException:
            staged.unlink(missing_ok=True)
            raise
        fsync_path(path.parent)


@contextmanager
def new_file(path: Path, *, mode: int = 0o600) -> Iterator[BinaryIO]:
    """Yield a file to write to, which appears as ``path``, flushed and with exactly ``mode``, when the block has ended.

    Until then it has no name where the file system can do that, so that a kill leaves nothing.  Raises SpaceError, or
    StateError, when ``path`` is there, too; nothing is left then.
    """
    with translate_os_errors("write", path):
        if path.exists() or path.is_symlink():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        staged = path.with_name(f".{path.name}.{os.getpid()}")
        folder = os.open(path.parent, os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                descriptor = os.open(path.parent, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, mode)
                source = Path(f"/proc/self/fd/{descriptor}")
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                    raise
                descriptor = os.open(staged, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC, mode)
                source = staged
            with os.fdopen(descriptor, "wb") as stream:
                os.fchmod(descriptor, mode)
                yield stream
                stream.flush()
                os.fsync(descriptor)
                # A link never takes another file's place; with a folder's descriptor it follows the one in /proc.
                os.link(source, path.name, dst_dir_fd=folder)
                os.fsync(folder)
        finally:
            os.close(folder)
            staged.unlink(missing_ok=True)


def publish(staged: Path, target: Path) -> None:
    """Rename ``staged``, a file or folder whose content is flushed here, to ``target``, which must not exist.

    Raises FileExistsError when ``target`` is there; ``staged`` is then untouched.
    """
    if staged.is_dir():
        fsync_tree(staged)
    else:
        fsync_path(staged)
    if target.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    with translate_os_errors("publish", target):
        staged.rename(target)
        fsync_path(target.parent)


def make_folder(path: Path, *, mode: int = 0o755) -> Path:
    """Make ``path`` and its parents; the folder itself gets ``mode`` when it is new.  Return it."""
    with translate_os_errors("make the folder", path):
        if not path.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                path.mkdir(mode=mode)
                path.chmod(mode)
            except FileExistsError:
                if not path.is_dir():
                    raise
    return path


def remove_tree(path: Path) -> None:
    """Remove a file or a folder with all that is in it, read-only folders included; what is not there is no error."""
    with translate_os_errors("remove", path):
        if path.is_dir() and not path.is_symlink():
            try:
                shutil.rmtree(path)
            except PermissionError:
                path.chmod(0o700)
                for folder, names, _ in os.walk(path):
                    for name in names:
                        if not Path(folder, name).is_symlink():
                            Path(folder, name).chmod(0o700)
                shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def allocate(path: Path, size: Size, *, mode: int = 0o600) -> None:
    """Make ``path`` a new file of ``size`` whose blocks are all reserved: no later write can find the disk full.

    Raises SpaceError, leaving no file.
    """
    with translate_os_errors("reserve space for", path):
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, mode)
        try:
            os.fchmod(descriptor, mode)
            os.posix_fallocate(descriptor, 0, size.bytes)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)


def occupied(path: Path) -> Size:
    """Return what a file, or a folder with all that is in it, takes on the disk; what is not there takes nothing."""
    with translate_os_errors("look at", path):
        try:
            total = path.lstat().st_blocks
        except FileNotFoundError:
            return Size(0)
        for folder, _, names in os.walk(path):
            total += sum(Path(folder, name).lstat().st_blocks for name in names)
    return Size(total * 512)


def free_space(folder: Path) -> Size:
    """Return what this process may still write in the file system of ``folder`` (or of its nearest existing parent)."""
    while not folder.exists():
        folder = folder.parent
    status = os.statvfs(folder)
    return Size(status.f_bavail * status.f_frsize)


def require_space(folder: Path, needed: Size, *, purpose: str) -> None:
    """Raise SpaceError unless the file system of ``folder`` has ``needed`` bytes left for ``purpose``."""
    free = free_space(folder)
    if free < needed:
        raise SpaceError(
            f"{purpose} needs {needed.human()} in '{folder}', where {free.human()} are free.",
            hint="Remove snapshots or images that nobody needs: 'vmimagemanager image list'.",
        )
