"""A box and a pool under a libvirtd that is killed and started again, for test_faults.py: run_inside runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

from vmimagemanager import Box, Manager
from vmimagemanager.deadline import Deadline

LIMIT = timedelta(minutes=1)
PID_FILE = Path("/run/libvirtd.pid")


def live(state: Path, name: str) -> dict[str, object]:
    """Restore a box, restart libvirtd under it and a pool, and return what was seen of them afterwards."""
    seen: dict[str, object] = {}
    with open_manager(state) as before, before.pool(f"{name}@clean", size=1) as pool:
        pool.fill(LIMIT)
        with before.box(name) as box:
            box.restore("clean")
            box.script("echo kept >/run/in-memory")
        restart()
        with open_manager(state) as manager:
            with manager.box(name) as box:
                seen |= used(manager, box)
            with manager.spare(f"{name}@clean") as spare:
                seen["spare"] = spare.run(["hostname"]).text.strip()
        Deadline(LIMIT).wait_for("another spare", lambda: pool.ready() or None)
    return seen


def restart() -> None:
    pid = int(PID_FILE.read_text())
    os.kill(pid, signal.SIGKILL)
    while Path("/proc", str(pid)).exists():
        time.sleep(0.01)
    subprocess.run(["libvirtd", "--daemon"], check=True)


def used(manager: Manager, box: Box) -> dict[str, object]:
    seen: dict[str, object] = {}
    try:
        seen["state"] = box.show().state
        seen["memory"] = box.run(["cat", "/run/in-memory"]).text
        seen["findings"] = len(manager.fsck().findings)
        seen["taken"] = box.snapshot("restarted").engine
        restored = box.restore("restarted")
        seen["restored"] = [restored.engine, restored.proven]
        seen["memory again"] = box.run(["cat", "/run/in-memory"]).text
        box.remove_snapshot("restarted")
    finally:
        box.kill()
    return seen


def open_manager(state: Path) -> Manager:
    return Manager.open(uri="qemu:///system", state_directory=state)


if __name__ == "__main__":
    json.dump(live(Path(sys.argv[1]), sys.argv[2]), sys.stdout)
