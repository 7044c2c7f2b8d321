"""A box whose libvirtd is killed and started again, for test_faults.py: run in namespaces, under scripts/testbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from vmimagemanager import Manager

PID_FILE = Path("/run/libvirtd.pid")


def live(state: Path, name: str) -> dict[str, object]:
    """Restore a box, restart libvirtd under it, and return what was seen of it afterwards."""
    seen: dict[str, object] = {}
    with Manager.open(uri="qemu:///system", state_directory=state) as manager, manager.box(name) as box:
        box.restore("clean")
        box.script("echo kept >/run/in-memory")
    pid = int(PID_FILE.read_text())
    os.kill(pid, signal.SIGKILL)
    while Path("/proc", str(pid)).exists():
        time.sleep(0.01)
    subprocess.run(["libvirtd", "--daemon"], check=True)
    with Manager.open(uri="qemu:///system", state_directory=state) as manager, manager.box(name) as box:
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


if __name__ == "__main__":
    json.dump(live(Path(sys.argv[1]), sys.argv[2]), sys.stdout)
