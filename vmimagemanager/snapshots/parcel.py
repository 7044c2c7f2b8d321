"""An archive of files: a tar, compressed by zstd, that begins with a manifest of what is in it.

The manifest names each member, its size and its SHA-512, in their order.  Whoever reads an archive trusts nothing of
it: members other than those are refused, so are links, devices, and names that the reader does not know; what is longer
or shorter than the manifest says is damaged; a digest is compared before its file may be used.  Members whose name is
in ``SPARSE`` are streams of extents (see `extents`).
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from vmimagemanager import records
from vmimagemanager.durable import translate_os_errors
from vmimagemanager.errors import SnapshotError, StateError
from vmimagemanager.progress import Progress
from vmimagemanager.snapshots import extents

FORMAT = 1
MANIFEST = "manifest.toml"
SPARSE = frozenset({"snapshot/ram"})
_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1 << 20
_LONGEST_MANIFEST = 1 << 20
_LARGEST_WINDOW = 1 << 27  # what a decompressor may be made to use, in bytes
_LEVEL = 1  # a RAM shrinks to 32 %; level 3 makes that 29 %, in three times as long


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One file of an archive: ``size`` and ``sha512`` are those of its stream, ``file_size`` is that of the file."""

    name: str
    size: int
    file_size: int
    sha512: str


def write(stream: BinaryIO, record: Mapping[str, Any], files: Mapping[str, Path], progress: Progress) -> None:
    """Write an archive of ``files``, by the names that they get, and of a ``record`` for whoever unpacks it."""
    members = []
    for number, (name, path) in enumerate(files.items()):
        progress(f"reading {name}", 0.25 * number / len(files))
        members.append(_described(name, path))
    total, done = max(1, sum(member.size for member in members)), 0
    text = records.dump({"format": FORMAT, **record, "members": [asdict(member) for member in members]}).encode()
    compressor = zstandard.ZstdCompressor(level=_LEVEL, threads=-1, write_checksum=True)
    with compressor.stream_writer(stream, closefd=False) as packed:
        _add(packed.write, MANIFEST, len(text), [text])
        for member, path in zip(members, files.values(), strict=True):
            progress(f"packing {member.name}", 0.25 + 0.75 * done / total)
            _add(packed.write, member.name, member.size, _stream(member.name, path))
            done += member.size
        packed.write(bytes(2 * _BLOCK))


class Parcel:
    """An archive that is read from its beginning to its end; ``record`` is what its maker says in the manifest.

    Raises SnapshotError that names the archive, for anything that is not as it should be.
    """

    def __init__(self, stream: BinaryIO, *, source: Path, belongs: Callable[[str], bool]) -> None:
        self._source = source
        self._stream = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).stream_reader(stream)
        size = self._header(MANIFEST)
        if size > _LONGEST_MANIFEST:
            raise self._damaged(f"its manifest has {size} bytes")
        text = self._read(size)
        self._skip_padding(size)
        self.record, self.members = self._manifest(text, belongs)

    def receive(self, member: Member, target: Path | None) -> None:
        """Unpack the next member into the new file ``target``, or only verify it; on failure no file is left."""
        if self._header(member.name) != member.size:
            raise self._damaged(f"'{member.name}' has another size than its manifest says")
        digest = hashlib.sha512()
        left = member.size

        def read(count: int) -> bytes:
            nonlocal left
            left -= count
            if left < 0:
                raise self._damaged(f"'{member.name}' is longer than its manifest says")
            content = self._read(count)
            digest.update(content)
            return content

        try:
            if target is None:
                while left:
                    read(min(_CHUNK, left))
            else:
                self._unpack(member, target, read)
            if left or digest.hexdigest() != member.sha512:
                raise self._damaged(f"the content of '{member.name}' is not what its digest says")
        except BaseException:
            if target is not None:
                target.unlink(missing_ok=True)
            raise
        self._skip_padding(member.size)

    def finish(self) -> None:
        """Raise SnapshotError unless the archive ends here."""
        if any(self._read(2 * _BLOCK)) or self._stream_read(1):
            raise self._damaged("something follows its last member")

    def _unpack(self, member: Member, target: Path, read: Callable[[int], bytes]) -> None:
        with translate_os_errors("write", target):
            descriptor = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            try:
                if member.name in SPARSE:
                    try:
                        extents.decode(read, descriptor, size=member.file_size)
                    except ValueError as error:
                        raise self._damaged(f"'{member.name}' is no sparse file: {error}") from error
                else:
                    for at in range(0, member.size, _CHUNK):
                        os.write(descriptor, read(min(_CHUNK, member.size - at)))
            finally:
                os.close(descriptor)

    def _manifest(self, text: bytes, belongs: Callable[[str], bool]) -> tuple[records.Record, tuple[Member, ...]]:
        try:
            record = records.parse(text.decode(), source=f"{self._source}: {MANIFEST}")
            version = record.pop("format", None)
            if type(version) is not int or version != FORMAT:
                raise SnapshotError(
                    f"The archive '{self._source}' has format {version!r:.20}, and this program knows format {FORMAT}.",
                    hint="Use the version of vmimagemanager that wrote it.",
                )
            members = tuple(Member(**one) for one in record.pop("members"))
        except (UnicodeDecodeError, StateError, KeyError, TypeError) as error:
            raise self._damaged("its manifest cannot be read") from error
        names = [member.name for member in members]
        if len(set(names)) != len(names) or not all(map(belongs, names)):
            raise self._damaged("its manifest names a member twice, or one that does not belong there")
        for member in members:
            numbers = (member.size, member.file_size)
            if not all(type(number) is int and number >= 0 for number in numbers):
                raise self._damaged(f"its manifest says no size of '{member.name}'")
            if member.name not in SPARSE and member.size != member.file_size:
                raise self._damaged(f"its manifest says two sizes of '{member.name}'")
        return record, members

    def _header(self, expected: str) -> int:
        """Read a header, which is that of a plain file of the name that comes now; return the file's size."""
        try:
            header = tarfile.TarInfo.frombuf(self._read(_BLOCK), "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise self._damaged(f"'{expected}' is expected, and there is no file") from error
        if header.type != tarfile.REGTYPE or header.name != expected or header.size < 0:
            raise self._damaged(f"'{expected}' is expected, and there is {header.name[:80]!r}")
        return header.size

    def _skip_padding(self, size: int) -> None:
        self._read(-size % _BLOCK)

    def _read(self, count: int) -> bytes:
        content = self._stream_read(count)
        if len(content) != count:
            raise self._damaged("it ends too early")
        return content

    def _stream_read(self, count: int) -> bytes:
        pieces, left = [], count
        try:
            while left and (piece := self._stream.read(left)):
                pieces.append(piece)
                left -= len(piece)
        except zstandard.ZstdError as error:
            raise self._damaged("it is not zstd, or altered") from error
        except OSError as error:
            raise self._damaged(f"it cannot be read: {error.strerror}") from error
        return b"".join(pieces)

    def _damaged(self, reason: str) -> SnapshotError:
        return SnapshotError(
            f"The archive '{self._source}' is damaged, or no archive of a snapshot: {reason}.",
            hint="Copy it again, or export the snapshot once more: vmimagemanager snapshot-export",
        )


@contextmanager
def opened(path: Path, *, belongs: Callable[[str], bool]) -> Iterator[Parcel]:
    """Open an archive; ``belongs`` tells whether it may have a member of a name."""
    try:
        stream = path.open("rb")
    except OSError as error:
        raise SnapshotError(f"The archive '{path}' cannot be read: {error.strerror}.") from error
    with stream:
        yield Parcel(stream, source=path, belongs=belongs)


def _described(name: str, path: Path) -> Member:
    digest, size = hashlib.sha512(), 0
    for piece in _stream(name, path):
        digest.update(piece)
        size += len(piece)
    return Member(name=name, size=size, file_size=path.stat().st_size, sha512=digest.hexdigest())


def _stream(name: str, path: Path) -> Iterator[bytes]:
    with translate_os_errors("read", path):
        if name in SPARSE:
            yield from extents.encode(path)
        else:
            with path.open("rb") as stream:
                while piece := stream.read(_CHUNK):
                    yield piece


def _add(put: Callable[[bytes], object], name: str, size: int, content: Iterable[bytes]) -> None:
    header = tarfile.TarInfo(name)
    header.size, header.mode = size, 0o600
    put(header.tobuf(tarfile.GNU_FORMAT))
    written = 0
    for piece in content:
        put(piece)
        written += len(piece)
    if written != size:
        raise SnapshotError(f"'{name}' changed while it was packed.")
    put(bytes(-size % _BLOCK))
