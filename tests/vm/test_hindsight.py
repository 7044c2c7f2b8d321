"""What was in a snapshot, asked of a clone and kept; and the trap that compares with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.vm.conftest import CLEAN, Testbed
from tests.vm.test_trap import program
from vmimagemanager import Box, Manager
from vmimagemanager.boxes.fork import clones_of
from vmimagemanager.guest.inventory import Inventory, Kind
from vmimagemanager.report.inventory import lines
from vmimagemanager.trap import Baseline, Rule

# A file of dpkg's own sums, and its time of last modification put back, which does not help.
MODIFY = """\
cp -p /usr/share/perl5/Debconf/Log.pm /root/times
echo '# changed' >>/usr/share/perl5/Debconf/Log.pm
touch -r /root/times /usr/share/perl5/Debconf/Log.pm
"""
MODIFIED = "modified:/usr/share/perl5/Debconf/Log.pm"


@pytest.fixture
def kept(box: Box, manager: Manager) -> Path:
    """Where the inventory of 'clean' is kept; it is not there yet."""
    path = manager.site.state.box(box.name).snapshot(CLEAN).inventory
    path.unlink(missing_ok=True)
    return path


def comparable(found: Inventory) -> list[str]:
    """Return the lines of an inventory but those on modified files, which only a verified one has."""
    return [line for line in lines(found) if not line.startswith("modified:")]


def without_fork(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("a clone was made")

    monkeypatch.setattr(type(box), "fork", refuse)


def test_a_snapshot_is_asked_once_by_a_clone_that_is_gone_and_whatever_the_box_is_now(
    box: Box, kept: Path, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = box.inventory()
    box.script("useradd --system intruder; install -m 4755 /bin/true /usr/local/bin/intruder; sync")
    first = box.inventory(snapshot=CLEAN)
    assert comparable(first) == lines(clean)
    assert Kind.MODIFIED not in first.unknown
    assert clones_of(manager.site, box.name) == ()
    assert kept.stat().st_mode & 0o777 == 0o600
    without_fork(box, monkeypatch)
    assert box.inventory(snapshot=CLEAN) == first
    assert box.inventory(snapshot=CLEAN).clock == first.clock


def test_one_that_is_damaged_is_found_by_fsck_and_taken_again(box: Box, kept: Path, manager: Manager) -> None:
    first = box.inventory(snapshot=CLEAN)
    content = kept.read_bytes()
    kept.write_bytes(content[:-100])
    box.disconnect()
    [finding] = [one for one in manager.fsck().findings if one.where == f"{box.name}@{CLEAN}"]
    assert "was altered or cut off" in finding.what
    assert f"inventory {box.name}@{CLEAN}" in finding.hint
    assert box.inventory(snapshot=CLEAN) == first
    assert not [one for one in manager.fsck().findings if one.where == f"{box.name}@{CLEAN}"]


def test_it_goes_with_its_snapshot_and_is_not_that_of_another_one_of_the_same_name(
    box: Box, kept: Path, manager: Manager
) -> None:
    box.snapshot("second")
    box.inventory(snapshot="second")
    path = manager.site.state.box(box.name).snapshot("second").inventory
    old = path.read_bytes()
    box.remove_snapshot("second")
    assert not path.exists()
    box.script("useradd --system latecomer; sync")
    box.snapshot("second")
    path.write_bytes(old)
    assert "latecomer" in {fact.name for fact in box.inventory(snapshot="second").facts if fact.kind is Kind.USER}


def test_what_came_since_the_snapshot_is_trapped_although_it_was_there_before_the_command(
    box: Box, kept: Path, tmp_path: Path
) -> None:
    path = tmp_path / "deps.toml"
    Baseline().write(path)
    box.script("install -m 4755 /bin/true /usr/local/bin/intruder\n" + MODIFY)
    with box.trap(path) as late:
        box.run(["true"])
    assert not late.verdict.trapped
    with box.trap(path, since=CLEAN) as trap:  # its inventory is taken after the change
        box.run(["true"])
    found = {finding.item: finding for finding in trap.verdict.findings}
    assert {"setuid:/usr/local/bin/intruder", MODIFIED} <= set(found)
    assert found[MODIFIED].rule is Rule.MODIFIED
    assert trap.verdict.trapped
    box.restore(CLEAN)
    with box.trap(path, since=CLEAN) as nothing:
        box.run(["true"])
    assert nothing.verdict.findings == ()


def test_a_file_that_was_modified_before_the_snapshot_is_no_news(box: Box, tmp_path: Path) -> None:
    path = tmp_path / "deps.toml"
    Baseline().write(path)
    box.script(MODIFY)
    box.snapshot("modified")
    with box.trap(path, since="modified") as trap:
        box.run(["true"])
    assert trap.verdict.findings == ()
    with box.trap(path, since="modified") as trap:
        box.script("echo '# again' >>/usr/share/perl5/Debconf/Log.pm")
    assert [finding.item for finding in trap.verdict.findings] == [MODIFIED]


def test_the_verbs_take_a_snapshot(box: Box, kept: Path, testbed_box: Testbed, tmp_path: Path) -> None:
    path = tmp_path / "deps.toml"
    Baseline().write(path)
    box.script("install -m 4755 /bin/true /usr/local/bin/intruder")
    box.disconnect()
    words = ("trap", box.name, "--since", CLEAN, "--baseline", str(path), "--", "true")
    status, _, told = program(testbed_box, *words)
    assert status == 100, told
    assert f"vmimagemanager trap {box.name} --baseline {path} --since {CLEAN} --accept -- true" in told
    status, out, told = program(testbed_box, "inventory", f"{box.name}@{CLEAN}", "--json")
    assert status == 0, told
    document = json.loads(out)
    assert (document["box"], document["snapshot"]) == (box.name, CLEAN)
    assert "setuid:/usr/bin/passwd" in {fact["item"] for fact in document["facts"]}
    assert "setuid:/usr/local/bin/intruder" not in {fact["item"] for fact in document["facts"]}
