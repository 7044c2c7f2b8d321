"""Run vmimagemanager, and end its process by SIGKILL just before its N-th step: ``dying.py N FOLDER ARGUMENT...``.

A step is what changes something: a file or folder below FOLDER, another program that is started, or a call of libvirt
that does not merely ask.  To be killed before a question is the same as to be killed after the step before it.  Steps
that repeat at once, as polls do, count as one.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable
from typing import Any

import libvirt
import libvirt_qemu

CHANGES = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.chown", "os.truncate"}
QUESTION = re.compile(
    r"Get|Lookup|List|Num|State|Recv|Register|virConnectOpen|virConnectClose|virInitialize|Error|Free"
)
QUERY = re.compile(r'"execute": "(query-|guest-ping|guest-exec-status)')


class Countdown:
    """Counts steps, and kills this process before the one that is asked for."""

    def __init__(self, at: int, folder: str) -> None:
        self.left = at
        self.folder = folder
        self.last = ""

    def step(self, label: str) -> None:
        if label == self.last:
            return
        self.last = label
        self.left -= 1
        if self.left == 0:
            os.write(2, f"killed before {label}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "subprocess.Popen" and "info" not in arguments[1]:
            self.step(f"{event} {arguments[1][:2]}")
        elif event in CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_ACCMODE):
            self.change(event, str(arguments[0]))

    def change(self, event: str, path: str) -> None:
        if path.startswith(self.folder) or not path.startswith("/"):  # shutil names what is in a folder by its own name
            self.step(f"{event} {path}")


class Watched:
    """libvirt's C module, each call of which is a step first."""

    def __init__(self, module: Any, countdown: Countdown) -> None:  # noqa: ANN401 - a C module
        self._module = module
        self._countdown = countdown

    def __getattr__(self, name: str) -> Callable[..., Any]:
        found: Callable[..., Any] = getattr(self._module, name)
        if QUESTION.search(name):
            return found

        def call(*arguments: Any) -> Any:  # noqa: ANN401
            said = str(arguments[1])[:60] if name.endswith("Command") else ""
            if not QUERY.search(said):
                self._countdown.step(f"{name} {said}")
            return found(*arguments)

        return call


def main() -> int:
    from vmimagemanager.cli.run import run

    countdown = Countdown(int(sys.argv[1]), sys.argv[2])
    libvirt.libvirtmod = Watched(libvirt.libvirtmod, countdown)
    libvirt_qemu.libvirtmod_qemu = Watched(libvirt_qemu.libvirtmod_qemu, countdown)
    sys.addaudithook(countdown.audit)
    return run(sys.argv[3:])


if __name__ == "__main__":
    sys.exit(main())
