"""A software TPM, run by us beside a guest: swtpm(8), whose state is files in the box's folder.

It ends with the guest.  While the guest runs, what is in the TPM's memory is part of QEMU's migration stream, and what
it keeps for ever is in its files.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from pathlib import Path

from vmimagemanager import process
from vmimagemanager.deadline import Deadline
from vmimagemanager.durable import make_folder, remove_tree, translate_os_errors

_PROGRAM = "swtpm"
_WANTED = {_PROGRAM: "swtpm", "swtpm_setup": "swtpm-tools", "swtpm_ioctl": "swtpm-tools"}
_LIMIT = timedelta(seconds=10)
_SHUT_DOWN = b"\x00\x00\x00\x03"  # CMD_SHUTDOWN of swtpm's control channel (swtpm_ioctls(3))


def require() -> None:
    """Raise ToolError when a program is missing that libvirt wants for any TPM, whoever runs it."""
    for program, package in _WANTED.items():
        process.require(program, package=package)


def start(state: Path, at: Path, owner: tuple[int, int] | None) -> None:
    """Start a TPM, as ``owner`` or as the caller, that keeps its files in ``state`` and serves the socket ``at``.

    One that an interrupted start left there is ended first.  Raises ToolError or DeadlineError; none runs then.
    """
    program = process.require(_PROGRAM, package=_WANTED[_PROGRAM])
    end(at)
    make_folder(at.parent, mode=0o700)
    make_folder(state, mode=0o700)
    runs_as: list[str] = []
    if owner is not None:
        runs_as = ["--runas", str(owner[0])]
        for path in (at.parent, state, *state.iterdir()):
            with translate_os_errors("hand to QEMU", path):
                os.chown(path, *owner)
    control = f"type=unixio,path={at},mode=0600"
    argv: list[str | Path] = [program, "socket", "--tpm2", "--tpmstate", f"dir={state},mode=0600", "--ctrl", control]
    process.run([*argv, "--terminate", "--daemon", *runs_as], limit=_LIMIT)


def end(at: Path) -> None:
    """End the TPM at a socket whose guest does not run, if there is one; the guest's end has ended it already."""
    Deadline(_LIMIT, scaled=False).wait_for("the software TPM to end", lambda: _ended(at), every=0.01)
    remove_tree(at)


def _ended(at: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as control:
        control.settimeout(1.0)
        try:
            control.connect(str(at))
            control.sendall(_SHUT_DOWN)
            control.recv(4)
        except (FileNotFoundError, ConnectionRefusedError):
            return True
        except OSError:  # it is about to end
            return False
    return False
