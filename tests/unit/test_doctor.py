"""The doctor: what it says of a host that is well, of one that is not, and of the real one."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import stat
import struct
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from vmimagemanager import process
from vmimagemanager.config import Configuration, load
from vmimagemanager.doctor import (
    Check,
    Status,
    acceleration,
    access,
    daemons,
    examine,
    host,
    paths,
    reaper,
    state,
    tools,
)
from vmimagemanager.doctor.access import READ, SEARCH, WRITE, Account
from vmimagemanager.doctor.reaper import Reaped
from vmimagemanager.errors import ToolError
from vmimagemanager.hypervisor import accelerator, memory
from vmimagemanager.hypervisor.accelerator import Accelerator, Choice
from vmimagemanager.hypervisor.connection import Host
from vmimagemanager.images import userns
from vmimagemanager.state import StateDirectory
from vmimagemanager.units import Size

STRANGER = Account(user=64055, groups=frozenset({64055}), name="libvirt-qemu")
GIB = 1 << 30


def configuration(state_directory: Path, uri: str = "test:///default", **more: str) -> Configuration:
    return load(Path("/dev/null"), host_options={"uri": uri, "state-dir": str(state_directory), **more})


def only(checks: Iterable[Check]) -> Check:
    (check,) = checks
    return check


# -- the whole ---------------------------------------------------------------------------------------------------------


def test_the_whole_examination_takes_less_than_three_seconds_and_makes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    started = time.monotonic()

    checks = examine(configuration(folder))

    assert time.monotonic() - started < 3
    assert not folder.exists()
    assert {"libvirt", "QEMU", "accelerator", "state directory", "disk", "memory", "reaper"} <= {
        check.name for check in checks
    }
    for check in checks:
        assert check.message.endswith("."), check
        assert "\n" not in check.message + check.hint


def test_what_cannot_be_examined_is_said_and_the_rest_is_examined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "MEMORY", tmp_path / "absent")

    checks = {check.name: check for check in examine(configuration(tmp_path / "state"))}

    assert checks["memory"].status is Status.FAILURE
    assert str(tmp_path / "absent") in checks["memory"].message
    assert "tools" in checks


@pytest.mark.root
def test_a_user_without_rights_and_without_a_name_is_examined(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgroups([])
            os.setgid(64999)
            os.setuid(64999)
            checks = examine(configuration(closed / "state"))
            said = [check for check in checks if check.name == "state directory"]
            status = 0 if said[0].status is Status.FAILURE and "is closed" in said[0].message else 3
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# -- libvirt and QEMU --------------------------------------------------------------------------------------------------


def test_an_unreachable_libvirt_is_a_failure_with_the_way_to_start_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(process, "find", lambda program: Path("/usr/sbin") / program)
    found = daemons.connect(f"qemu+unix:///system?socket={tmp_path}/absent")

    def hint(systemd: Path) -> str:
        monkeypatch.setattr(daemons, "BOOTED_BY_SYSTEMD", systemd)
        return next(
            check.hint for check in daemons.libvirt_checks("uri", found, system=True) if check.name == "libvirt"
        )

    assert found.host is None
    assert not found.answered
    assert hint(tmp_path) == "systemctl start libvirtd"
    assert hint(tmp_path / "absent") == "virtlogd -d && libvirtd -d"


def test_a_missing_daemon_is_to_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "find", lambda program: None)
    (_, check) = daemons.libvirt_checks("uri", daemons.Found(error="No."), system=False)
    assert check.hint.endswith("apt-get install libvirt-daemon-system")


def test_a_broken_binding_is_named_and_libvirt_not_blamed() -> None:
    check = only(daemons.libvirt_checks("uri", daemons.Found(binding="libvirt.so.0: no such file"), system=False))
    assert check.status is Status.FAILURE
    assert "libvirt.so.0" in check.message
    assert "python3-libvirt" in check.hint


@pytest.mark.parametrize(("listening", "status"), [(True, Status.OK), (False, Status.FAILURE)])
def test_virtlogd_is_well_when_it_accepts_a_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listening: bool, status: Status
) -> None:
    monkeypatch.setattr(daemons, "SOCKETS", tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "virtlogd-sock"))
        if listening:
            server.listen()
        checks = {check.name: check for check in daemons.libvirt_checks("uri", daemons.Found(), system=True)}
    assert checks["virtlogd"].status is status
    assert bool(checks["virtlogd"].hint) is not listening


@pytest.mark.parametrize(
    ("security", "system", "status"),
    [
        (("none", "dac"), True, Status.OK),
        (("apparmor", "dac"), True, Status.WARNING),
        (("apparmor", "dac"), False, Status.OK),
        (("selinux",), True, Status.WARNING),
    ],
)
def test_a_confining_security_driver_is_a_warning_in_system_mode(
    security: tuple[str, ...], system: bool, status: Status
) -> None:
    described = Host(libvirt="9.0.0", qemu="7.2.0", security=security, qemu_owner=None)
    found = daemons.Found(host=described, answered=True)
    assert only(daemons.security_checks(found, system=system)).status is status


def test_networks_are_not_mentioned_when_no_box_uses_one() -> None:
    assert list(daemons.network_checks("test:///default", [])) == []


# -- the accelerator ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "asked", "status"),
    [
        (Accelerator.KVM, "auto", Status.OK),
        (Accelerator.KVM, "kvm", Status.OK),
        (Accelerator.TCG, "auto", Status.WARNING),
        (Accelerator.TCG, "tcg", Status.OK),
        (Accelerator.TCG, "kvm", Status.FAILURE),
    ],
)
def test_emulation_is_a_warning_unless_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: Accelerator, asked: str, status: Status
) -> None:
    choice = Choice(accelerator=chosen, reason="It was tried, so it is used.", cached=False)
    monkeypatch.setattr(accelerator, "choose", lambda requested, folder: choice)

    check = only(acceleration.checks(configuration(tmp_path, accelerator=asked).host, None))

    assert check.status is status
    assert check.message.startswith(choice.reason)


def test_a_device_that_is_closed_to_the_user_of_qemu_is_a_warning(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.touch()
    device.chmod(0o660)
    check = acceleration.device_of(STRANGER, device)
    assert check.status is Status.WARNING
    assert f"chmod 660 {device}" in check.hint
    device.chmod(0o666)
    assert acceleration.device_of(STRANGER, device).status is Status.OK


# -- permissions -------------------------------------------------------------------------------------------------------

ACL = [(0x01, 7, 0), (0x02, 5, 64055), (0x04, 6, 0), (0x08, 7, 500), (0x10, 5, 0), (0x20, 0, 0)]


@pytest.mark.parametrize(
    ("account", "wanted", "allowed"),
    [
        (Account(10, frozenset({10}), "owner"), READ | WRITE | SEARCH, True),
        (STRANGER, SEARCH, True),
        (STRANGER, WRITE, False),
        (Account(11, frozenset({20}), "of the group"), READ, True),
        (Account(11, frozenset({20}), "of the group, masked"), WRITE, False),
        (Account(11, frozenset({20, 500}), "of a named group"), SEARCH, True),
        (Account(11, frozenset({11}), "other"), READ, False),
    ],
)
def test_an_access_control_list_is_judged_as_the_kernel_does(account: Account, wanted: int, allowed: bool) -> None:
    assert access.granted(account, (10, 20), ACL, wanted) is allowed


def test_an_account_has_the_groups_of_its_user_beside_the_one_that_it_is_given() -> None:
    entry = pwd.getpwuid(os.getuid())
    given = max(entry.pw_gid, 60000) + 1
    account = Account.of(entry.pw_uid, given)
    assert account.name == entry.pw_name
    assert {given, entry.pw_gid} <= account.groups
    assert Account.of(4_000_000, given) == Account(4_000_000, frozenset({given}), "4000000")


def test_a_group_that_is_refused_does_not_fall_back_to_others() -> None:
    modes = [(0x01, 7, 0), (0x04, 0, 0), (0x20, 7, 0)]
    assert not access.granted(Account(11, frozenset({20}), "of the group"), (10, 20), modes, READ)


def test_an_access_control_list_is_read_from_the_file_system(tmp_path: Path) -> None:
    entries = [(0x01, 7, 0xFFFFFFFF), (0x02, 1, 64055), (0x04, 0, 0xFFFFFFFF), (0x10, 1, 0xFFFFFFFF)]
    content = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in [*entries, (0x20, 0, 1 << 31)])
    tmp_path.chmod(0o700)
    assert not access.may(STRANGER, tmp_path, SEARCH)
    try:
        os.setxattr(tmp_path, "system.posix_acl_access", content)
    except OSError as error:
        pytest.skip(f"this file system keeps no access control lists: {error}")
    assert access.may(STRANGER, tmp_path, SEARCH)
    assert not access.may(STRANGER, tmp_path, READ)


@pytest.fixture
def opened(tmp_path: Path) -> Path:
    """A folder that everybody can reach from the root folder on."""
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & stat.S_IXOTH:
            if folder.stat().st_uid != os.geteuid() or folder == Path.home():
                pytest.skip(f"'{folder}' is closed to others")
            folder.chmod(0o755)
    return tmp_path


def test_the_first_folder_that_keeps_qemu_out_is_named_with_the_command_that_opens_it(opened: Path) -> None:
    folder = opened / "outer" / "state"
    StateDirectory.open(folder, shared=False)
    (opened / "outer").chmod(0o700)
    folder.chmod(0o700)

    check = paths.reachable(folder, STRANGER)

    assert check.status is Status.FAILURE
    assert f"'{opened}/outer' is closed" in check.message
    process.run(["sh", "-c", check.hint])
    assert paths.reachable(folder, STRANGER).status is Status.OK


def test_a_closed_folder_of_one_box_is_found(opened: Path) -> None:
    made = StateDirectory.open(opened / "state", shared=False).box("web")
    made.path.mkdir(mode=0o700)
    made.record.touch()
    assert f"'{made.path}' is closed" in paths.reachable(opened / "state", STRANGER).message


def test_a_link_to_a_closed_place_is_followed(opened: Path) -> None:
    hidden = opened / "hidden"
    StateDirectory.open(hidden / "state", shared=False)
    hidden.chmod(0o700)
    (opened / "link").symlink_to(hidden / "state")
    assert f"'{hidden}' is closed" in paths.reachable(opened / "link", STRANGER).message


def test_a_state_directory_that_can_be_made_is_well_and_is_not_made(tmp_path: Path) -> None:
    check = only(paths.checks(tmp_path / "a" / "b", None, shared=False))
    assert check.status is Status.OK
    assert list(tmp_path.iterdir()) == []


def test_a_state_directory_that_is_a_file_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    assert only(paths.checks(tmp_path / "state", None, shared=False)).status is Status.FAILURE


def test_a_state_directory_without_its_folders_is_a_warning_until_they_are_made(tmp_path: Path) -> None:
    check = only(paths.checks(tmp_path, None, shared=False))
    assert check.status is Status.WARNING
    process.run(["sh", "-c", check.hint])
    assert only(paths.checks(tmp_path, None, shared=False)).status is Status.OK


# -- records, disk and memory ------------------------------------------------------------------------------------------


def test_a_damaged_record_of_a_box_is_named(tmp_path: Path) -> None:
    box = StateDirectory.open(tmp_path, shared=False).box("web")
    box.path.mkdir()
    box.record.write_text("format = 1\n")
    check = only(state.checks(tmp_path, [], shared=False))
    assert check.status is Status.FAILURE
    assert str(box.record) in check.message


def test_a_state_directory_of_another_host_is_a_failure(tmp_path: Path) -> None:
    StateDirectory.open(tmp_path, shared=False)
    (tmp_path / "state.toml").write_text('format = 1\nhost = "another"\n')
    check = only(state.checks(tmp_path, [], shared=False))
    assert check.status is Status.FAILURE
    assert "another" in check.message


def test_a_new_state_directory_is_not_mentioned_and_not_made(tmp_path: Path) -> None:
    assert list(state.checks(tmp_path / "new", [], shared=False)) == []
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("free", "status"), [(6 * GIB, Status.OK), (4 * GIB, Status.WARNING), (GIB - 1, Status.FAILURE)]
)
def test_little_disk_is_a_warning_and_hardly_any_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, status: Status
) -> None:
    monkeypatch.setattr(host, "free_space", lambda folder: Size(free))
    assert only(host.disk_checks(tmp_path)).status is status


@pytest.mark.parametrize(
    ("kib", "status"), [(2 << 20, Status.OK), (700 << 10, Status.WARNING), (300 << 10, Status.FAILURE)]
)
def test_little_memory_is_a_warning_and_hardly_any_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kib: int, status: Status
) -> None:
    monkeypatch.setattr(memory, "MEMORY", tmp_path / "meminfo")
    memory.MEMORY.write_text(f"MemTotal:  99999999 kB\nMemAvailable:   {kib} kB\n")
    assert only(host.memory_checks()).status is status


# -- the reaper --------------------------------------------------------------------------------------------------------


def test_an_orphan_is_adopted_by_an_ancestor_and_leaves_nothing_behind() -> None:
    reaped = reaper.measure()
    assert reaped.by in _ancestors()
    assert reaped.seconds is None or 0 <= reaped.seconds < 2


@pytest.mark.parametrize(("seconds", "status"), [(0.01, Status.OK), (0.5, Status.WARNING), (None, Status.WARNING)])
def test_a_slow_reaper_is_a_warning(seconds: float | None, status: Status) -> None:
    check = reaper.judge(Reaped(by=1, seconds=seconds), set())
    assert check.status is status
    assert ("tini -s" in check.hint) is (status is Status.WARNING)


def test_a_reaper_that_libvirt_does_not_use_is_not_blamed() -> None:
    check = reaper.judge(Reaped(by=1, seconds=None), {os.getpid()})
    assert check.status is Status.OK
    assert str(os.getpid()) in check.message


def _ancestors() -> set[int]:
    found, pid = set[int](), os.getpid()
    while pid:
        found.add(pid)
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])
    return found


# -- tools -------------------------------------------------------------------------------------------------------------


def test_missing_programs_are_named_with_one_command_that_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = {"qemu-img", "mkfs.ext4", "ssh"}
    monkeypatch.setattr(process, "find", lambda program: None if program in absent else Path("/usr/bin") / program)

    checks = list(tools.checks())

    assert [check.status for check in checks] == [Status.FAILURE, Status.WARNING, Status.WARNING]
    assert {check.hint for check in checks} == {checks[0].hint}
    assert checks[0].hint.endswith("apt-get install qemu-utils e2fsprogs openssh-client")


def test_forbidden_user_namespaces_are_a_warning_with_the_command_of_root(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise ToolError("An image cannot be built here: it is forbidden.", hint="As root: sysctl -w x=1")

    monkeypatch.setattr(userns, "require", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    check = only(tools.namespace_checks())
    assert check.status is Status.WARNING
    assert check.hint == "sudo sysctl -w x=1"


@pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="the packages are Debian's")
@pytest.mark.parametrize("program", ["qemu-img", "mmdebstrap", "mkfs.ext4", "newuidmap", "virsh", "ssh"])
def test_the_package_named_for_a_program_is_the_one_that_holds_it(program: str) -> None:
    known = tools._NEEDED | tools._FOR_IMAGES | tools._FOR_IMAGES_OF_USERS | tools._FOR_CONVENIENCE
    path = process.find(program)
    if path is None:
        pytest.skip(f"'{program}' is not installed")
    searched = [f"*/bin/{program}", f"*/sbin/{program}"]
    said = process.run(["dpkg-query", "--search", *searched], check=False).stdout.decode()
    assert known[program] in {line.split(":")[0] for line in said.splitlines()}
