"""A box on a libvirt network, for test_network.py: run inside a network namespace, under scripts/testbed."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

from vmimagemanager import Box, BoxSettings, Manager
from vmimagemanager.hypervisor.network import mac_of
from vmimagemanager.units import Size

BRIDGE = "vmimtest0"
NETWORK = f"""
<network>
  <name>isolated</name>
  <bridge name="{BRIDGE}" stp="off" delay="0"/>
  <ip address="192.168.213.1" netmask="255.255.255.0">
    <dhcp><range start="192.168.213.10" end="192.168.213.99"/></dhcp>
  </ip>
</network>
"""
ETH_P_ALL = 3  # linux/if_ether.h
SENDER = {b"\x08\x00": 26, b"\x08\x06": 28}  # where IPv4 and ARP have the address of whoever sends
BANNER = "exec 3<>/dev/tcp/{name}/22 && head -c 7 <&3"
LEASED = "until networkctl status 'en*' --no-pager | grep -q DHCP4; do sleep 0.5; done"
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
            box.kill()  # whoever has its address from here on is not the box
            seen["fork"] = fork(manager, box)
            seen["pool"] = pool(manager, box)
        finally:
            box.undefine(force=True)
    virsh("net-destroy", "isolated")
    return seen


def fork(manager: Manager, box: Box) -> dict[str, object]:
    """Fork the box into two clones on the network; return what was seen."""
    network = manager.site.hypervisor.network("isolated")
    with heard() as frames, box.fork("clean", count=2, lan=True) as clones:
        reached = [clone.show().ssh or ("", 0) for clone in clones]
        kept = {one.address for one in network.kept()}
        second, place = reached[1][0], clones[1].show().lan
        assert place is not None
        seen: dict[str, object] = {
            "kept": len(kept),
            "reached": set(reached) == {(address, 22) for address in kept},
            "names": [clone.run(["hostname"]).text.strip() == clone.name for clone in clones],
            "by name": clones[0].run(["bash", "-c", BANNER.format(name=clones[1].name)]).text,
            "by address": clones[0].run(["bash", "-c", BANNER.format(name=second)]).text,
        }
        clones[1].script(LEASED, limit=timedelta(minutes=1))
        shown = clones[1].script(ADDRESS).text.split()
        seen["after DHCP"] = sorted(shown) == sorted([f"{second}/24", f"{place.address}/24"])
        seen["restored"] = [clones[0].snapshot("own").engine, clones[0].restore("own").proven]
        seen["own"] = clones[0].run(["hostname"]).text.strip() == clones[0].name
    own = {(mac_of(address), said) for address in kept for said in (address, "0.0.0.0", "")}
    seen["heard"] = {(mac_of(address), address) for address in kept} <= frames
    seen["strangers"] = sorted(frames - own)
    seen["still kept"] = len(network.kept())
    return seen


def pool(manager: Manager, box: Box) -> dict[str, object]:
    """Take a spare of the box on the network; return what was seen."""
    network = manager.site.hypervisor.network("isolated")
    with manager.pool(f"{box.name}@clean", size=1) as spares:
        spares.fill(timedelta(minutes=1))
        with spares.acquire() as spare:
            kept = {one.address for one in network.kept()}
            address, _ = spare.show().ssh or ("", 0)
            name = spare.run(["hostname"]).text.strip()
            return {"name": name == spare.name, "its own": address in kept and not address.endswith(".1")}


@contextmanager
def heard() -> Iterator[set[tuple[str, str]]]:
    """Yield who says anything to the bridge during the block, as it grows: MAC address, and IPv4 address or nothing."""
    said: set[tuple[str, str]] = set()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as listener:
        listener.bind((BRIDGE, 0))
        listener.settimeout(0.1)
        over = threading.Event()

        def listen() -> None:
            while not over.is_set():
                with suppress(TimeoutError):
                    frame, (_, _, kind, *_) = listener.recvfrom(64)
                    if kind != socket.PACKET_OUTGOING:
                        at = SENDER.get(frame[12:14], len(frame))
                        said.add((frame[6:12].hex(":"), ".".join(map(str, frame[at : at + 4]))))

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield said
        finally:
            over.set()
            thread.join()


if __name__ == "__main__":
    json.dump(live(Path(sys.argv[1]), sys.argv[2]), sys.stdout)
