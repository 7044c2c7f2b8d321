"""Listening to fanotify: by perl and by Python alike, on this host's own kernel."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from vmimagemanager.errors import GuestError
from vmimagemanager.guest.tracing import Trace, tracer, watcher

WITHOUT = 'have() {{ [ "$1" != {0} ] && [ "$1" != {1} ] && command -v "$1" >/dev/null 2>&1; }}\n'
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="fanotify tells root alone about all files")


def here(script: str) -> bytes:
    return subprocess.run(["sh", "-s"], input=script.encode(), check=True, capture_output=True).stdout


@needs_root
@pytest.mark.parametrize("missing", ["python3", "perl"])
def test_the_listener_tells_which_program_used_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setattr(watcher, "_BEGIN", WITHOUT.format(missing, missing) + watcher._BEGIN)
    script, data = tmp_path / "script", tmp_path / "odd\nname"
    script.write_text(f"#!/bin/sh\ncat '{data}' >/dev/null\n")
    script.chmod(0o755)
    data.write_text("data\n")
    listener = tracer(Trace.FANOTIFY, here)
    programs = listener.begin()
    assert bytes(Path("/proc/self/exe").readlink()) in programs
    subprocess.run([str(script)], check=True)
    used = listener.end()
    cat = os.path.realpath("/bin/cat").encode()
    assert used[bytes(data)] == {cat}
    assert bytes(script) in used[cat]
    assert bytes(script) in used[bytes(script)]
    assert not list(Path("/run").glob("vmimagemanager-*"))


def test_a_system_without_both_is_refused_and_the_other_way_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "_BEGIN", WITHOUT.format("perl", "python3") + watcher._BEGIN)
    with pytest.raises(GuestError, match="neither perl nor Python") as raised:
        tracer(Trace.FANOTIFY, here).begin()
    assert "--trace atime" in raised.value.hint


@needs_root
def test_a_listener_that_was_killed_is_no_silence() -> None:
    listener = watcher.Watcher(here)
    listener.begin()
    os.kill(listener._process, 9)
    status = Path(f"/proc/{listener._process}/stat")
    with suppress(FileNotFoundError, ProcessLookupError):  # once it is reaped
        while ") Z " not in status.read_text():
            os.sched_yield()
    with pytest.raises(GuestError, match="ended before it could tell"):
        listener.end()
    assert not list(Path("/run").glob("vmimagemanager-*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may listen")
def test_who_may_not_listen_is_told_why() -> None:
    with pytest.raises(GuestError, match="does not tell which files are used: Operation not permitted"):
        tracer(Trace.FANOTIFY, here).begin()
