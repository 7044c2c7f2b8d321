"""The life of one box through qemu:///session, for test_session.py: run as a program by a user that the test made."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

from vmimagemanager import Box, BoxSettings, Manager
from vmimagemanager.config import Hook, Moment, Place
from vmimagemanager.forks import Fork
from vmimagemanager.units import Size

LIMIT = timedelta(minutes=2)
CANARY, MEMORY = "/root/canary", "/run/canary"
BANNER = "exec 3<>/dev/tcp/{}/22 && head -c 7 <&3"


def live(manager: Manager, name: str) -> dict[str, object]:
    """Define, boot, snapshot, dirty, restore, use, end and undefine a box; return what was seen."""
    seen: dict[str, object] = {"uri": manager.site.hypervisor.uri}
    hook = Hook(moment=Moment.AFTER_RESTORE, where=Place.HOST, command=("sh", "-c", 'echo "$VMIM_BOX" >&2'))
    settings = BoxSettings(image="debian-12", ram=Size(384 << 20), hooks=(hook,))
    with ExitStack() as stack:
        box = manager.define(name, settings)
        stack.callback(lambda: box.undefine(force=True) if name in manager.boxes() else None)
        up = box.up()
        seen["up"] = [up.started, up.first_boot, up.system]
        boot_id = box.run(["cat", "/proc/sys/kernel/random/boot_id"]).text
        seen["taken"] = [box.snapshot("clean").engine, box.run(["hostname"]).text.strip()]
        box.script(f"echo dirty >{CANARY}; echo dirty >{MEMORY}; sync")
        restored = box.restore("clean")
        seen["restored"] = [restored.engine, restored.proven, list(restored.why_not)]
        seen["left"] = [box.run(["test", "-e", path], check=False).status for path in (CANARY, MEMORY)]
        seen["same boot"] = box.run(["cat", "/proc/sys/kernel/random/boot_id"]).text == boot_id
        with manager.pool(f"{name}@clean", size=1) as pool, pool.acquire(wait=LIMIT) as spare:
            seen["spare"] = spare.run(["hostname"]).text.strip()
        seen["ssh"] = box.show().ssh
        with box.fork("clean", count=2, lan=True) as clones:
            seen["in common"] = [one.run(["bash", "-c", BANNER.format(two.name)]).text for one, two in pairs(clones)]
            seen["restored in common"] = [clones[0].snapshot("own").engine, clones[0].restore("own").proven]
            seen["in common again"] = [
                one.run(["bash", "-c", BANNER.format(two.name)]).text for one, two in pairs(clones)
            ]
        seen["forced"] = box.down().forced
        seen["state"] = box.show().state
        box.undefine()
        seen["boxes"] = [one for one in manager.boxes() if one == name]
        seen["domains"] = [one for one in manager.site.hypervisor.names() if one == name]
    return seen


def pairs(clones: Fork[Box]) -> list[tuple[Box, Box]]:
    first, second = clones
    return [(first, second), (second, first)]


if __name__ == "__main__":
    with Manager.open(uri="qemu:///session", state_directory=Path(sys.argv[1])) as opened:
        json.dump(live(opened, sys.argv[2]), sys.stdout)
