"""Files fetched by HTTP: resumed where they ended, within limits of size and patience, and never believed.

``cache/downloads/<digest of the address>/`` has ``part``, what came so far, and ``part.toml``, which says of what: the
address, the validators that the server gave (RFC 9110, section 8.8), and the boot of the host in which it was written
(what a power cut left is not gone on with).  ``whole`` is a finished one that is kept.  A lock beside the
folder is held meanwhile; who does not get it fetches for himself.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from vmimagemanager import records
from vmimagemanager.deadline import timeout_factor
from vmimagemanager.durable import free_space, make_folder, occupied, remove_tree, translate_os_errors
from vmimagemanager.errors import DeadlineError, ImageError, SpaceError, StateError, VmimError
from vmimagemanager.locks import FileLock
from vmimagemanager.progress import Progress
from vmimagemanager.units import Size

if TYPE_CHECKING:
    import httpx

_log = logging.getLogger(__name__)

PATIENCE = timedelta(seconds=30)
SLOWEST = 1024  # bytes a second, over PATIENCE

_RESERVE = Size(1 << 30)
_DOCUMENT = Size(4 << 20)
_ATTEMPTS = 6
_MOST_REDIRECTS = 5
_RECORD = 1
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a download has to be: its size, and digests in hexadecimal by algorithm ("sha256", "sha512")."""

    size: Size | None = None
    digests: Mapping[str, str]

    def refuse_other(self, path: Path, named: str) -> None:
        """Raise ImageError when the file ``path`` is not what is expected."""
        self.refuse_size(path.stat().st_size, named)
        for algorithm, digest in self.digests.items():
            with translate_os_errors("read", path), path.open("rb") as stream:
                found = hashlib.file_digest(stream, algorithm).hexdigest()
            if found != digest.lower():
                raise ImageError(
                    f"'{named}' is not what was expected: its {algorithm} is {found}, and not {digest.lower()}.",
                    hint="It was altered or damaged, or published anew: compare with where the digest comes from.",
                )

    def refuse_size(self, size: int, named: str) -> None:
        """Raise ImageError when a file of ``size`` bytes is not what is expected."""
        if self.size is not None and size != self.size.bytes:
            raise ImageError(f"'{named}' is not what was expected: it has {size} bytes, and not {self.size.bytes}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Origin:
    """Of what a part is: ``total`` bytes of what the validators stand for."""

    url: str
    boot: str
    etag: str = ""
    modified: str = ""
    total: int = -1

    @property
    def condition(self) -> str:
        """The validator that a range may be asked with, or nothing."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified


def is_address(source: str) -> bool:
    """Say whether ``source`` is to be fetched, and is no file."""
    return source.startswith(("http://", "https://"))


def shown(url: str) -> str:
    """Return an address for messages and manifests: without user, password and query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def file_name(url: str) -> str:
    """Return the name of the file that an address leads to."""
    return urlsplit(url).path.rpartition("/")[2]


def document(url: str, *, most: Size = _DOCUMENT) -> bytes:
    """Return a small file, such as a list of checksums.  Raises ImageError or DeadlineError."""
    content = bytearray()
    with _client() as client, _asked(client, url, {}) as response:
        _refuse_status(response, url)
        for piece in _pieces(response, url):
            content += piece
            if len(content) > most.bytes:
                raise ImageError(f"'{shown(url)}' is longer than {most.human()}, which is more than it may be.")
    return bytes(content)


def fetch(url: str, stage: Path, cache: Path, *, expected: Expected, keep: bool = False, progress: Progress) -> Path:
    """Fetch a file into ``stage`` and return it; with ``keep`` it stays in ``cache``, too, for the next time.

    What was fetched by an attempt that failed or was killed stays in ``cache``, and the next one goes on from there if
    the server says that it is still the same.  Raises ImageError when it cannot be had or is not what is expected,
    DeadlineError when the server stalls, SpaceError.
    """
    place = make_folder(cache / "downloads") / hashlib.sha256(url.encode()).hexdigest()[:32]
    lock = _lock(place, f"fetching {shown(url)}")
    if not lock.try_acquire():
        _log.info("somebody else fetches '%s': fetching it beside", shown(url))
        return _Fetching(url=url, place=stage, expected=expected, progress=progress).finish()
    try:
        make_folder(place)
        fetching = _Fetching(url=url, place=place, expected=expected, progress=progress)
        keep = keep or fetching.whole.exists()
        if not fetching.have_whole():
            fetching.finish().replace(fetching.whole)
        target = stage / "source"
        if keep:
            with translate_os_errors("link", target):
                target.hardlink_to(fetching.whole)
        else:
            with translate_os_errors("move", target):
                fetching.whole.replace(target)
            remove_tree(place)
        return target
    finally:
        if {entry.name for entry in place.glob("*")} <= {"part.toml"}:
            remove_tree(place)
        lock.remove()


def leftovers(cache: Path, *, remove: bool) -> list[tuple[Path, Size]]:
    """Return what nobody fetches now, finished or not, with what it takes on the disk; remove it if asked to."""
    found = []
    for place in sorted(each for each in (cache / "downloads").glob("*") if each.is_dir()):
        lock = _lock(place, "looking for downloads")
        if not lock.try_acquire():
            continue
        try:
            found.append((place, occupied(place)))
            if remove:
                remove_tree(place)
        finally:
            lock.remove()
    return found


class _Fetching:
    """One file that is being fetched into the folder ``place``."""

    def __init__(self, *, url: str, place: Path, expected: Expected, progress: Progress) -> None:
        self._url = url
        self._named = shown(url)
        self._part, self._record, self.whole = place / "part", place / "part.toml", place / "whole"
        self._expected = expected
        self._progress = progress

    def have_whole(self) -> bool:
        """Say whether it was fetched before and is what is expected: known by its digest, or by asking the server."""
        if not self.whole.exists():
            return False
        origin = self._origin()
        try:
            self._expected.refuse_other(self.whole, self._named)
        except ImageError:
            self._forget()
            return False
        if self._expected.digests:
            return True
        headers = {"If-None-Match": origin.etag} if origin.etag else {"If-Modified-Since": origin.modified}
        if not all(headers.values()):
            return False
        with _client() as client, _asked(client, self._url, headers) as response:
            return response.status_code == 304

    def finish(self) -> Path:
        """Fetch what is missing, in several attempts as long as each brings something, and return the whole."""
        for attempt in range(1, _ATTEMPTS + 1):
            before = self._size()
            try:
                self._go_on()
                break
            except (_BrokenError, DeadlineError) as error:
                if attempt == _ATTEMPTS or self._size() <= before:
                    raise self._given_up(error) from error
                _log.info("%s  Going on from %d bytes", error, self._size())
        try:
            self._expected.refuse_other(self._part, self._named)
        except ImageError:
            self._forget()  # else the next attempt would go on from what is wrong
            raise
        return self._part

    def _go_on(self) -> None:
        have, origin = self._size(), self._origin()
        if have and (not origin.condition or have == origin.total):
            if have == origin.total:
                return
            have = 0
        headers = {"Range": f"bytes={have}-", "If-Range": origin.condition} if have else {}
        with _client() as client, _asked(client, self._url, headers) as response:
            if response.status_code == 416:  # what is there is longer than what the server has now
                self._forget()
                raise _BrokenError(f"'{self._named}' is another file now.")
            _refuse_status(response, self._url)
            have, total = self._start(response, have, origin)
            if total >= 0:
                self._expected.refuse_size(total, self._named)
            self._require_room(total - have)
            self._receive(response, have, total)

    def _start(self, response: httpx.Response, have: int, origin: _Origin) -> tuple[int, int]:
        """Return where the answer's content begins, and the size of the whole, or -1."""
        found = _RANGE.fullmatch(response.headers.get("content-range", "")) if response.status_code == 206 else None
        if response.status_code == 206 and (found is None or (int(found[1]), int(found[2])) != (have, origin.total)):
            self._forget()
            raise _BrokenError(f"'{self._named}' is answered with another part than was asked for.")
        if found is not None:
            return have, origin.total
        length = response.headers.get("content-length", "")
        fresh = _Origin(
            url=self._url,
            boot=_boot(),
            etag=response.headers.get("etag", ""),
            modified=response.headers.get("last-modified", ""),
            total=int(length) if length.isdigit() and len(length) < 18 else -1,
        )
        self._forget()
        records.write(self._record, asdict(fresh), version=_RECORD)
        return 0, fresh.total

    def _receive(self, response: httpx.Response, have: int, total: int) -> None:
        most = self._expected.size.bytes if self._expected.size is not None else total
        with translate_os_errors("write", self._part), self._part.open("ab") as stream:
            for piece in _pieces(response, self._url):
                have += len(piece)
                if 0 <= most < have:
                    raise ImageError(f"'{self._named}' is longer than the {most} bytes that it has to have.")
                if total < 0 and not have & 0xFFFF:
                    self._require_room(0)
                stream.write(piece)
                self._progress(f"fetching {self._named}", 0.6 * have / total if total > 0 else None)
            stream.flush()
        if have < total:
            raise _BrokenError(f"'{self._named}' ended after {have} of {total} bytes.")

    def _require_room(self, missing: int) -> None:
        free = free_space(self._part.parent)
        if free.bytes - _RESERVE.bytes < max(missing, 0):
            raise SpaceError(
                f"'{self._named}' needs {Size(max(missing, 0)).human()} more, and {free.human()} are free, of which "
                f"{_RESERVE.human()} stay free.",
                hint="Remove snapshots or images that nobody needs: 'vmimagemanager image list'.",
            )

    def _given_up(self, error: VmimError) -> VmimError:
        kept = self._size()
        hint = f"{Size(kept).human()} are kept: the same command goes on from there." if kept else ""
        if isinstance(error, DeadlineError):
            return DeadlineError(
                error.message, hint=hint, detail=error.detail, waited_for=error.waited_for, seconds=error.seconds
            )
        return ImageError(error.message, hint=hint, detail=error.detail)

    def _size(self) -> int:
        try:
            return self._part.stat().st_size
        except FileNotFoundError:
            return 0

    def _origin(self) -> _Origin:
        try:
            origin = _Origin(**records.read(self._record, version=_RECORD))
        except (StateError, TypeError):
            origin = _Origin(url="", boot="")
        if (origin.url, origin.boot) != (self._url, _boot()) and not self.whole.exists():
            self._forget()
            return _Origin(url=self._url, boot=_boot())
        return origin

    def _forget(self) -> None:
        for path in (self._part, self.whole, self._record):
            remove_tree(path)


class _BrokenError(ImageError):
    """The connection ended too early, or what came cannot be used: worth another attempt."""


def _boot() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""


def _client() -> httpx.Client:
    import httpx

    # What is compressed on the way could not be resumed, and would be unpacked without a limit.
    headers = {"User-Agent": "vmimagemanager", "Accept-Encoding": "identity"}
    patience = PATIENCE.total_seconds() * timeout_factor()
    return httpx.Client(timeout=patience, follow_redirects=True, max_redirects=_MOST_REDIRECTS, headers=headers)


@contextmanager
def _asked(client: httpx.Client, url: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
    with _translated(url), client.stream("GET", url, headers=dict(headers)) as response:
        if url.startswith("https://") and any(each.url.scheme != "https" for each in (*response.history, response)):
            raise ImageError(f"'{shown(url)}' leads to an address without encryption, which is not followed.")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise ImageError(f"'{shown(url)}' is answered in an encoding that was not asked for.")
        yield response


def _pieces(response: httpx.Response, url: str) -> Iterator[bytes]:
    patience = PATIENCE.total_seconds() * timeout_factor()
    start, received = time.monotonic(), 0
    for piece in response.iter_raw():
        received += len(piece)
        yield piece
        elapsed = time.monotonic() - start
        if elapsed > patience:
            if received < SLOWEST * elapsed:
                raise _stalled(url, elapsed)
            start, received = time.monotonic(), 0


def _refuse_status(response: httpx.Response, url: str) -> None:
    if response.status_code not in (200, 206):
        raise ImageError(f"'{shown(url)}' cannot be fetched: {response.status_code} {response.reason_phrase}.")


def _stalled(url: str, seconds: float) -> DeadlineError:
    return DeadlineError(
        f"'{shown(url)}' stalls: next to nothing came for {seconds:.1f} s.",
        waited_for=f"'{shown(url)}'",
        seconds=seconds,
    )


@contextmanager
def _translated(url: str) -> Iterator[None]:
    import httpx

    try:
        yield
    except httpx.TimeoutException as error:
        raise _stalled(url, PATIENCE.total_seconds() * timeout_factor()) from error
    except (httpx.RemoteProtocolError, httpx.NetworkError) as error:
        raise _BrokenError(f"'{shown(url)}' cannot be fetched: {_reason(error)}.") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ImageError(f"'{shown(url)}' cannot be fetched: {_reason(error)}.") from error


def _reason(error: Exception) -> str:
    return str(error).rstrip(".") or type(error).__name__


def _lock(place: Path, purpose: str) -> FileLock:
    return FileLock(place.with_name(f"{place.name}.lock"), purpose=purpose)
