"""kill -9 at every step of what the image store does: a generation is whole or not there, and the next try works."""

from __future__ import annotations

import importlib.util
import os
import random
import sys
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import pytest

from vmimagemanager import disks
from vmimagemanager.files.formats import Format
from vmimagemanager.images import Image, ImageStore, export, pull, share
from vmimagemanager.images.archives import ArchiveStore
from vmimagemanager.images.stage import stage
from vmimagemanager.progress import silent
from vmimagemanager.units import Size

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
_SPEC = importlib.util.spec_from_file_location("dying", Path(__file__).parents[1] / "vm" / "dying.py")
assert _SPEC is not None
assert _SPEC.loader is not None
dying = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(dying)


def deaths(folder: Path, deed: Callable[[], object]) -> Iterator[str]:
    """Do a deed in child processes, killed before its first step, its second, and so on, until one ends by itself."""
    for number in count(1):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.dup2(writing, 2)
            status = 1
            try:
                sys.addaudithook(dying.Countdown(number, str(folder)).audit)
                deed()
                status = 0
            except BaseException:  # noqa: BLE001 - told to the parent
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(writing)
        with os.fdopen(reading, "rb") as stream:
            said = stream.read().decode(errors="replace")
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            assert os.waitstatus_to_exitcode(status) == 0, said
            assert number > 5
            return
        yield said


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "state")


def publish(store: ImageStore, state: Path, seed: int) -> Image:
    with stage(state, purpose="test") as own:
        (own / "raw").write_bytes(random.Random(seed).randbytes(1 << 19))
        disks.convert(own / "raw", own / "disk", source_format="raw")
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


def require_whole(store: ImageStore, step: str) -> None:
    assert list(store.examine()) == [], step
    for image in store.list():
        store.require_whole(image)


def require_nothing_left(store: ImageStore, state: Path) -> None:
    store.stale_stages(remove=True)
    store.unneeded_blobs(dict, remove=True)
    pull.stale(state, remove=True)
    needed = {digest for image in store.list() for digest in image.needed}
    folder = state / "blobs/sha512"
    assert {path.name for path in folder.iterdir()} == needed
    assert [path.name for path in (state / "stage/images").iterdir()] == ["lock"]


def test_a_publication_may_die_at_every_step(store: ImageStore, tmp_path: Path) -> None:
    state = tmp_path / "state"
    publish(store, state, 0)
    for step in deaths(state, lambda: publish(store, state, 1)):
        require_whole(store, step)
        require_nothing_left(store, state)


def test_a_removal_may_die_at_every_step(store: ImageStore, tmp_path: Path) -> None:
    state = tmp_path / "state"
    publish(store, state, 0)
    publish(store, state, 1)
    for step in deaths(state, lambda: store.prune("web", keep=1, used_by=dict, remove=True)):
        require_whole(store, step)
        require_nothing_left(store, state)
        while len(store.list()) < 2:
            publish(store, state, 1)


def test_a_push_may_die_at_every_step(store: ImageStore, tmp_path: Path) -> None:
    url = tmp_path / "shared"
    image = publish(store, tmp_path / "state", 0)
    other = ImageStore(tmp_path / "other")
    for step in deaths(url, lambda: share.push(store, image, str(url), progress=silent)):
        if (url / "images").exists() and list((url / "images").glob("*/*.toml")):  # visible, and therefore whole
            pulled = pull.pull(other, tmp_path / "other", "web", str(url), progress=silent)
            other.verify(pulled.image)
        assert step
    other.verify(pull.pull(other, tmp_path / "other", "web", str(url), progress=silent).image)


def test_a_pull_may_die_at_every_step(store: ImageStore, tmp_path: Path) -> None:
    url, state = tmp_path / "shared", tmp_path / "other"
    share.push(store, publish(store, tmp_path / "state", 0), str(url), progress=silent)
    other = ImageStore(state)
    for step in deaths(state, lambda: pull.pull(other, state, "web", str(url), progress=silent)):
        require_whole(other, step)
    assert [image.address for image in other.list()] == ["web:1"]
    require_nothing_left(other, state)


def test_an_export_may_die_at_every_step(store: ImageStore, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    image = publish(store, tmp_path / "state", 0)
    target = folder / "web.vmdk"
    for step in deaths(folder, lambda: export.export(store, image, target, file_format=None, progress=silent)):
        if target.exists():  # the last step was the removal of the stage
            assert disks.info(target, disk_format="vmdk").virtual_size == image.disk_size, step
            target.unlink()
    assert [path.name for path in folder.iterdir()] == [target.name]


def test_an_archive_may_die_at_every_step(tmp_path: Path) -> None:
    state = tmp_path / "state"
    archives = ArchiveStore(state)

    def make(target: Path) -> Size:
        return Size(target.write_bytes(b"content" * 10000))

    def archive() -> None:
        archives.keep("web-files", Format.TAR_ZST, make, stored_from="web", description="")

    for step in deaths(state, archive):
        assert list(archives.examine()) == [], step
        ImageStore(state).stale_stages(remove=True)
        for kept in archives.list():  # the last step was the removal of the stage
            archives.verify(kept)
            archives.remove(kept.address)
        assert not list(state.glob("archives/*/*")), step
    archives.verify(archives.get("web-files"))
