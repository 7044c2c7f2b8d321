"""The inventory that is kept with a snapshot, and the moment since which changes count."""

from __future__ import annotations

import secrets
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.unit.test_snapshot_report import snapshot
from vmimagemanager.boxes import archive
from vmimagemanager.boxes.hindsight import Past
from vmimagemanager.config import Engine
from vmimagemanager.deadline import Stopwatch
from vmimagemanager.errors import GuestError, SnapshotError, StateError
from vmimagemanager.guest import inventory
from vmimagemanager.guest.inventory import EVER
from vmimagemanager.snapshots import Manifest, keep_inventory, kept_inventory
from vmimagemanager.state import BoxFolder, SnapshotFolder

MARK = secrets.token_hex(16)
TAKEN = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)


def answered(mark: str, clock: int = 5) -> bytes:
    sections = {"dpkg": "install ok installed\tdpkg\tamd64\t1.2\tdpkg\tyes\t\t\t\t\n", "clock": f"{clock}\n"}
    parts = [f"\036{mark} {name}\n{content}\036{mark}=0\n" for name, content in sections.items()]
    return "".join([*parts, f"\036{mark}.\n"]).encode()


@pytest.fixture
def folder(tmp_path: Path) -> SnapshotFolder:
    found = BoxFolder(tmp_path / "boxes" / "web").snapshot("clean")
    found.path.mkdir(parents=True)
    return found


@pytest.fixture
def manifest() -> Manifest:
    return replace(snapshot("clean").manifest, created=TAKEN)


def test_what_was_kept_is_read_again_with_the_moment_for_a_clock(folder: SnapshotFolder, manifest: Manifest) -> None:
    assert kept_inventory(folder, manifest) is None
    kept = keep_inventory(folder, manifest, answered(MARK), MARK, since=1234)
    found = kept_inventory(folder, manifest)
    assert found == kept
    assert found is not None
    assert found.items == {"dpkg:dpkg"}
    assert found.clock == 1234
    assert folder.inventory.stat().st_mode & 0o777 == 0o600


def test_half_an_answer_is_not_kept(folder: SnapshotFolder, manifest: Manifest) -> None:
    with pytest.raises(GuestError, match="cut off"):
        keep_inventory(folder, manifest, answered(MARK)[:-5], MARK, since=0)
    assert list(folder.path.iterdir()) == []


def test_that_of_another_snapshot_another_probe_or_another_format_is_as_none(
    folder: SnapshotFolder, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_inventory(folder, manifest, answered(MARK), MARK, since=1)
    assert kept_inventory(folder, replace(manifest, layer="1" * 16)) is None
    content = folder.inventory.read_bytes()
    folder.inventory.write_bytes(b"vmimagemanager-inventory 2 of any other form\n")
    assert kept_inventory(folder, manifest) is None
    folder.inventory.write_bytes(content)
    assert kept_inventory(folder, manifest) is not None
    monkeypatch.setattr(inventory.system, "PROBE", inventory.system.PROBE + "section more :\n")
    assert kept_inventory(folder, manifest) is None


@pytest.mark.parametrize("at", [0, 30, -1])
def test_a_file_with_another_byte_is_damaged_or_as_none_but_never_believed(
    folder: SnapshotFolder, manifest: Manifest, at: int
) -> None:
    keep_inventory(folder, manifest, answered(MARK), MARK, since=1)
    content = bytearray(folder.inventory.read_bytes())
    content[at] ^= 1
    folder.inventory.write_bytes(content)
    if at == 30:
        assert kept_inventory(folder, manifest) is None  # it names another layer
    else:
        with pytest.raises(StateError, match="inventory") as caught:
            kept_inventory(folder, manifest)
        assert "vmimagemanager inventory web@clean" in caught.value.hint


@pytest.mark.parametrize("length", [0, 10, 200, -1])
def test_a_file_that_was_cut_off_is_damaged(folder: SnapshotFolder, manifest: Manifest, length: int) -> None:
    keep_inventory(folder, manifest, answered(MARK), MARK, since=1)
    folder.inventory.write_bytes(folder.inventory.read_bytes()[:length])
    with pytest.raises(StateError):
        kept_inventory(folder, manifest)


@pytest.mark.parametrize(
    ("shown", "since"),
    [
        pytest.param(TAKEN.timestamp() + 86400, TAKEN.timestamp() - 2, id="a clock that was set"),
        pytest.param(TAKEN.timestamp() - 3600, TAKEN.timestamp() - 3600 - 1 - 2, id="one that nobody sets"),
    ],
)
def test_changes_count_since_the_snapshot_by_the_guests_own_clock(
    folder: SnapshotFolder, manifest: Manifest, shown: float, since: float
) -> None:
    asked = []

    def probe(script: str) -> bytes:
        mark = script.partition("mark=")[2].split()[0]
        asked.append(script == inventory.script(mark, since=EVER))
        return answered(mark, clock=int(shown))

    past = Past(BoxFolder(folder.path.parent.parent), manifest)
    assert past.known() is None
    found = past.ask(probe, Stopwatch())
    assert (found.clock, asked) == (since, [True])
    assert past.known() == found


def test_a_snapshot_without_clones_is_refused_with_what_helps(folder: SnapshotFolder, manifest: Manifest) -> None:
    past = Past(BoxFolder(folder.path.parent.parent), replace(manifest, engine=Engine.SAVED))
    with pytest.raises(SnapshotError, match="'web@clean' cannot be listed: it is a saved snapshot") as caught:
        past.known()
    assert "vmimagemanager inventory web" in caught.value.hint


def test_an_answer_that_is_not_understood_any_more_is_asked_for_again(
    folder: SnapshotFolder, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_inventory(folder, manifest, answered(MARK), MARK, since=1)

    def refuse(*_: object) -> None:
        raise GuestError("dpkg-query wrote a line in the guest that is not understood.")

    monkeypatch.setattr(inventory, "parse", refuse)
    assert Past(BoxFolder(folder.path.parent.parent), manifest).known() is None


def test_it_does_not_travel_with_an_archive() -> None:
    assert archive.belongs(f"{archive.SNAPSHOT}domain.xml")
    assert not archive.belongs(f"{archive.SNAPSHOT}inventory")
