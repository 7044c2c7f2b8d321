"""Programs of the tests that need a libvirt of their own: it, its networks and its guests are in namespaces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# libvirt keeps what it knows in these folders: the host's own libvirt neither sees nor loses anything.
_INSIDE = """
ip link set lo up
for folder in /run /etc/libvirt/qemu /var/lib/libvirt /var/cache/libvirt; do
    mount -t tmpfs -o mode=755 tmpfs "$folder"
done
mkdir /run/lock
exec "$@"
"""


def run_inside(program: str, *arguments: str) -> Any:  # noqa: ANN401 - whatever its JSON says
    """Run a program of this folder under scripts/testbed in namespaces of its own; return what it printed, as JSON."""
    inside = ["unshare", "--net", "--mount", "sh", "-euc", _INSIDE, "inside"]
    words = [str(ROOT / "scripts" / "testbed"), sys.executable, str(ROOT / "tests" / "vm" / program), *arguments]
    result = subprocess.run(
        [*inside, *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)
