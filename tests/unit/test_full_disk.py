"""A disk that is really full, a small tmpfs: one clear error, nothing half there, and the next try works."""

from __future__ import annotations

import os
import random
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from vmimagemanager import disks
from vmimagemanager.errors import SpaceError
from vmimagemanager.files.formats import Format, keep
from vmimagemanager.images import Image, ImageStore, export, intake, pull, share
from vmimagemanager.images.archives import Archive, ArchiveStore
from vmimagemanager.images.imports import Import
from vmimagemanager.images.stage import stage
from vmimagemanager.progress import silent
from vmimagemanager.units import Size

pytestmark = pytest.mark.root
MIB = 1 << 20
CONTENT = random.Random(1).randbytes(8 * MIB)
# Free MiB when a deed begins: nothing, or enough for its beginning only.
ROOM = (0, 1, 5)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "vmim-test", folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(autouse=True, params=[True, False], ids=["foreseen", "unforeseen"])
def foreseen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk that is foreseen by who looks at what is free, and one that becomes full all the same."""
    monkeypatch.setattr(intake, "_RESERVE", Size(0))
    if not request.param:
        monkeypatch.setattr(intake, "free_space", lambda _: Size(1 << 40))
        for module in (intake, export, pull):
            monkeypatch.setattr(module, "require_space", lambda *_, **__: None)


@contextmanager
def full(folder: Path, *, but: int) -> Iterator[None]:
    """Fill a file system, but for some bytes, for a block."""
    filler = folder / "filler"
    state = os.statvfs(folder)
    with filler.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, state.f_bavail * state.f_frsize - but)
    try:
        yield
    finally:
        filler.unlink()


def files(folder: Path) -> dict[Path, int]:
    """Return the files below a folder, but for locks, and what they take."""
    return {
        path: path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and "lock" not in path.name and path.name != "filler"
    }


def require_refused(folder: Path, deed: Callable[[], object]) -> None:
    """Require that a deed finds a full disk full, leaves nothing then, and is done when there is room."""
    before = files(folder)
    for megabytes in ROOM:
        with full(folder, but=megabytes * MIB), pytest.raises(SpaceError) as caught:
            deed()
        assert caught.value.exit_code == 116
        assert files(folder) == before, megabytes
    deed()


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "raw"
    path.write_bytes(CONTENT)
    return path


def publish(store: ImageStore, state: Path, raw: Path) -> Image:
    with stage(state, purpose="test") as own:
        disks.convert(raw, own / "disk", source_format="raw")
        return store.publish(
            own,
            Image(
                name="web",
                generation=1,
                created=datetime(2026, 11, 1, tzinfo=UTC),
                disk=own / "disk",
                disk_size=disks.info(own / "disk").virtual_size,
                digests={},
            ),
        )


def test_an_import(small: Path, raw: Path) -> None:
    store = ImageStore(small)
    require_refused(small, lambda: store.import_image("web", raw, Import(format="raw")))
    store.verify(store.get("web"))


def test_a_build(small: Path) -> None:
    store = ImageStore(small)
    with pytest.raises(SpaceError):
        store.build("debian-12")
    assert files(small) == {}


def test_a_disk_that_is_stored(small: Path, raw: Path) -> None:
    store = ImageStore(small)
    require_refused(small, lambda: publish(store, small, raw))
    store.verify(store.get("web"))


def test_an_archive(small: Path, raw: Path) -> None:
    tar = raw.with_name("tar")
    with tarfile.open(tar, "w") as archive:
        archive.add(raw, "raw")
    store = ArchiveStore(small)
    for kind in Format:

        def make(target: Path, kind: Format = kind) -> Size:
            with tar.open("rb") as stream:
                keep(stream, kind, target, lambda _: None)
            return Size(tar.stat().st_size)

        def archive_it(kind: Format = kind, make: Callable[[Path], Size] = make) -> Archive:
            return store.keep(kind.name.lower().replace("_", "-"), kind, make, stored_from="web", description="")

        require_refused(small, archive_it)
    for kept in store.list():
        store.verify(kept)


def test_a_pull(small: Path, tmp_path: Path, raw: Path) -> None:
    there, url = ImageStore(tmp_path / "there"), str(tmp_path / "shared")
    share.push(there, publish(there, tmp_path / "there", raw), url, progress=silent)
    store = ImageStore(small)
    require_refused(small, lambda: pull.pull(store, small, "web", url, progress=silent))
    store.verify(store.get("web"))


def test_a_push(small: Path, tmp_path: Path, raw: Path) -> None:
    store = ImageStore(tmp_path / "here")
    image = publish(store, tmp_path / "here", raw)
    for megabytes in ROOM:
        with full(small, but=megabytes * MIB), pytest.raises(SpaceError):
            share.push(store, image, str(small / "shared"), progress=silent)
        assert not list(small.glob("shared/images/*/*.toml"))
    share.push(store, image, str(small / "shared"), progress=silent)
    far = ImageStore(tmp_path / "far")
    far.verify(pull.pull(far, tmp_path / "far", "web", str(small / "shared"), progress=silent).image)


@pytest.mark.parametrize("suffix", ["qcow2", "vmdk", "ova", "raw"])
def test_an_export(small: Path, tmp_path: Path, raw: Path, suffix: str) -> None:
    store = ImageStore(tmp_path / "here")
    image = publish(store, tmp_path / "here", raw)
    target = small / f"web.{suffix}"
    require_refused(small, lambda: export.export(store, image, target, file_format=None, progress=silent))
    assert [path.name for path in small.iterdir()] == [target.name]


def test_what_frees_a_full_disk_works_on_one(small: Path, raw: Path) -> None:
    store = ImageStore(small)
    publish(store, small, raw)
    with full(small, but=0):
        store.remove("web", used_by=dict)
        assert store.list() == []
        assert not list(small.glob("blobs/sha512/*"))
