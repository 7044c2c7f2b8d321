"""Archives of a snapshot's files: what goes in comes out, and nothing that was forged does."""

from __future__ import annotations

import hashlib
import io
import random
import shutil
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import zstandard

from vmimagemanager import records
from vmimagemanager.durable import new_file
from vmimagemanager.errors import SnapshotError, StateError
from vmimagemanager.progress import silent
from vmimagemanager.snapshots import extents, parcel

KNOWN = ("text", "empty", "snapshot/ram")
ABOUT = {"box": "web"}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A text, an empty file, and a sparse one whose middle is data."""
    places = {name: tmp_path / name.replace("/", "-") for name in KNOWN}
    places["text"].write_bytes(b"some text\n" * 300_000)
    places["empty"].touch()
    with places["snapshot/ram"].open("wb") as stream:
        stream.truncate(64 << 20)
        stream.seek(10 << 20)
        stream.write(random.Random(1).randbytes(3 << 20))
    return places


@pytest.fixture
def archive(files: dict[str, Path], tmp_path: Path) -> Path:
    target = tmp_path / "archive"
    with new_file(target) as stream:
        parcel.write(stream, ABOUT, files, silent)
    return target


def unpack(archive: Path, folder: Path, *, wanted: Callable[[str], bool] = lambda _: True) -> records.Record:
    folder.mkdir(exist_ok=True)
    with parcel.opened(archive, belongs=KNOWN.__contains__) as opened:
        for member in opened.members:
            opened.receive(member, folder / member.name.replace("/", "-") if wanted(member.name) else None)
        opened.finish()
        return opened.record


def test_what_was_packed_is_unpacked_and_holes_are_holes_again(
    files: dict[str, Path], archive: Path, tmp_path: Path
) -> None:
    assert unpack(archive, tmp_path / "out") == ABOUT
    for path in files.values():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    ram = (tmp_path / "out" / "snapshot-ram").stat()
    assert (ram.st_size, ram.st_mode & 0o777) == (64 << 20, 0o600)
    assert ram.st_blocks * 512 < 4 << 20
    assert archive.stat().st_size < 4 << 20


def test_what_does_not_come_in_is_verified_and_not_written(archive: Path, tmp_path: Path) -> None:
    unpack(archive, tmp_path / "out", wanted=lambda name: name == "text")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["text"]


def test_an_archive_is_a_tar_that_others_can_list(archive: Path) -> None:
    plain = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(archive.read_bytes())).read()
    with tarfile.open(fileobj=io.BytesIO(plain)) as listed:
        assert listed.getnames() == ["manifest.toml", *KNOWN]


def test_an_archive_that_exists_is_not_written_over_and_one_that_fails_is_not_left(tmp_path: Path) -> None:
    target = tmp_path / "archive"
    with pytest.raises(ValueError, match="half"), new_file(target) as stream:
        fail_half_way(stream)
    assert list(tmp_path.iterdir()) == []
    target.write_bytes(b"mine")
    with pytest.raises(StateError, match="File exists"), new_file(target):
        pass
    assert target.read_bytes() == b"mine"


def fail_half_way(stream: BinaryIO) -> None:
    stream.write(b"half")
    raise ValueError("half")


def test_any_altered_byte_is_noticed_unless_it_changes_nothing(
    files: dict[str, Path], archive: Path, tmp_path: Path
) -> None:
    whole = archive.read_bytes()
    places, noticed = random.Random(2), 0
    for at in (0, 5, len(whole) - 1, *(places.randrange(len(whole)) for _ in range(20))):
        archive.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        try:
            unpack(archive, tmp_path / "out")
        except SnapshotError:
            noticed += 1
        else:  # zstd's own header says things that need not be right, such as how much memory a reader may use
            assert all((tmp_path / "out" / path.name).read_bytes() == path.read_bytes() for path in files.values())
        shutil.rmtree(tmp_path / "out")
    assert noticed > 20


def test_an_archive_that_ends_too_early_is_noticed(archive: Path, tmp_path: Path) -> None:
    whole = archive.read_bytes()
    for length in (0, 3, 100, len(whole) // 2, len(whole) - 5):  # zstd's own checksum is left over then
        archive.write_bytes(whole[:length])
        with pytest.raises(SnapshotError, match="is damaged, or no archive of a snapshot"):
            unpack(archive, tmp_path / f"out-{length}")


def test_a_missing_archive_is_told(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match="cannot be read: No such file"):
        unpack(tmp_path / "nothing", tmp_path / "out")


# -- forged ----------------------------------------------------------------------------------------------------------


def entry(
    name: str, content: bytes, kind: bytes = tarfile.REGTYPE, *, size: int | None = None, linkname: str = ""
) -> bytes:
    """Return a member of a tar."""
    header = tarfile.TarInfo(name)
    header.size, header.type, header.linkname = len(content) if size is None else size, kind, linkname
    return header.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


def described(name: str, content: bytes, **changes: object) -> dict[str, Any]:
    digest = hashlib.sha512(content).hexdigest()
    return {"name": name, "size": len(content), "file_size": len(content), "sha512": digest, **changes}


def forged(
    path: Path, members: Iterable[dict[str, Any]], *entries: bytes, version: object = 1, end: bytes = b""
) -> Path:
    """Write an archive whose manifest says ``members``, and that holds ``entries``."""
    manifest = records.dump({"format": version, **ABOUT, "members": list(members)}).encode()
    plain = b"".join([entry("manifest.toml", manifest), *entries, bytes(1024), end])
    path.write_bytes(zstandard.ZstdCompressor().compress(plain))
    return path


def refused(archive: Path, because: str) -> None:
    out = archive.parent / "out"
    with pytest.raises(SnapshotError, match=because) as caught:
        unpack(archive, out)
    assert caught.value.hint
    assert not out.exists() or list(out.iterdir()) == []


TEXT = b"hello"


def test_what_a_forger_cannot_do_without_is_right(tmp_path: Path) -> None:
    unpack(forged(tmp_path / "archive", [described("text", TEXT)], entry("text", TEXT)), tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "member", "because"),
    [
        ("../text", entry("../text", TEXT), "names a member twice, or one that does not belong there"),
        ("/etc/passwd", entry("/etc/passwd", TEXT), "names a member twice, or one that does not belong there"),
        ("text", entry("../text", TEXT), r"'text' is expected, and there is '\.\./text'"),
        ("text", entry("text", b"", tarfile.SYMTYPE, linkname="/etc/passwd"), "'text' is expected, and there is"),
        ("text", entry("text", b"", tarfile.LNKTYPE, linkname="manifest.toml"), "'text' is expected, and there is"),
        ("text", entry("text", b"", tarfile.CHRTYPE), "'text' is expected, and there is"),
        ("text", entry("text", b"", tarfile.DIRTYPE), "'text' is expected, and there is"),
        ("text", entry("text", b"x" * 512, tarfile.XHDTYPE), "'text' is expected, and there is"),
        ("text", entry("text", b"x" * 512, tarfile.GNUTYPE_LONGNAME), "'text' is expected, and there is"),
        ("text", entry("text", TEXT, size=1 << 60), "has another size than its manifest says"),
        ("text", entry("text", b"hallo"), "the content of 'text' is not what its digest says"),
        ("text", b"\xff" * 512, "'text' is expected, and there is no file"),
        ("text", b"", "'text' is expected, and there is no file"),
    ],
)
def test_a_member_that_is_not_the_file_that_was_announced_is_refused(
    tmp_path: Path, name: str, member: bytes, because: str
) -> None:
    refused(forged(tmp_path / "archive", [described(name, TEXT)], member), because)


@pytest.mark.parametrize(
    ("changes", "because"),
    [
        ({"size": -1}, "says no size of 'text'"),
        ({"size": "5"}, "says no size of 'text'"),
        ({"size": True}, "says no size of 'text'"),
        ({"file_size": 1 << 60}, "says two sizes of 'text'"),
        ({"sha512": "0" * 128}, "the content of 'text' is not what its digest says"),
        ({"more": 1}, "its manifest cannot be read"),
    ],
)
def test_a_manifest_that_lies_is_refused(tmp_path: Path, changes: dict[str, Any], because: str) -> None:
    refused(forged(tmp_path / "archive", [described("text", TEXT, **changes)], entry("text", TEXT)), because)


def test_a_member_that_comes_twice_or_that_nobody_announced_is_refused(tmp_path: Path) -> None:
    twice = [described("text", TEXT)] * 2
    refused(forged(tmp_path / "twice", twice, *[entry("text", TEXT)] * 2), "names a member twice")
    more = forged(tmp_path / "more", [described("text", TEXT)], entry("text", TEXT), entry("more", TEXT))
    after = forged(tmp_path / "end", [described("text", TEXT)], entry("text", TEXT), end=b"more")
    for archive in (more, after):
        with pytest.raises(SnapshotError, match="something follows its last member"):
            unpack(archive, tmp_path / f"out of {archive.name}")


@pytest.mark.parametrize("version", [0, 2, "1", True])
def test_another_format_is_refused_with_its_number(tmp_path: Path, version: object) -> None:
    refused(
        forged(tmp_path / "archive", [], version=version), f"has format {version!r}, and this program knows format 1"
    )


def test_a_manifest_that_is_too_long_or_that_is_none_is_refused(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb"
    bomb.write_bytes(zstandard.ZstdCompressor().compress(entry("manifest.toml", bytes(2 << 20))))
    refused(bomb, "its manifest has 2097152 bytes")
    none = tmp_path / "none"
    none.write_bytes(zstandard.ZstdCompressor().compress(entry("manifest.toml", b"\xff = [")))
    refused(none, "its manifest cannot be read")


@pytest.mark.parametrize(
    "stream",
    [
        extents._HEAD.pack(0, 4) + b"abcd" + extents._HEAD.pack(1 << 50, 0),  # the file is larger than it says
        extents._HEAD.pack(4096, 4) + b"abcd" + extents._HEAD.pack(64, 0),  # it writes behind the end
        extents._HEAD.pack(8, 4) + b"abcd" + extents._HEAD.pack(4, 4) + b"abcd" + extents._HEAD.pack(64, 0),
        extents._HEAD.pack(0, 1 << 60) + b"abcd",
        extents._HEAD.pack(64, 0) + b"more",
        b"",
    ],
)
def test_a_sparse_file_that_is_none_is_refused(tmp_path: Path, stream: bytes) -> None:
    name = "snapshot/ram"
    archive = forged(tmp_path / "archive", [described(name, stream, file_size=64)], entry(name, stream))
    refused(archive, f"'{name}'")


def test_any_sparse_file_comes_back(tmp_path: Path) -> None:
    chance, source, target = random.Random(3), tmp_path / "source", tmp_path / "target"
    for _ in range(30):
        size = chance.randrange(3 << 20)
        with source.open("wb") as stream:
            stream.truncate(size)
            for _ in range(chance.randrange(5)):
                stream.seek(chance.randrange(size + 1))
                stream.write(chance.randbytes(min(size - stream.tell(), chance.randrange(1 << 18))))
        content = io.BytesIO(b"".join(extents.encode(source)))
        with target.open("wb") as stream:
            extents.decode(content.read, stream.fileno(), size=size)
        assert target.read_bytes() == source.read_bytes()
        assert content.read() == b""
