"""Boxes in libvirt's test driver: real definitions, real disks, and domains that run nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmimagemanager import Manager
from vmimagemanager.config import load
from vmimagemanager.hypervisor.connection import Hypervisor

NODE = """
<node>
  <cpu><mhz>1000</mhz><model>x86_64</model><active>2</active><nodes>1</nodes><sockets>1</sockets><cores>2</cores>
    <threads>1</threads></cpu>
  <memory>8388608</memory>
  <network>
    <name>small</name>
    <bridge name="small0"/>
    <ip address="192.168.213.1" prefix="24"><dhcp><range start="192.168.213.9" end="192.168.213.13"/></dhcp></ip>
  </network>
</node>
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of a libvirt of one's own for each connection to it."""
    path = tmp_path_factory.mktemp("libvirt") / "node.xml"
    path.write_text(NODE)
    return f"test://{path}"


@pytest.fixture(scope="module")
def hypervisor(node: str) -> Iterator[Hypervisor]:
    with Hypervisor.connect(node) as opened:
        yield opened


@pytest.fixture
def manager(node: str, tmp_path: Path) -> Iterator[Manager]:
    """Boxes in a libvirt of their own, on an image that boots nothing."""
    configuration = load(host_options={"uri": node, "state-dir": str(tmp_path / "state"), "accelerator": "tcg"})
    disk = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(disk), "1M"], check=True)
    (tmp_path / "kernel").write_text("no kernel")
    with Manager.of(configuration) as opened:
        opened.images.add("tiny", disk, kernel=tmp_path / "kernel", initrd=tmp_path / "kernel", command_line="quiet")
        yield opened
