"""Where a shared store lies: a folder, an SSH server, a web server (to be read alone), or an object store.

The one owner of ``fsspec``.  A URL is a path, ``file://``, ``ssh://`` (or ``sftp://``), ``http://``, ``https://``, or
of another kind that fsspec knows when its package is installed, such as ``s3://``.  SSH servers are known by
``~/.ssh/known_hosts``: an unknown one is refused.

A file that is written is whole or not there: it is written beside its place and renamed, or, where an object store
takes a whole object at once, written at once.
"""

from __future__ import annotations

import errno
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from vmimagemanager.errors import ImageError, SpaceError, UsageError
from vmimagemanager.names import quoted

_PIECE = 1 << 18
_STALL = 60.0  # seconds without a byte
_RENAMED = {"file", "local", "ssh", "sftp"}  # the others take a file whole
_READ_ONLY = {"http", "https"}
_GONE = {404, 410}
_AT_ONCE = {"file": 4, "local": 4, "ssh": 1, "sftp": 1}
_MISSING = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs", "abfs": "adlfs"}


class Transport:
    """The files below one URL, by their paths from there, with '/' between folders.

    ``url`` is that without a password.  Raises ImageError that names it when it cannot be reached, does not answer or
    refuses.
    """

    def __init__(self, url: str) -> None:
        self.url = _without_password(url)
        scheme, colon, _ = url.partition("://")
        self._scheme = scheme if colon else "file"
        with self._errors("open"):
            self._files, self._root = _opened(url, self._scheme)
        self._made: set[str] = set()

    @property
    def read_only(self) -> bool:
        return self._scheme in _READ_ONLY

    @property
    def at_once(self) -> int:
        """How many files are best read or written at the same time."""
        return _AT_ONCE.get(self._scheme, 8)

    def read(self, path: str, *, most: int) -> bytes | None:
        """Return what a file holds, or None when it is not there; one of more than ``most`` bytes is refused."""
        options = {"block_size": 0} if self.read_only else {}
        content = bytearray()
        with self._errors(f"read '{path}'"):
            try:
                with self._files.open(self._at(path), "rb", **options) as stream:
                    while piece := stream.read(min(_PIECE, most + 1 - len(content))):
                        content += piece
                        if len(content) > most:
                            raise ImageError(f"'{path}' in '{self.url}' has more than {most} bytes.")
            except FileNotFoundError as error:
                cause = error.__cause__  # of a web server that cannot be reached fsspec says that it has no such file
                if self.read_only and cause is not None and getattr(cause, "status", 0) not in _GONE:
                    raise ConnectionError(str(cause)) from error
                return None
        return bytes(content)

    def write(self, path: str, content: bytes) -> None:
        """Make a file whole, in place of one that is there."""
        self._require_writable()
        place = self._at(path)
        with self._errors(f"write '{path}'"):
            if self._scheme not in _RENAMED:
                self._files.pipe_file(place, content)
                return
            self._make_folder(place.rpartition("/")[0])
            staged = f"{place}.{secrets.token_hex(6)}.part"
            try:
                with self._files.open(staged, "wb") as stream:
                    stream.write(content)
                    stream.flush()
                    if self._scheme in {"file", "local"}:
                        os.fsync(stream.fileno())
                self._files.mv(staged, place)
            except BaseException:
                with suppress(OSError):
                    self._files.rm_file(staged)
                raise

    def remove(self, path: str) -> None:
        """Remove a file; one that is not there is no error."""
        self._require_writable()
        with self._errors(f"remove '{path}'"), suppress(FileNotFoundError):
            self._files.rm_file(self._at(path))

    def names(self, folder: str) -> frozenset[str]:
        """Return the names in a folder, without those of files that are being written; none when it is not there."""
        with self._errors(f"list '{folder}'"):
            try:
                found = self._files.ls(self._at(folder), detail=False, **self._anew())
            except FileNotFoundError:
                return frozenset()
        names = (str(entry).rstrip("/").rpartition("/")[2] for entry in found)
        return frozenset(name for name in names if not name.endswith(".part"))

    def exists(self, path: str) -> bool:
        """Say whether there is such a file."""
        with self._errors(f"look for '{path}'"):
            return bool(self._files.exists(self._at(path)))

    def _require_writable(self) -> None:
        if self.read_only:
            raise UsageError(
                f"A web server cannot be written to: '{self.url}'.",
                hint="Push to the folder that it serves, by its path or by ssh://HOST/FOLDER.",
            )

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def _anew(self) -> dict[str, bool]:
        return {} if self._scheme in _RENAMED else {"refresh": True}  # object stores remember what they listed

    def _make_folder(self, folder: str) -> None:
        if folder not in self._made:
            self._files.makedirs(folder, exist_ok=True)
            self._made.add(folder)

    @contextmanager
    def _errors(self, deed: str) -> Iterator[None]:
        try:
            yield
        except ImportError as error:
            package = _MISSING.get(self._scheme, "")
            raise ImageError(
                f"'{self.url}' cannot be reached: a Python package that '{self._scheme}://' needs is not installed.",
                hint=f"pip install {package}" if package else "",
                detail=str(error),
            ) from error
        except _expected_errors() as error:
            said = str(error).strip() or type(error).__name__
            message = f"Cannot {deed} in the shared store '{self.url}': {said[:300].rstrip('.')}."
            if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise SpaceError(message) from error
            raise ImageError(message) from error


def _without_password(url: str) -> str:
    scheme, colon, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    user, at, place = host.rpartition("@")
    return f"{scheme}{colon}{user.partition(':')[0]}{at}{place}{slash}{path}"


def _opened(url: str, scheme: str) -> tuple[Any, str]:
    import fsspec

    if scheme in {"file", "local"}:
        path = Path(url.partition("://")[2] or url).absolute()
        return fsspec.filesystem("file"), str(path)
    if scheme in {"ssh", "sftp"}:
        options = _sftp()._get_kwargs_from_urls(url)
        if not options.get("host"):
            raise ValueError("it names no host: expected ssh://HOST/FOLDER")
        return _sftp()(**options), _sftp()._strip_protocol(url).rstrip("/")
    options = {}
    if scheme in _READ_ONLY:
        import aiohttp

        options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=_STALL, sock_read=_STALL)}
        return fsspec.filesystem(scheme, **options), url.rstrip("/")
    if scheme not in fsspec.available_protocols():
        raise UsageError(f"{quoted(url)} is no place for a shared store: '{scheme}://' is not known.")
    files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    return files, str(root).rstrip("/")


@cache
def _sftp() -> Any:  # noqa: ANN401 - fsspec has no types
    import paramiko
    from fsspec.implementations.sftp import SFTPFileSystem

    class KnownHostsOnly(SFTPFileSystem):  # type: ignore[misc]  # fsspec has no types
        """Unlike its parent, this does not believe a host key that it has never seen."""

        protocol = ("ssh", "sftp")
        cachable = False

        def _connect(self) -> None:
            self.client = paramiko.SSHClient()
            self.client.load_system_host_keys()
            self.client.set_missing_host_key_policy(paramiko.RejectPolicy())
            self.client.connect(self.host, timeout=_STALL, **self.ssh_kwargs)
            self.ftp = self.client.open_sftp()
            channel = self.ftp.get_channel()
            if channel is not None:
                channel.settimeout(_STALL)

    return KnownHostsOnly


def _expected_errors() -> tuple[type[Exception], ...]:
    """Return what the libraries raise that were loaded; their own classes are no OSErrors."""
    known = (("aiohttp", "ClientError"), ("paramiko", "SSHException"), ("botocore.exceptions", "BotoCoreError"))
    found = (getattr(sys.modules.get(module), name, None) for module, name in known)
    return (OSError, EOFError, ValueError, *(each for each in found if each is not None))
