"""A box's life on real guests: defined, up, used, down, killed, reset, undefined."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from vmimagemanager import Box, CommandFailedError, Manager
from vmimagemanager.config import Hook, Moment, Place
from vmimagemanager.disks import info
from vmimagemanager.errors import BoxError, DeadlineError, ImageError, TransferError
from vmimagemanager.hypervisor.connection import default_uri

BOOT_ID = ["cat", "/proc/sys/kernel/random/boot_id"]
MEGABYTES = 5 << 20

WORDS = [
    "",
    " ",
    "two words",
    "it's",
    'say "hi"',
    "$HOME `id` $(id) !! *",
    "back\\slash\\n",
    "a\nb\n",
    "\t",
    "-n",
    "--",
    "ünïcödé 🦊",
    "; touch /root/injected",
    "x" * 10_000,
]


# -- up and down ---------------------------------------------------------------------------------------------------


def test_up_of_a_running_box_changes_nothing(box: Box) -> None:
    box.script("echo kept >/run/in-memory")
    before = box.run(BOOT_ID).text
    up = box.up()
    assert (up.started, up.first_boot) == (False, False)
    assert box.run(BOOT_ID).text == before == f"{up.boot_id}\n"
    assert box.run(["cat", "/run/in-memory"]).text == "kept\n"


def test_a_box_whose_snapshot_was_removed_is_shut_down_cleanly_and_comes_up_again_with_its_disk(
    box: Box, tmp_path: Path
) -> None:
    box.snapshot("standing-on")
    assert box.show().snapshot == "standing-on"
    box.remove_snapshot("standing-on")
    box.script("echo kept >/root/on-disk; echo gone >/run/in-memory")
    identity = "cat /etc/machine-id /etc/hostname /etc/ssh/ssh_host_ed25519_key.pub"
    before, boot_id = box.script(identity).text, box.run(BOOT_ID).text

    down = box.down()
    assert (down.was_up, down.forced) == (True, False)
    assert box.show().state == "off"
    assert not box.down().was_up
    assert b"reboot: Power down" in box.console_log()

    settings = box.show().settings
    command = ("sh", "-c", f'echo "$VMIM_BOX $VMIM_MOMENT" >> {tmp_path}/hooked')
    box.update(replace(settings, hooks=(Hook(moment=Moment.AFTER_UP, where=Place.HOST, command=command),)))
    up = box.up()
    assert not box.up().started
    assert (tmp_path / "hooked").read_text() == f"{box.name} after-up\n"  # once: the second found the box up
    box.update(settings)
    assert (up.started, up.first_boot) == (True, False)
    assert box.run(BOOT_ID).text == f"{up.boot_id}\n" != boot_id
    assert box.script(identity).text == before
    assert box.run(["cat", "/root/on-disk"]).text == "kept\n"
    assert box.run(["test", "-e", "/run/in-memory"], check=False).status == 1


def test_a_guest_that_does_not_shut_down_is_forced_at_the_deadline_and_the_result_says_so(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.script("systemctl mask --runtime --now systemd-logind 2>/dev/null")  # nobody listens to the power button
    monkeypatch.setenv("VMIM_TIMEOUT_FACTOR", "0.1")
    down = box.down()
    assert (down.was_up, down.forced) == (True, True)
    assert down.seconds >= 3
    assert box.show().state == "off"
    assert box.logs()[-1].facts["forced"] is True


def test_kill_powers_off_at_once_and_a_box_that_is_off_says_how_to_start_it(box: Box) -> None:
    assert box.kill()
    assert not box.kill()
    with pytest.raises(BoxError, match="is off") as caught:
        box.run(["true"])
    assert caught.value.hint == f"vmimagemanager up {box.name}"


def test_reset_goes_back_to_the_image_and_snapshots_stay(box: Box, manager: Manager) -> None:
    image = manager.images.get(box.show().image)
    folder = manager.state_directory / "boxes" / box.name
    assert info(folder / "overlay.qcow2").backing != image.disk
    box.reset()
    assert box.show().state == "off"
    assert box.show().snapshot == ""
    assert info(folder / "overlay.qcow2").backing == image.disk
    box.restore("clean")
    assert box.run(["cat", "/etc/hostname"]).text.strip() == box.name


# -- defined and undefined -----------------------------------------------------------------------------------------


def test_undefine_leaves_no_domain_no_file_and_no_hold(define: Callable[..., Box], manager: Manager) -> None:
    box = define()
    assert box.name in manager.boxes()
    assert box.show().state == "off"
    box.lock(timedelta(hours=1), "to be left behind")
    box.undefine()
    assert box.name not in manager.boxes()
    assert manager.site.hypervisor.find(box.name) is None
    left = [path for path in manager.state_directory.rglob(f"*{box.name}*") if path.parent.name != "locks"]
    assert left == []


def test_a_running_box_is_undefined_only_by_force(box: Box) -> None:
    with pytest.raises(BoxError, match="runs"):
        box.undefine()
    assert box.run(["echo", "still here"]).text == "still here\n"


def test_a_box_that_was_undefined_behind_our_back_can_still_be_undefined(
    define: Callable[..., Box], manager: Manager
) -> None:
    box = define()
    subprocess.run(["virsh", "-q", "-c", default_uri(), "undefine", box.name], check=True)
    box.undefine()
    assert box.name not in manager.boxes()


def test_an_image_that_a_box_stands_on_is_not_removed_and_the_box_is_named(
    define: Callable[..., Box], manager: Manager
) -> None:
    box = define()
    with pytest.raises(ImageError, match=box.name):
        manager.remove_image(box.show().image)
    assert manager.images.get(box.show().image).disk.exists()


# -- run and script ------------------------------------------------------------------------------------------------


def test_run_gives_status_and_both_streams_apart(box: Box) -> None:
    result = box.run(["sh", "-c", "echo out; echo err >&2; exit 7"], check=False)
    assert (result.status, result.stdout, result.stderr) == (7, b"out\n", b"err\n")
    with pytest.raises(CommandFailedError, match="status 7") as caught:
        box.run(["sh", "-c", "echo out; echo err >&2; exit 7"])
    assert (caught.value.status, caught.value.stdout, caught.value.stderr) == (7, b"out\n", b"err\n")
    assert box.run(["no-such-program"], check=False).status == 127
    assert box.run(["sh", "-c", "kill -9 $$"], check=False).status == 255


def test_each_word_arrives_in_the_guest_as_it_is(box: Box) -> None:
    arrived = box.run(["sh", "-c", "printf '%s\\0' \"$@\"", "sh", *WORDS]).stdout
    assert arrived.decode().split("\0")[:-1] == WORDS
    assert box.run(["test", "-e", "/root/injected"], check=False).status == 1


def test_large_binary_data_is_intact_both_ways(box: Box, tmp_path: Path) -> None:
    data = os.urandom(MEGABYTES)
    digest = hashlib.sha256(data).hexdigest()
    assert box.run(["cat"], stdin=data).stdout == data
    source = tmp_path / "data"
    source.write_bytes(data)
    pieces: list[bytes] = []
    with source.open("rb") as stream:
        result = box.run(["tee", "/tmp/data"], stdin=stream, stdout=pieces.append)
    assert b"".join(pieces) == data
    assert result.stdout == b""
    assert box.run(["sha256sum", "/tmp/data"]).text.split()[0] == digest


def test_output_comes_as_it_is_written_and_a_program_may_ignore_its_input(box: Box) -> None:
    pieces: list[bytes] = []
    result = box.run(
        ["sh", "-c", "echo 1; sleep 1; echo 2; exit 3"], stdin=bytes(MEGABYTES), stdout=pieces.append, check=False
    )
    assert pieces == [b"1\n", b"2\n"]
    assert result.status == 3


def test_a_command_that_takes_too_long_is_given_up_and_the_box_goes_on(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.run(["true"])
    monkeypatch.setenv("VMIM_TIMEOUT_FACTOR", "1")
    with pytest.raises(DeadlineError, match=r"'sleep 1000' to end in the guest"):
        box.run(["sleep", "1000"], limit=timedelta(seconds=1))
    monkeypatch.delenv("VMIM_TIMEOUT_FACTOR")
    assert box.run(["echo", "on"]).text == "on\n"


def test_a_script_is_run_by_what_its_first_line_names(box: Box) -> None:
    assert box.script("#!/usr/bin/perl\nprint join('-', 1..3), qq{\\n};").text == "1-2-3\n"
    assert box.script("#!/bin/sh -e\nfalse\necho not reached", check=False).status == 1
    assert box.script("a='it works'; echo \"$a\"").text == "it works\n"
    with pytest.raises(CommandFailedError, match="status 4"):
        box.script("exit 4")


# -- files ---------------------------------------------------------------------------------------------------------


def test_a_folder_goes_in_and_comes_out_with_contents_permissions_and_links(box: Box, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub" / "empty").mkdir(parents=True)
    data = os.urandom(100_000)
    (tree / "data bin").write_bytes(data)
    (tree / "sub" / "run").write_text("#!/bin/sh\necho ran\n")
    (tree / "sub" / "run").chmod(0o750)
    (tree / "link").symlink_to("sub/run")
    (tree / "dangling").symlink_to("/nowhere/at all")

    assert box.put(tree, "/root/copy") == len(data) + 19
    assert box.run(["/root/copy/link"]).text == "ran\n"
    assert box.run(["stat", "-c", "%a", "/root/copy/sub/run"]).text == "750\n"
    assert box.put(tree, "/root/copy2") == len(data) + 19
    box.put(tree, "/root/")
    box.put(tree, "/root/tree")  # again: it is brought up to date
    assert box.run(["ls", "-A", "/root/tree"]).text.split("\n")[:-1] == ["dangling", "data bin", "link", "sub"]

    back = tmp_path / "back"
    assert box.get("/root/tree", back) == len(data) + 19
    assert (back / "data bin").read_bytes() == data
    assert (back / "sub" / "run").stat().st_mode & 0o777 == 0o750
    assert (back / "sub" / "empty").is_dir()
    assert (back / "link").readlink() == Path("sub/run")
    assert (back / "dangling").readlink() == Path("/nowhere/at all")


def test_a_file_goes_into_a_folder_that_exists_and_replaces_a_file(box: Box, tmp_path: Path) -> None:
    source = tmp_path / "a file"
    source.write_bytes(b"\0one\xff")
    source.chmod(0o600)
    box.put(source, "/tmp")
    assert box.get("/tmp/a file", tmp_path / "copy") == 5
    assert (tmp_path / "copy").read_bytes() == b"\0one\xff"
    source.write_bytes(b"two")
    box.put(source, "/tmp/a file")
    box.get("/tmp/a file", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"two"
    assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o600


def test_what_cannot_be_copied_is_named_and_nothing_is_left_of_it(box: Box, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_text("text")
    with pytest.raises(TransferError, match="no file or folder '/no/such'"):
        box.put("/no/such", "/tmp/x")
    with pytest.raises(TransferError, match="'/no/such/folder/x' in the guest: No such file"):
        box.put(source, "/no/such/folder/x")
    with pytest.raises(TransferError, match="'/no/such' cannot be copied out"):
        box.get("/no/such", tmp_path / "x")
    with pytest.raises(TransferError, match="There is no folder"):
        box.get("/etc/hostname", tmp_path / "none" / "x")
    (tmp_path / "folder" / "etc").mkdir(parents=True)
    with pytest.raises(TransferError, match="exists already"):
        box.get("/etc", tmp_path / "folder")
    with pytest.raises(TransferError, match="neither a file, a folder nor a symbolic link"):
        box.get("/dev/null", tmp_path / "x")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["etc", "folder", "source"]


def test_console_and_operations_tell_what_happened(box: Box) -> None:
    box.script("echo a word on the console >/dev/console")
    assert b"a word on the console" in box.console_log()
    last = box.logs()[-1]
    assert (last.verb, last.outcome, last.facts["engine"]) == ("restore", "done", "live")
    assert set(last.phases) >= {"start", "proof and repair"}
    assert last.seconds > 0
