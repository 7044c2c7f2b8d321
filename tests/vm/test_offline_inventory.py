"""The inventory of a guest that is off, by its own tools in an appliance."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vm.conftest import Testbed
from tests.vm.test_trap import program
from vmimagemanager import Box, Manager
from vmimagemanager.config import Engine
from vmimagemanager.errors import BoxError, GuestError
from vmimagemanager.guest.inventory import Inventory, Kind
from vmimagemanager.report.inventory import lines

ODD = r"""
set -e
useradd --system --no-create-home intruder
install -m 4755 /bin/true "/usr/local/bin/root
me"
: >"$(printf '/usr/local/bin/\377')"
mkdir -p /opt/app/node_modules/left-pad /mnt/dev
printf '{"name": "left-pad", "version": "1.3.0"}\n' >/opt/app/node_modules/left-pad/package.json
echo '# changed' >>/usr/share/perl5/Debconf/Log.pm
"""
ALIVE = (Kind.SOCKET, Kind.MODULE)


def still(found: Inventory) -> list[str]:
    """Return the lines of an inventory but those that only a running guest can tell."""
    return [line for line in lines(found) if not line.startswith(tuple(f"{kind}:" for kind in ALIVE))]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_guest_that_was_shut_down_has_in_it_what_it_had_while_it_ran_and_its_disk_stays_as_it_is(
    box: Box, manager: Manager, testbed_box: Testbed
) -> None:
    box.script(ODD)
    running = box.inventory(verify=True)
    assert not box.down().forced
    overlay = manager.site.state.box(box.name).overlay
    before = digest(overlay)
    off = box.inventory(verify=True)
    assert still(off) == still(running)
    assert "modified:/usr/share/perl5/Debconf/Log.pm" in {fact.item for fact in off.facts}
    assert {kind: off.unknown.get(kind) for kind in ALIVE} == dict.fromkeys(ALIVE, "the guest is off")
    assert off.unknown.keys() - set(ALIVE) == running.unknown.keys() - set(ALIVE)
    assert (off.system.id, off.system.kernel) == (running.system.id, "")
    status, out, told = program(testbed_box, "inventory", box.name)
    assert status == 0, told
    assert "npm:left-pad:/opt/app/node_modules 1.3.0" in out.splitlines()
    assert "Not looked at: socket: the guest is off." in told
    assert digest(overlay) == before


def test_a_disk_without_a_system_is_an_error_and_not_an_empty_inventory(define: Callable[..., Box]) -> None:
    box = define(channel="none")
    overlay = box._site.state.box(box.name).overlay
    overlay.unlink()
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(overlay), "64M"], check=True)
    with pytest.raises(BoxError, match="is off, cannot be listed: no ext4 file system with an '/etc' is on its disk"):
        box.inventory()


def test_a_snapshot_of_a_box_that_was_off_is_looked_at_on_its_disk(define: Callable[..., Box]) -> None:
    box = define()
    assert box.snapshot("bare").engine is Engine.DISK
    found = box.inventory(snapshot="bare")
    assert found.unknown[Kind.SOCKET] == "the guest is off"
    assert "dpkg:dpkg" in found.items
    assert box.inventory(snapshot="bare") == found


def test_folders_on_another_disk_are_told_and_not_taken_for_empty(define: Callable[..., Box], tmp_path: Path) -> None:
    box = define()
    fstab = "LABEL=nowhere /srv ext4 defaults 0 2\nLABEL=nowhere /boot ext4 noauto 0 2\n"
    box.extract(["/etc/fstab"], tmp_path)
    path = tmp_path / "fstab"
    path.write_text(path.read_text() + fstab)
    box.insert([path], to="/etc")
    with pytest.raises(
        GuestError, match="cannot be listed: its '/srv' lies where the appliance cannot mount it"
    ) as caught:
        box.inventory()
    assert f"vmimagemanager up {box.name}" in caught.value.hint
