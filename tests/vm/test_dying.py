"""kill -9 at every step: the snapshot is whole or absent, the box is usable, and nothing is left."""

from __future__ import annotations

from datetime import timedelta

from tests.vm.deaths import deaths
from vmimagemanager import Box, Manager
from vmimagemanager.boxes.fork import clones_of
from vmimagemanager.boxes.spares import Catalogue
from vmimagemanager.deadline import Deadline
from vmimagemanager.names import Address

LIMIT = timedelta(minutes=1)


def require_nothing_left(manager: Manager, step: str) -> None:
    """Require that `fsck` finds nothing, and that nothing is left for `gc`."""
    examination = manager.fsck()
    assert examination.findings == (), step
    assert manager.gc() == (), step


def require_usable(box: Box, snapshot: str, step: str) -> None:
    """Require that the box can be put back to a snapshot, proven, and obeys."""
    restored = box.restore(snapshot)
    assert (restored.engine, restored.proven) == ("live", True), step


def names(box: Box) -> set[str]:
    return {snapshot.name for snapshot in box.snapshots()}


def test_a_restore_may_die_at_every_step(box: Box, manager: Manager, environment: dict[str, str]) -> None:
    for step in deaths(environment, "restore", f"{box.name}@clean"):
        require_nothing_left(manager, step)
        require_usable(box, "clean", step)


def test_a_snapshot_may_die_at_every_step(box: Box, manager: Manager, environment: dict[str, str]) -> None:
    for step in deaths(environment, "snapshot", f"{box.name}@dying"):
        require_nothing_left(manager, step)
        if "dying" in names(box):  # it was published, and is therefore whole
            require_usable(box, "dying", step)
            box.remove_snapshot("dying")
        require_usable(box, "clean", step)


def test_a_removal_may_die_at_every_step(box: Box, manager: Manager, environment: dict[str, str]) -> None:
    box.snapshot("dying")
    for step in deaths(environment, "snapshot-remove", f"{box.name}@dying"):
        require_nothing_left(manager, step)
        if "dying" in names(box):
            require_usable(box, "dying", step)
        else:
            require_usable(box, "clean", step)
            box.snapshot("dying")


def test_a_fork_may_die_at_every_step(box: Box, manager: Manager, environment: dict[str, str]) -> None:
    def domains() -> tuple[str, ...]:
        return manager.site.hypervisor.owned_by(str(manager.state_directory))

    before = domains()
    for step in deaths(environment, "fork", f"{box.name}@clean", "--count", "1", "--lan"):
        manager.fsck()
        for clone in clones_of(manager.site, box.name):  # it was kept: the verb was about to end
            assert not manager.site.record(clone).temporary, step
            assert manager.box(clone).run(["hostname"]).text.strip() == clone, step
            manager.box(clone).undefine(force=True)
        require_nothing_left(manager, step)
        assert domains() == before, step
    for clone in clones_of(manager.site, box.name):
        manager.box(clone).undefine(force=True)
    require_usable(box, "clean", "none")


def test_a_taker_of_a_spare_may_die_at_every_step(box: Box, manager: Manager, environment: dict[str, str]) -> None:
    address = f"{box.name}@clean"
    catalogue = Catalogue(manager.site, Address.parse(address))
    with manager.pool(address, size=1) as pool:
        pool.fill(LIMIT)
        for step in deaths(environment, "acquire", address):
            kept = [name for name in clones_of(manager.site, box.name) if not manager.site.record(name).temporary]
            for name in kept:  # the verb was about to end
                assert manager.box(name).run(["hostname"]).text.strip() == name, step
                manager.box(name).undefine(force=True)
            # The pool removes what was taken by halves, and makes another one in its place.
            Deadline(LIMIT).wait_for("the leftover to go", lambda: not catalogue.leftovers())
            pool.fill(LIMIT)
            require_nothing_left(manager, step)
            assert len(clones_of(manager.site, box.name)) == 1, step
    for name in clones_of(manager.site, box.name):
        manager.box(name).undefine(force=True)
    require_nothing_left(manager, "none")
