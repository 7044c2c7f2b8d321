"""Real guests: one image build, one cold boot, and a restore for each test.

``VMIM_TEST_STATE`` names a folder that keeps the state directory, and with it the image and the booted box, from one
run to the next; without it a new one is made in /var/tmp and removed at the end.  Simultaneous runs have a box each.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from vmimagemanager import Box, BoxSettings, Manager
from vmimagemanager.boxes.fork import clones_of
from vmimagemanager.hypervisor.connection import default_uri
from vmimagemanager.locks import FileLock
from vmimagemanager.units import Size

IMAGE = "debian-12"
CLEAN = "clean"
KEPT = "vmimtest-kept-"
RAM = Size(384 << 20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Testbed:
    """A box with a snapshot, and the environment in which any process of this run finds it."""

    __test__ = False
    name: str
    snapshot: str
    environment: dict[str, str]


@pytest.fixture(scope="session")
def state_directory() -> Iterator[Path]:
    """A state directory that QEMU's own user can reach."""
    kept = os.environ.get("VMIM_TEST_STATE")
    if kept:
        Path(kept).mkdir(mode=0o755, parents=True, exist_ok=True)
        yield Path(kept)
        return
    folder = Path(tempfile.mkdtemp(prefix="vmim-test-", dir="/var/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def environment(state_directory: Path) -> dict[str, str]:
    """What to lay over a child process's environment so that it works on the same boxes."""
    # pytester gives its children a home of their own, and the libvirt of a session lies in the home.
    return {"VMIM_STATE_DIR": str(state_directory), "VMIM_URI": default_uri(), "HOME": str(Path.home())}


@pytest.fixture(scope="session")
def manager(state_directory: Path) -> Iterator[Manager]:
    """The testbed's boxes, with the image built; all boxes are removed at the end, unless the state is kept."""
    with Manager.open(uri=default_uri(), state_directory=state_directory) as opened:
        if not opened.images.list():
            opened.images.build(IMAGE)
        yield opened
        if not os.environ.get("VMIM_TEST_STATE"):
            for name in reversed(opened.boxes()):  # a clone's name sorts after that of what it stands on
                opened.box(name).undefine(force=True)


@pytest.fixture(scope="session")
def booted_name(state_directory: Path) -> Iterator[str]:
    """The name of a box that no other run uses."""
    if not os.environ.get("VMIM_TEST_STATE"):
        yield new_name()
        return
    # libvirt's domains are shared by all state directories.
    place = f"{zlib.crc32(bytes(state_directory.absolute())):08x}"
    for number in range(1, 9):
        lock = FileLock(state_directory / f"{KEPT}{number}.lock")
        if lock.try_acquire():
            yield f"{KEPT}{place}-{number}"
            lock.release()
            return
    pytest.fail("too many test runs at the same time")


@pytest.fixture(scope="session")
def booted(manager: Manager, booted_name: str) -> Iterator[Box]:
    """The one box that was booted from its disk, with the live snapshot 'clean'.  Take `box` instead."""
    name = booted_name
    if name not in manager.boxes():
        manager.define(name, BoxSettings(image=IMAGE, ram=RAM))
    box = manager.box(name)
    if CLEAN not in [manifest.name for manifest in box.snapshots()]:
        box.up()
        box.snapshot(CLEAN)
    yield box
    box.kill()


@pytest.fixture
def box(booted: Box, manager: Manager) -> Iterator[Box]:
    """A running box that was just restored to 'clean'; clones, other snapshots and holds of it are gone."""
    for clone in clones_of(manager.site, booted.name):
        manager.box(clone).undefine(force=True)
    for manifest in booted.snapshots():
        if manifest.name != CLEAN:
            booted.remove_snapshot(manifest.name)
    booted.unlock(force=True)
    booted.restore(CLEAN)
    yield booted
    booted.disconnect()


@pytest.fixture
def testbed_box(booted: Box, environment: dict[str, str]) -> Testbed:
    """The booted box for other processes to work on."""
    return Testbed(name=booted.name, snapshot=CLEAN, environment=environment)


@pytest.fixture
def define(manager: Manager) -> Iterator[Callable[..., Box]]:
    """Define boxes of one's own, switched off, by keywords of `BoxSettings`; they are removed at the end."""
    made: list[str] = []

    def make(**settings: object) -> Box:
        name = new_name()
        made.append(name)
        chosen: dict[str, object] = {"image": IMAGE, "ram": RAM, **settings}
        return manager.define(name, BoxSettings(**chosen))  # type: ignore[arg-type]  # keywords of the caller's

    yield make
    for name in made:
        if name in manager.boxes():
            manager.box(name).undefine(force=True)


@pytest.fixture
def there(state_directory: Path) -> Iterator[Manager]:
    """Another state directory, as another host would have; its boxes are removed at the end."""
    path = state_directory.with_name(f"{state_directory.name}-there-{os.getpid()}")
    path.mkdir(mode=0o755)
    try:
        with Manager.open(uri=default_uri(), state_directory=path) as opened:
            yield opened
            for name in opened.boxes():
                opened.box(name).undefine(force=True)
    finally:
        shutil.rmtree(path)


@pytest.fixture
def file(state_directory: Path) -> Iterator[Path]:
    """Where an archive may be written."""
    path = state_directory / "exported.vmim"
    path.unlink(missing_ok=True)
    yield path
    path.unlink(missing_ok=True)


def new_name() -> str:
    """Return a name that no other run uses: libvirt's domains are shared by all of them."""
    return f"vmimtest-{secrets.token_hex(4)}"
