"""A box on a libvirt network, for test_network.py: run inside a network namespace, under scripts/testbed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from vmimagemanager import BoxSettings, Manager
from vmimagemanager.units import Size

NETWORK = """
<network>
  <name>isolated</name>
  <bridge name="vmimtest0" stp="off" delay="0"/>
  <ip address="192.168.213.1" netmask="255.255.255.0">
    <dhcp><range start="192.168.213.10" end="192.168.213.99"/></dhcp>
  </ip>
</network>
"""
ADDRESS = "ip -4 -oneline address show scope global | awk '{print $4}'"


def virsh(*words: str) -> None:
    subprocess.run(["virsh", "--quiet", "--connect", "qemu:///system", *words], check=True, stdout=subprocess.DEVNULL)


def live(state: Path, name: str) -> dict[str, object]:
    """Define, boot, snapshot, restore and undefine a box on the network; return what was seen."""
    definition = Path("/run/isolated.xml")
    definition.write_text(NETWORK)
    virsh("net-define", str(definition))
    virsh("net-start", "isolated")
    seen: dict[str, object] = {}
    with Manager.open(uri="qemu:///system", state_directory=state) as manager:
        box = manager.define(name, BoxSettings(image="debian-12", ram=Size(384 << 20), network="libvirt:isolated"))
        try:
            box.up()
            seen["address"] = box.script(ADDRESS).text.strip()
            seen["ssh"] = box.show().ssh
            seen["taken"] = box.snapshot("clean").engine
            box.script("echo dirty >/run/canary")
            restored = box.restore("clean")
            seen["restored"] = [restored.engine, restored.proven]
            seen["left"] = box.run(["test", "-e", "/run/canary"], check=False).status
            seen["address again"] = box.script(ADDRESS).text.strip()
            seen["peer"] = box.script("echo ${SSH_CLIENT%% *}").text.strip()
            seen["command"] = subprocess.run(
                [*box.ssh_command(), "hostname"], capture_output=True, text=True, check=True
            ).stdout.strip()
        finally:
            box.undefine(force=True)
    virsh("net-destroy", "isolated")
    return seen


if __name__ == "__main__":
    json.dump(live(Path(sys.argv[1]), sys.argv[2]), sys.stdout)
