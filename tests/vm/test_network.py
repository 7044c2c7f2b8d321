"""A box on a libvirt network: libvirt, its network and the library are in a network namespace of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from ipaddress import IPv4Interface
from pathlib import Path

import pytest

from tests.vm.conftest import new_name
from vmimagemanager import Manager

ROOT = Path(__file__).parents[2]
# libvirt keeps what it knows in these folders: the host's own libvirt neither sees nor loses anything.
INSIDE = """
ip link set lo up
for folder in /run /etc/libvirt/qemu /var/lib/libvirt /var/cache/libvirt; do
    mount -t tmpfs -o mode=755 tmpfs "$folder"
done
mkdir /run/lock
exec "$@"
"""


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
    inside = ["unshare", "--net", "--mount", "sh", "-euc", INSIDE, "inside"]
    program = [str(ROOT / "scripts" / "testbed"), sys.executable, str(ROOT / "tests" / "vm" / "network_life.py")]
    result = subprocess.run(
        [*inside, *program, str(own_state), name],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout)
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
    }
    assert [path.name for path in (own_state / "boxes").iterdir()] == []
    assert not Path("/sys/class/net/vmimtest0").exists()
