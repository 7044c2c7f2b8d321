"""A box on a libvirt network: libvirt, its network and the library are in a network namespace of their own."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from ipaddress import IPv4Interface
from pathlib import Path

import pytest

from tests.vm.conftest import new_name
from tests.vm.namespaces import run_inside
from vmimagemanager import Manager


@pytest.fixture
def own_state(state_directory: Path, manager: Manager) -> Iterator[Path]:
    """A state directory with the same images, beside the testbed's own."""
    assert manager.images.list()
    folder = Path(tempfile.mkdtemp(prefix=".vmim-test-", dir=state_directory.parent))
    try:
        folder.chmod(0o755)
        shutil.copytree(state_directory / "blobs", folder / "blobs", copy_function=os.link)
        shutil.copytree(state_directory / "images", folder / "images")
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.mark.root
def test_a_box_on_a_libvirt_network_and_its_clones_are_reached_each_at_its_own_address(own_state: Path) -> None:
    name = new_name()
    seen = run_inside("network_life.py", str(own_state), name)
    address = IPv4Interface(seen.pop("address"))
    assert str(address.network) == "192.168.213.0/24"
    assert seen == {
        "ssh": [str(address.ip), 22],
        "taken": "live",
        "restored": ["live", True],
        "left": 1,
        "address again": str(address),
        "peer": "192.168.213.1",
        "command": name,
        "fork": {
            "kept": 2,
            "reached": True,
            "names": [True, True],
            "by name": "SSH-2.0",
            "by address": "SSH-2.0",
            "after DHCP": True,
            "restored": ["live", True],
            "own": True,
            "heard": True,
            "strangers": [],  # the clones have said nothing with the addresses that their snapshot has
            "still kept": 0,
        },
        "pool": {"name": True, "its own": True},
    }
    assert [path.name for path in (own_state / "boxes").iterdir()] == []
    assert not Path("/sys/class/net/vmimtest0").exists()
