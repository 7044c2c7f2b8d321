"""A software TPM of our own beside a guest: one at a time, and none is left."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest

from vmimagemanager import process
from vmimagemanager.errors import ToolError
from vmimagemanager.hypervisor import tpm


def running(at: Path) -> list[str]:
    listed = subprocess.run(["pgrep", "-f", f"path={at},"], capture_output=True, text=True, check=False)
    return listed.stdout.split()


@pytest.mark.parametrize("missing", ["swtpm", "swtpm_setup"])
def test_what_libvirt_wants_for_a_tpm_is_named_when_it_is_missing(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    found = process.require

    def require(program: str, *, package: str) -> Path:
        return found("no-such-program" if program == missing else program, package=package)

    monkeypatch.setattr(process, "require", require)
    with pytest.raises(ToolError) as raised:
        tpm.require()
    assert "swtpm" in raised.value.hint


def test_a_tpm_listens_when_it_was_started_and_one_that_was_left_is_ended_first(tmp_path: Path) -> None:
    state, at = tmp_path / "state", tmp_path / "run" / "socket"
    tpm.end(at)  # there is none
    tpm.start(state, at, None)
    try:
        (first,) = running(at)
        tpm.start(state, at, None)
        (second,) = running(at)
        assert first != second
    finally:
        tpm.end(at)
    assert running(at) == []
    assert not at.exists()
    assert state.is_dir()


def test_a_tpm_ends_with_its_guest(tmp_path: Path) -> None:
    state, at = tmp_path / "state", tmp_path / "run" / "socket"
    tpm.start(state, at, None)
    with socket.socket(socket.AF_UNIX) as guest:
        guest.connect(str(at))
        guest.sendall(b"\0\0\0\1")  # CMD_GET_CAPABILITY: a guest that has begun
        assert guest.recv(64)
    tpm.end(at)
    assert running(at) == []
