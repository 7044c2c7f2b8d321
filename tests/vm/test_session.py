"""qemu:///session: everything works for an ordinary user, and nothing of it is left."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from tests.vm import session_life
from tests.vm.conftest import new_name
from vmimagemanager import Box, Manager
from vmimagemanager.boxes.define import ensure_defined
from vmimagemanager.deadline import Deadline
from vmimagemanager.hypervisor import launch

ROOT = Path(__file__).parents[2]
SEEN = {
    "uri": "qemu:///session",
    "taken": ["live", "NAME"],
    "restored": ["live", True, []],
    "left": [1, 1],
    "same boot": True,
    "in common": ["SSH-2.0", "SSH-2.0"],
    "restored in common": ["live", True],
    "in common again": ["SSH-2.0", "SSH-2.0"],
    "forced": False,
    "state": "off",
    "boxes": [],
    "domains": [],
}
# The clone may lie where only root can look: the user sees it in its own home.
INSIDE = """
mount --bind "$1" "$2"
shift 2
exec "$@"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A user that the test made."""

    name: str
    uid: int
    home: Path

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the clone as the user, who sees the clone in ~/clone, under scripts/testbed."""
        environment = {
            "HOME": str(self.home),
            "USER": self.name,
            "LOGNAME": self.name,
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C.UTF-8",
            "XDG_RUNTIME_DIR": str(self.home / "run"),
            "PYTHONPATH": str(self.home / "clone"),
        }
        user = ["setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--init-groups", "--"]
        argv = [
            "unshare",
            "--mount",
            "sh",
            "-euc",
            INSIDE,
            "inside",
            str(ROOT),
            str(self.home / "clone"),
            *user,
            *words,
        ]
        return subprocess.run(
            argv, cwd="/", env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )

    def processes(self) -> dict[int, str]:
        """Return the command lines of all processes of the user that have not ended, by their ids."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                state = (folder / "stat").read_text().rpartition(") ")[2][0]
                if folder.stat().st_uid == self.uid and state != "Z":
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (OSError, IndexError):  # it has ended meanwhile
                continue
        return found


@pytest.fixture
def user(state_directory: Path, manager: Manager) -> Iterator[User]:
    """A new user with an image store of its own; its processes and files are gone at the end."""
    assert manager.images.list()
    name = new_name()
    home = Path("/var/tmp") / name
    subprocess.run(["useradd", "--create-home", "--home-dir", str(home), "--user-group", name], check=True)
    try:
        uid = pwd.getpwnam(name).pw_uid
        made = User(name=name, uid=uid, home=home)
        (home / "state").mkdir()
        for folder in ("blobs", "images"):
            shutil.copytree(state_directory / folder, home / "state" / folder)
        for folder in ("run", "clone"):
            (home / folder).mkdir(mode=0o700)
        subprocess.run(["chown", "--recursive", f"{uid}:{uid}", str(home)], check=True)
        yield made
        for pid in made.processes():
            os.kill(pid, signal.SIGKILL)
    finally:
        _remove(name)


def _remove(name: str) -> None:
    def removed() -> bool:
        result = subprocess.run(["userdel", "--remove", name], capture_output=True, text=True, check=False)
        return result.returncode != 8  # the user is logged in: what was killed is not reaped yet

    Deadline(timedelta(seconds=10)).wait_for("the user to be gone", removed)
    with pytest.raises(KeyError):
        pwd.getpwnam(name)
    assert not (Path("/var/tmp") / name).exists()


def check(seen: dict[str, object], name: str) -> None:
    up, ssh = seen.pop("up"), seen.pop("ssh")
    assert isinstance(up, list)
    assert isinstance(ssh, list | tuple)
    assert up[:2] == [True, True]
    assert ssh[0] == "127.0.0.1"
    assert seen == {**SEEN, "taken": ["live", name], "spare": f"{name}-1"}


@pytest.mark.root
def test_an_ordinary_user_boots_snapshots_and_restores_a_box_and_leaves_nothing_behind(user: User) -> None:
    clone = user.home / "clone"
    name = new_name()
    words = [str(clone / "tests" / "vm" / "session_life.py"), str(user.home / "state"), name]
    result = user.run(str(clone / "scripts" / "testbed"), str(clone / ".venv" / "bin" / "python"), *words)
    assert result.returncode == 0, result.stderr
    assert name in result.stderr.split() or not result.stderr  # nothing but what the hook may have said
    check(json.loads(result.stdout), name)
    assert user.processes() == {}
    assert [path.name for path in (user.home / "state" / "boxes").iterdir()] == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root's libvirt is the system's")
def test_an_ordinary_users_own_suite_boots_snapshots_and_restores_a_box(manager: Manager) -> None:
    name = new_name()
    check(json.loads(json.dumps(session_life.live(manager, name))), name)


FORWARD = """
import sys
from pathlib import Path
from vmimagemanager import Manager
from vmimagemanager.hypervisor import launch

with Manager.open() as manager:
    record = manager.site.record(sys.argv[1])
    domain = manager.site.domain(record.name)
    device = domain.definition(live=True).user_network_device
    sys.stdin.readline()
    print(domain.monitor.forward_ssh(device, int(sys.argv[2])))
"""


def test_two_boxes_of_two_processes_that_want_one_port_never_share_it(
    manager: Manager, define: Callable[..., Box], environment: dict[str, str]
) -> None:
    boxes = [define(), define()]
    for box in boxes:  # no guest has to boot: its port is QEMU's
        launch.boot(manager.site.hypervisor, ensure_defined(manager.site, manager.site.record(box.name)), None)
    wanted = manager.site.record(boxes[0].name).ssh_port
    children = [
        subprocess.Popen(
            [sys.executable, "-c", FORWARD, box.name, str(wanted)],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for box in boxes
    ]
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    ports = [int(child.communicate()[0]) for child in children]
    assert len(set(ports)) == 2
    assert wanted in ports
    for box, port in zip(boxes, ports, strict=True):
        assert box.show().ssh == ("127.0.0.1", port)
