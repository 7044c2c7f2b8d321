"""Which configuration files there are, and which of them may be trusted."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from vmimagemanager import records
from vmimagemanager.errors import ConfigError, StateError
from vmimagemanager.names import printable

NAME = "vmimagemanager.toml"
SYSTEM = Path("/etc") / NAME


@dataclass(frozen=True, slots=True)
class Document:
    """A configuration file that was read."""

    path: Path
    table: records.Record


def find(explicit: Path | None, notices: list[str]) -> list[Document]:
    """Read the files that count, the highest precedence first; append a sentence to ``notices`` for one ignored."""
    if explicit is None and os.environ.get("VMIM_CONFIG"):
        explicit = Path(os.environ["VMIM_CONFIG"])
    if explicit is not None:
        content = _content(explicit)
        if content is None:
            raise ConfigError(
                f"The configuration file '{printable(explicit)}' does not exist.",
                hint="Name an existing file with --config or VMIM_CONFIG.",
            )
        return [_document(explicit.absolute(), content)]
    found = [(path, _content(path)) for path in (_of_user(), SYSTEM)]
    return [
        _document(path, content) for path, content in [_of_project(notices), *found] if path and content is not None
    ]


def _of_user() -> Path:
    import platformdirs

    return platformdirs.user_config_path("vmimagemanager") / NAME


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unreadable(path, error) from error


def _of_project(notices: list[str]) -> tuple[Path | None, bytes | None]:
    """Read the current folder's file, unless somebody else could have put hooks into it.

    It is examined through the descriptor that is read from, so that it cannot be exchanged in between; a symbolic link
    or a FIFO that somebody left in a shared folder is not followed and does not block.
    """
    try:
        path = Path.cwd() / NAME
    except FileNotFoundError:  # the current folder was removed
        return None, None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None, None
    except OSError as error:
        reason = "it is a symbolic link" if path.is_symlink() else f"it cannot be read: {error.strerror}"
        notices.append(_ignored(path, reason))
        return None, None
    try:
        reason = _distrusted(os.fstat(descriptor))
        if not reason:
            return path, _whole(descriptor)
    finally:
        os.close(descriptor)
    notices.append(_ignored(path, reason))
    return None, None


def _whole(descriptor: int) -> bytes:
    with os.fdopen(descriptor, "rb", closefd=False) as stream:
        return stream.read()


def _distrusted(status: os.stat_result) -> str:
    if not stat.S_ISREG(status.st_mode):
        return "it is not a regular file"
    if status.st_uid not in (os.geteuid(), 0):
        return "it belongs neither to you nor to root"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "others than its owner may write it"
    return ""


def _ignored(path: Path, reason: str) -> str:
    return f"The project file '{printable(path)}' is ignored: {reason}.  --config {NAME} reads it all the same."


def _document(path: Path, content: bytes) -> Document:
    try:
        return Document(path, records.parse(content.decode(), source=printable(path)))
    except UnicodeDecodeError as error:
        raise ConfigError(f"'{printable(path)}' is not TOML: it is not UTF-8 text.") from error
    except StateError as error:
        raise ConfigError(error.message) from error


def _unreadable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"The configuration file '{printable(path)}' cannot be read: {error.strerror}.")
