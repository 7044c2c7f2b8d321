"""fsck and gc on a real state directory beside a real libvirt."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import timedelta

import pytest

from vmimagemanager import Box, Manager
from vmimagemanager.cli.run import run
from vmimagemanager.deadline import pause
from vmimagemanager.errors import StateError
from vmimagemanager.leases import Leases
from vmimagemanager.state import BoxFolder

CLI = Callable[..., tuple[int, str]]


@pytest.fixture
def folder(box: Box, manager: Manager) -> BoxFolder:
    manager.gc(remove=True)
    return manager.site.state.box(box.name)


@pytest.fixture
def cli(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CLI:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def call(*words: str) -> tuple[int, str]:
        status = run(words)
        return status, capsys.readouterr().out

    return call


def test_what_is_damaged_is_found_with_the_command_that_helps(box: Box, folder: BoxFolder, cli: CLI) -> None:
    assert cli("fsck") == (0, "No findings.\n")
    box.snapshot("torn")
    snapshot = folder.snapshot("torn")
    snapshot.device_state.unlink()
    status, output = cli("fsck")
    assert status == StateError.exit_code
    assert f"'{snapshot.device_state}' is missing" in output
    assert f"try: vmimagemanager snapshot-remove {box.name}@torn" in output
    assert output.endswith("1 finding.\n")
    box.remove_snapshot("torn")
    private = folder.keys / "login" / "id_ed25519"
    private.chmod(0o644)
    status, output = cli("--json", "fsck")
    private.chmod(0o600)
    (finding,) = json.loads(output)["findings"]
    assert (finding["where"], finding["hint"]) == (box.name, f"chmod 600 '{private}'")
    record = folder.record.read_text()
    folder.record.write_text("nonsense")
    status, output = cli("fsck")
    folder.record.write_text(record)
    assert status == StateError.exit_code
    assert "1 finding." in output
    assert cli("fsck") == (0, "No findings.\n")


def test_a_box_at_work_is_not_examined(box: Box, manager: Manager) -> None:
    with manager.lease(box.name):
        assert box.name in manager.fsck().in_use
    assert box.name not in manager.fsck().in_use


def test_gc_only_says_what_it_would_remove_until_it_may(box: Box, manager: Manager, cli: CLI) -> None:
    state = manager.site.state
    foreign = state.boxes / ".not-ours"
    half_made = state.boxes / f".{box.name}-9.4711"
    blob = state.path / "blobs" / "sha512" / ("0" * 128)
    foreign.mkdir()
    half_made.mkdir()
    blob.write_bytes(b"x" * 8192)
    (clone,) = clones = box.fork("clean", count=1)
    clones.keep()
    shutil.rmtree(state.box(clone.name).path)
    status, output = cli("gc")
    assert status == 0
    for word in (str(half_made), f"the domain '{clone.name}'", str(blob), "vmimagemanager gc --remove"):
        assert word in output
    assert half_made.exists()
    assert blob.exists()
    assert manager.site.domain(clone.name) is not None
    assert cli("gc", "--remove")[0] == 0
    assert cli("gc", "--dry-run") == (0, "There is nothing to remove.\n")
    assert not half_made.exists()
    assert not blob.exists()
    assert manager.site.hypervisor.find(clone.name) is None
    assert foreign.exists()
    foreign.rmdir()
    assert box.run(["true"]).status == 0


def test_clones_end_with_the_process_that_leases_them(box: Box, manager: Manager) -> None:
    clones = box.fork("clean", count=2)
    assert manager.gc() == ()
    lease = clones[0]._lease
    assert lease is not None
    lease.release()  # as a killed process does
    clones[1].keep()
    clones[1].release()
    (leftover,) = manager.gc(remove=True)
    assert leftover.what == f"the clone '{clones[0].name}', whose process has ended"
    assert clones[0].name not in manager.boxes()
    assert manager.box(clones[1].name).run(["hostname"]).text.strip() == clones[1].name
    manager.box(clones[1].name).undefine(force=True)


def test_holds_that_are_over_go_and_the_others_stay(box: Box, manager: Manager) -> None:
    box.lock(timedelta(seconds=1))
    assert manager.gc() == ()
    pause(2.0)
    assert Leases(manager.site.state).hold(box.name) is None
    (leftover,) = manager.gc(remove=True)
    assert "the hold" in leftover.what
    assert manager.gc() == ()
