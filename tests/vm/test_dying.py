"""kill -9 at every step: the snapshot is whole or absent, the box is usable, and nothing is left."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from vmimagemanager import Box, Manager
from vmimagemanager.boxes.fork import clones_of

PROGRAM = Path(__file__).with_name("dying.py")
KILLED = -9


def deaths(environment: dict[str, str], *words: str) -> Iterator[str]:
    """Run a verb, killed before its first step, its second, and so on, until it ends by itself; yield each step."""
    for number in count(1):
        finished = subprocess.run(
            [sys.executable, PROGRAM, str(number), environment["VMIM_STATE_DIR"], *words],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if finished.returncode != KILLED:
            assert finished.returncode == 0, finished.stderr
            assert number > 5
            return
        yield finished.stderr.splitlines()[-1]


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
    for step in deaths(environment, "fork", f"{box.name}@clean", "--count", "1"):
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
