"""A really built image: what is in it, what is not, and what a build that is killed leaves behind."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from vmimagemanager import Box, Manager, disks
from vmimagemanager.deadline import Deadline
from vmimagemanager.images import Image, ImageStore, debian
from vmimagemanager.images.stage import stage

HERE = Path(__file__).parents[2]
NOTHING = {
    "/etc/ssh/ssh_host_ed25519_key",
    "/etc/ssh/ssh_host_rsa_key",
    "/etc/ssh/ssh_host_ecdsa_key",
    "/root/.ssh/authorized_keys",
    "/var/lib/dbus/machine-id",
    "/var/lib/systemd/random-seed",
    "/var/log/journal",
}


@pytest.fixture(scope="module")
def image(manager: Manager) -> Image:
    return manager.images.get("debian-12")


@pytest.fixture(scope="module")
def file_system(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The image's file system as debugfs reads it: never mounted, never booted."""
    raw = tmp_path_factory.mktemp("image") / "disk.raw"
    disks.convert(image.disk, raw, source_format="qcow2", target_format="raw")
    yield raw
    raw.unlink()


def debugfs(file_system: Path, command: str) -> str:
    finished = subprocess.run(["/usr/sbin/debugfs", "-R", command, file_system], capture_output=True, check=True)
    return finished.stdout.decode() + finished.stderr.decode().partition("\n")[2]


@pytest.mark.parametrize("path", sorted(NOTHING))
def test_an_image_holds_no_identity(file_system: Path, path: str) -> None:
    assert "File not found" in debugfs(file_system, f"stat {path}")


def test_the_machine_id_is_empty_and_not_missing(file_system: Path) -> None:
    assert "Size: 0\n" in debugfs(file_system, "stat /etc/machine-id")


def test_owners_and_modes_survive_the_build(file_system: Path) -> None:
    assert "Mode:  04755" in debugfs(file_system, "stat /usr/bin/su")
    shadow = debugfs(file_system, "stat /etc/shadow")
    assert "Mode:  0640" in shadow
    assert "User:     0   Group:    42 " in shadow


def test_root_has_no_password(file_system: Path) -> None:
    lines = debugfs(file_system, "cat /etc/shadow").splitlines()
    assert [line.split(":")[1] for line in lines if line.startswith("root:")] == ["*"]


def test_the_files_of_an_image_are_what_their_digests_say_and_readable_by_all(manager: Manager, image: Image) -> None:
    manager.images.verify(image)
    disks.check(image.disk)
    assert set(image.files) == {"disk", "kernel", "initrd"}
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o444 for path in image.files.values())
    assert disks.info(image.disk).backing is None
    assert "qemu-guest-agent" in image.packages


def test_no_unit_of_a_booted_image_has_failed_and_no_timer_is_armed(box: Box) -> None:
    assert box.run(["systemctl", "--failed", "--no-legend", "--plain"]).text == ""
    assert box.run(["systemctl", "list-timers", "--no-legend"]).text == ""
    assert len(box.run(["cat", "/etc/machine-id"]).text) == 33


def test_a_killed_build_ends_with_all_its_programs_and_the_next_sweeps_what_it_left() -> None:
    # Not below tmp_path, whose folders are closed to other user ids: this is the usual place of the tree.
    with tempfile.TemporaryDirectory(prefix="vmim-test-", dir="/var/tmp") as folder:
        state = Path(folder)
        state.chmod(0o755)
        program = (
            "import sys; from pathlib import Path; from vmimagemanager.images import ImageStore;"
            "ImageStore(Path(sys.argv[1])).build('debian-12')"
        )
        build = subprocess.Popen([sys.executable, "-c", program, folder], cwd=HERE)
        try:
            limit = Deadline(timedelta(minutes=2))
            (usr,) = limit.wait_for(
                "mmdebstrap to unpack", lambda: list(state.glob("stage/images/*/reachable/mmdebstrap.*/usr")) or None
            )
        finally:
            build.send_signal(signal.SIGKILL)
            build.wait()
        token = usr.parents[2].name
        Deadline(timedelta(seconds=20)).wait_for("the build's programs to end", lambda: not programs_of(token))
        assert ImageStore(state).list() == []
        with stage(state, purpose="test", remove=debian.remove) as own:
            assert [path.name for path in own.parent.iterdir() if path.is_dir()] == [own.name]
        assert token not in Path("/proc/self/mounts").read_text()


def programs_of(token: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and entry.name != str(os.getpid()):
            try:
                if token.encode() in (entry / "cmdline").read_bytes():
                    found.append(entry.name)
            except OSError:
                continue
    return found
