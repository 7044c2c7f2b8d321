"""Hooks on a real guest: in it and on the host, at the moments of its life."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from vmimagemanager import Box, Manager
from vmimagemanager.config import Hook, Moment, Place
from vmimagemanager.errors import HookError

SECOND = timedelta(seconds=1)


@contextmanager
def hooks(box: Box, *given: Hook) -> Iterator[None]:
    """Give the box hooks for a block."""
    before = box.show().settings
    box.update(replace(before, hooks=given))
    try:
        yield
    finally:
        box.update(before)


def script(path: Path, text: str, *, executable: bool = False) -> Path:
    path.write_text(text)
    if executable:
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_hooks_run_at_their_moments_in_their_order_and_know_box_and_moment(box: Box, tmp_path: Path) -> None:
    log = tmp_path / "log"
    host = script(tmp_path / "host", f'echo "$0 $VMIM_BOX $VMIM_MOMENT" >>{log}\n')
    guest = script(
        tmp_path / "guest", '#!/usr/bin/perl\nopen F, ">>/root/log"; print F "$ENV{VMIM_BOX} $ENV{VMIM_MOMENT}\\n";'
    )
    second = ("sh", "-c", f'echo "second $VMIM_MOMENT" >>{log}')
    third = ("sh", "-c", 'echo "third $VMIM_MOMENT" >>/root/log')
    moments = (Moment.BEFORE_SNAPSHOT, Moment.AFTER_SNAPSHOT, Moment.AFTER_RESTORE)
    each = [
        hook
        for moment in moments
        for hook in (
            Hook(moment=moment, where=Place.HOST, script=host),
            Hook(moment=moment, script=guest),
            Hook(moment=moment, where=Place.HOST, command=second),
            Hook(moment=moment, command=third),
        )
    ]
    with hooks(box, *each):
        box.snapshot("hooked")
        assert box.run(["cat", "/root/log"]).text.splitlines() == [
            f"{box.name} before-snapshot",
            "third before-snapshot",
            f"{box.name} after-snapshot",
            "third after-snapshot",
        ]
        box.restore("hooked")
        assert box.run(["cat", "/root/log"]).text.splitlines() == [
            f"{box.name} before-snapshot",  # what came after the snapshot is gone
            "third before-snapshot",
            f"{box.name} after-restore",
            "third after-restore",
        ]
    assert log.read_text().splitlines() == [
        line for moment in moments for line in (f"{host} {box.name} {moment}", f"second {moment}")
    ]


def test_a_host_hook_can_connect_with_the_ssh_details_that_it_is_given(box: Box, tmp_path: Path) -> None:
    connect = script(
        tmp_path / "connect",
        """#!/bin/sh -eu
exec ssh -F none -n -i "$VMIM_SSH_KEY" -p "$VMIM_SSH_PORT" -o IdentitiesOnly=yes -o StrictHostKeyChecking=yes \\
    -o UserKnownHostsFile="$VMIM_SSH_KNOWN_HOSTS" -o HostKeyAlias="$VMIM_SSH_HOST_KEY_ALIAS" \\
    "$VMIM_SSH_USER@$VMIM_SSH_HOST" 'echo was here >/run/by-hook'
""",
        executable=True,
    )
    with hooks(box, Hook(moment=Moment.AFTER_RESTORE, where=Place.HOST, script=connect)):
        box.restore("clean")
    assert box.run(["cat", "/run/by-hook"]).text == "was here\n"


@pytest.mark.parametrize("where", list(Place))
def test_a_failing_hook_before_a_snapshot_stops_it_with_its_output_and_status(box: Box, where: Place) -> None:
    box.script("echo kept >/run/in-memory")
    command = ("sh", "-c", "echo to stdout; echo to stderr >&2; exit 42")
    never = ("touch", "/root/never")
    before = (Hook(moment=Moment.BEFORE_SNAPSHOT, where=where, command=command),)
    with (
        hooks(box, *before, Hook(moment=Moment.BEFORE_SNAPSHOT, command=never)),
        pytest.raises(HookError, match="at 'before-snapshot' ended with status 42") as caught,
    ):
        box.snapshot("stopped")
    assert caught.value.status == 42
    assert caught.value.exit_code == 118
    assert sorted(caught.value.detail.splitlines()) == ["to stderr", "to stdout"]
    assert [one.name for one in box.snapshots()] == ["clean"]
    assert box.run(["cat", "/run/in-memory"]).text == "kept\n"
    assert box.run(["test", "-e", "/root/never"], check=False).status == 1
    assert box.logs()[-2].outcome.startswith("HookError: ")


@pytest.mark.parametrize("where", list(Place))
def test_a_hook_is_ended_at_its_time_limit(box: Box, where: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Hook(moment=Moment.AFTER_RESTORE, where=where, command=("sleep", "1000"), timeout=SECOND)
    with hooks(box, slow):
        with pytest.raises(HookError, match=r"was ended after .* its time limit") as caught:
            box.restore("clean")
        assert caught.value.status is None
    assert box.run(["echo", "usable"]).text == "usable\n"


def test_without_hooks_none_runs(box: Box, manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = Hook(moment=Moment.AFTER_RESTORE, where=Place.HOST, command=("false",))
    with hooks(box, failing):
        with pytest.raises(HookError):
            box.restore("clean")
        monkeypatch.setattr(manager, "hooks", False)
        assert manager.box(box.name).restore("clean").proven


def test_a_hook_that_cannot_run_is_a_hook_error(box: Box, tmp_path: Path) -> None:
    missing = Hook(moment=Moment.AFTER_RESTORE, where=Place.HOST, command=("no-such-program-anywhere",))
    with hooks(box, missing), pytest.raises(HookError, match="no-such-program-anywhere"):
        box.restore("clean")
    gone = script(tmp_path / "gone", "true")
    with hooks(box, Hook(moment=Moment.AFTER_RESTORE, script=gone)):
        gone.unlink()
        with pytest.raises(HookError, match=str(gone)):
            box.restore("clean")


def test_a_hook_before_down_runs_in_the_guest_that_is_still_up_and_a_failing_one_keeps_it_up(box: Box) -> None:
    failing = Hook(moment=Moment.BEFORE_DOWN, command=("sh", "-c", "cat /etc/hostname; exit 3"))
    with hooks(box, failing), pytest.raises(HookError, match="status 3") as caught:
        box.down()
    assert caught.value.detail == box.name
    assert box.show().state == "running"


def test_a_failing_hook_after_define_leaves_nothing_of_the_box(
    define: Callable[..., Box], manager: Manager, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    good = Hook(moment=Moment.AFTER_DEFINE, where=Place.HOST, command=("sh", "-c", f'echo "$VMIM_BOX" >{log}'))
    box = define(hooks=(good,))
    assert log.read_text().strip() == box.name
    before = manager.boxes()
    bad = Hook(moment=Moment.AFTER_DEFINE, where=Place.HOST, command=("sh", "-c", f'echo "$VMIM_BOX" >{log}; exit 9'))
    with pytest.raises(HookError, match="status 9"):
        define(hooks=(good, bad))
    assert manager.boxes() == before
    assert manager.site.hypervisor.find(log.read_text().strip()) is None


def test_hooks_of_the_host_get_no_details_of_ssh_while_the_box_is_off(
    define: Callable[..., Box], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    define(hooks=(Hook(moment=Moment.AFTER_DEFINE, where=Place.HOST, command=("sh", "-c", f"env >{log}")),))
    names = {line.split("=")[0] for line in log.read_text().splitlines() if line.startswith("VMIM_")}
    assert names - set(os.environ) == {"VMIM_BOX", "VMIM_MOMENT"}
