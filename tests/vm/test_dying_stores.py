"""kill -9 at every step of what stores a running box: a generation is whole or not there, and the guest goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.deaths import KILLED, deaths, dying
from tests.vm.test_dying import require_nothing_left
from vmimagemanager import Box, Manager
from vmimagemanager.boxes import reach
from vmimagemanager.images import look
from vmimagemanager.images.archives import ArchiveStore

CLEAN = "clean"
STORED = "dying-stored"
_FROZEN = "guest-fsfreeze-thaw"
_COPIED = "/stage/"


@pytest.fixture(autouse=True)
def nothing_stored(manager: Manager) -> Iterator[None]:
    """Remove what a test stored, and what one before that was interrupted did."""
    remove_stored(manager)
    yield
    remove_stored(manager)


def remove_stored(manager: Manager) -> None:
    if generations(manager):
        manager.remove_image(STORED)
    archives = ArchiveStore(manager.state_directory)
    if archives.has(STORED):
        archives.remove(STORED)


def generations(manager: Manager) -> list[str]:
    return [image.address for image in manager.images.list() if image.name == STORED]


def require_goes_on(box: Box, manager: Manager, step: str) -> None:
    """Require that a guest that runs can write; one that was ended before its snapshot was whole is restored."""
    domain = manager.site.domain(box.name)
    if domain is None:
        assert box.restore(CLEAN).proven, step
        return
    assert reach.agent(domain).command("guest-fsfreeze-status") == "thawed", step
    record = manager.site.record(box.name)
    written = reach.runner(domain, record, manager.site.state.box(box.name)).run(
        ["sh", "-c", "echo > /root/written && sync"], limit=record.settings.ssh_timeout
    )
    assert written.status == 0, step


def test_a_store_of_a_running_box_may_die_at_every_step_of_its_snapshot(
    box: Box, manager: Manager, environment: dict[str, str]
) -> None:
    steps = []
    for step in deaths(environment, "store", box.name, STORED):
        steps.append(step)
        require_nothing_left(manager, step)
        require_goes_on(box, manager, step)
        assert generations(manager) == [], step
        if _COPIED in step:  # from here on it is a store of a snapshot, see below
            break
    assert any(_FROZEN in step for step in steps)
    assert [snapshot.name for snapshot in box.snapshots()] == [CLEAN]


def test_a_guest_that_was_left_frozen_is_thawed_by_the_next_operation(
    box: Box, manager: Manager, environment: dict[str, str]
) -> None:
    with dying(environment, "store", box.name, STORED) as run:
        status, step = run(_FROZEN)
    assert status == KILLED, step
    domain = manager.site.domain(box.name)
    assert domain is not None
    assert reach.agent(domain).command("guest-fsfreeze-status") == "frozen", step
    assert [left.what for left in manager.gc() if "left frozen" in left.what], step
    assert box.run(["sh", "-c", "echo written > /root/written && sync && cat /root/written"]).text == "written\n"
    require_nothing_left(manager, step)


def test_a_store_may_die_at_every_step_of_its_publication(
    box: Box, manager: Manager, environment: dict[str, str], tmp_path: Path
) -> None:
    packages = manager.images.get("debian-12").packages
    for step in deaths(environment, "store", box.name, STORED, "--snapshot", CLEAN):
        require_nothing_left(manager, step)
        for address in generations(manager):  # it is there, and therefore whole
            image = manager.images.get(address)
            manager.images.verify(image)
            with look.opened(image.disk, tmp_path) as system:
                assert system.packages() == packages, step
            manager.remove_image(address)
    (address,) = generations(manager)
    manager.images.verify(manager.images.get(address))
    assert box.run(["hostname"]).text == f"{box.name}\n"


def test_an_archive_of_a_running_box_may_die_while_its_disk_is_read_and_when_it_is_kept(
    box: Box, manager: Manager, environment: dict[str, str]
) -> None:
    archives = ArchiveStore(manager.state_directory)
    with dying(environment, "store", box.name, STORED, "--format", "tar.zst") as run:
        for wanted in ("--pdeathsig=KILL", "/generation/files", "/generation/.manifest.toml"):
            status, step = run(wanted)
            assert status == KILLED, step
            require_nothing_left(manager, step)
            require_goes_on(box, manager, step)
            assert not archives.has(STORED), step
