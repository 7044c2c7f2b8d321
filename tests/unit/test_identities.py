"""What tells a guest from others is taken out of disks: real file systems, changed by debugfs and checked by e2fsck."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from vmimagemanager import disks, process
from vmimagemanager.errors import ImageError, ToolError
from vmimagemanager.images import identities, look
from vmimagemanager.units import Size

needs_fuse = pytest.mark.skipif(not look.may_use_fuse(), reason="this host lets root alone use FUSE")
OURS = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJoNGGcOqsscXT3towhUhvjURHxwPRSot5XNs4A34HQo anything"
EARLIER = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFrgdNWvGqsscXT3towhUhvjURHxwPRSot5XNs4A34HQx vmimagemanager-db"
THEIRS = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGrandmotherqsscXT3towhUhvjURHxwPRSot5XNs4A34HQ grandma@home"
SECRET = "-----BEGIN OPENSSH PRIVATE KEY-----\nthe private host key\n" * 200  # several blocks
PASSWD = "root:x:0:0:root:/root:/bin/bash\nzoe:x:1:1::/home/zoe:/bin/sh\nodd:x:2:2::/home/a b:/bin/sh\nbroken\n"
FILES = {
    "etc/passwd": PASSWD,
    "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
    "etc/hostname": "web\n",
    "etc/ssh/sshd_config": "UseDNS no\n",
    "etc/ssh/ssh_host_ed25519_key": SECRET,
    "etc/ssh/ssh_host_ed25519_key.pub": "public\n",
    "root/.ssh/authorized_keys": f"{OURS}\n",
    "home/zoe/.ssh/authorized_keys": f"# mine\n{OURS}\n{THEIRS}\n{EARLIER}",
    "home/a b/.ssh/authorized_keys": f"{THEIRS}\n",
    "var/lib/systemd/random-seed": "seed of randomness",
    "var/lib/cloud/instances/one/user-data.txt": "told to cloud-init",
    "var/lib/cloud/data/instance-id": "one\n",
}


def mkfs(tree: Path, raw: Path, *options: str) -> None:
    subprocess.run(["/usr/sbin/mkfs.ext4", "-q", "-F", *options, "-d", tree, raw, "24M"], check=True)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for name, content in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    (root / "var/lib/dbus").mkdir()
    (root / "var/lib/dbus/machine-id").symlink_to("/etc/machine-id")
    (root / "var/lib/cloud/instance").symlink_to("instances/one")
    (root / "home/zoe/.ssh/authorized_keys").chmod(0o600)
    return root


@pytest.fixture
def raw(tree: Path, tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    mkfs(tree, path)
    return path


def taken_out(disk: Path, disk_format: str = "raw") -> tuple[str, ...]:
    return identities.take_out(disk, disk.parent, disk_format=disk_format, login_keys=[OURS])


def debugfs(raw: Path, command: str) -> str:
    return subprocess.run(["/usr/sbin/debugfs", "-R", command, raw], capture_output=True, check=True).stdout.decode()


def is_nobodys(raw: Path) -> None:
    checked = subprocess.run(["/usr/sbin/e2fsck", "-fn", raw], capture_output=True, check=False)
    assert checked.returncode == 0, checked.stdout.decode()
    content = raw.read_bytes()  # free blocks included
    for secret in (OURS.split()[1], EARLIER.split()[1], "private host key", "seed of randomness", "told to cloud-init"):
        assert secret.encode() not in content, secret
    assert FILES["etc/machine-id"].strip().encode() not in content
    assert debugfs(raw, "cat /etc/machine-id") == ""
    assert "Size: 0\n" in debugfs(raw, "stat /etc/machine-id")
    assert debugfs(raw, "cat /etc/ssh/sshd_config") == FILES["etc/ssh/sshd_config"]
    assert debugfs(raw, "cat /etc/passwd") == PASSWD
    assert debugfs(raw, "ls -p /var/lib/cloud").count("//") == 2  # itself and its parent, whose sizes are not said
    kept = debugfs(raw, "cat /home/zoe/.ssh/authorized_keys")
    assert [line for line in kept.splitlines() if line] == ["# mine", THEIRS]
    assert "Mode:  0600" in debugfs(raw, "stat /home/zoe/.ssh/authorized_keys")


def test_what_is_the_guests_own_is_gone_and_nothing_else(raw: Path) -> None:
    assert taken_out(raw) == (
        "/etc/machine-id",
        "/etc/ssh/ssh_host_ed25519_key",
        "/etc/ssh/ssh_host_ed25519_key.pub",
        "/home/zoe/.ssh/authorized_keys",
        "/root/.ssh/authorized_keys",
        "/var/lib/cloud/data",
        "/var/lib/cloud/data/instance-id",
        "/var/lib/cloud/instance",
        "/var/lib/cloud/instances",
        "/var/lib/cloud/instances/one",
        "/var/lib/cloud/instances/one/user-data.txt",
        "/var/lib/dbus/machine-id",
        "/var/lib/systemd/random-seed",
    )
    is_nobodys(raw)
    assert taken_out(raw) == ()


@pytest.mark.parametrize("options", [("-b", "1024"), ("-O", "^extent,^64bit")])
def test_file_systems_of_other_kinds_are_cleaned_too(tree: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    raw = tmp_path / "other.raw"
    mkfs(tree, raw, *options)
    taken_out(raw)
    is_nobodys(raw)


def test_a_file_system_in_which_nothing_can_be_overwritten_is_left_as_it_is(tree: Path, tmp_path: Path) -> None:
    raw = tmp_path / "inline.raw"
    mkfs(tree, raw, "-O", "inline_data")
    before = raw.read_bytes()
    with pytest.raises(ImageError, match="small files"):
        taken_out(raw)
    assert raw.read_bytes() == before


@needs_fuse
def test_an_overlay_gets_the_changes_and_what_it_stands_on_does_not(raw: Path, tmp_path: Path) -> None:
    base, overlay, seen = (tmp_path / name for name in ("base.qcow2", "overlay.qcow2", "seen.raw"))
    disks.convert(raw, base, source_format="raw")
    before = base.read_bytes()
    disks.create_overlay(overlay, base)
    taken_out(overlay, "qcow2")
    assert base.read_bytes() == before
    disks.check(overlay)
    disks.convert(overlay, seen, source_format="qcow2", target_format="raw")
    is_nobodys(seen)


@needs_fuse
@pytest.mark.parametrize("offset", [0, 1 << 20])
@pytest.mark.parametrize("disk_format", ["raw", "qcow2"])
def test_a_journal_is_replayed_first_also_in_a_partition(
    raw: Path, tmp_path: Path, offset: int, disk_format: str
) -> None:
    block, commands = tmp_path / "block", tmp_path / "commands"
    block.write_bytes(b"journalled" * 409 + b"......")
    commands.write_text(f"jo\njw -b 5000 {block}\njc\n")
    subprocess.run(["/usr/sbin/debugfs", "-w", "-f", commands, raw], check=True, capture_output=True)
    assert "needs_recovery" in debugfs(raw, "stats -h")
    disk, seen = tmp_path / f"disk.{disk_format}", tmp_path / "seen.raw"
    seen.write_bytes(bytes(offset) + raw.read_bytes())
    if offset:
        table = f"label: dos\nstart={offset // 512}, type=83\n"
        subprocess.run(["/usr/sbin/sfdisk", "-q", seen], input=table.encode(), check=True)
    disks.convert(seen, disk, source_format="raw", target_format=disk_format)
    taken_out(disk, disk_format)
    disks.convert(disk, seen, source_format=disk_format, target_format="raw")
    content = seen.read_bytes()[offset:]
    raw.write_bytes(content)
    assert "needs_recovery" not in debugfs(raw, "stats -h")
    size = 1024 if "Block size:               1024" in debugfs(raw, "stats -h") else 4096
    assert content[5000 * size :].startswith(b"journalled")
    is_nobodys(raw)


def test_a_name_that_debugfs_could_take_for_something_else_is_refused(tree: Path, tmp_path: Path) -> None:
    (tree / "var/lib/cloud/a b").write_text("x")
    raw = tmp_path / "odd.raw"
    mkfs(tree, raw)
    with pytest.raises(ToolError, match="a name that debugfs cannot be told"):
        taken_out(raw)


def test_a_host_without_fuse_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = tmp_path / "disk.qcow2"
    process.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "16M"])
    monkeypatch.setattr(os, "access", lambda path, mode: path != "/dev/fuse")
    with pytest.raises(ToolError, match="does not let us use FUSE"):
        identities.take_out(disk, tmp_path, disk_format="qcow2", login_keys=[])


@needs_fuse
def test_a_disk_without_a_file_system_that_is_known_is_named(tmp_path: Path) -> None:
    empty = tmp_path / "empty.qcow2"
    disks.create_empty(empty, Size(1 << 20))
    with pytest.raises(ImageError, match="no file system"):
        taken_out(empty, "qcow2")
