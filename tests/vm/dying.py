"""Run vmimagemanager, and end its process by SIGKILL just before a step: ``dying.py FOLDER ARGUMENT...``.

Each line of standard input is a run, in a process of its own that has loaded everything already: the number of the
step, or a part of what it is called.  The answer is a line with how the process ended (see `os.waitstatus_to_exitcode`)
and what it said, as JSON.

A step is what changes something: a file or folder below FOLDER, another program that is started, or a call of libvirt
that does not merely ask.  To be killed before a question is the same as to be killed after the step before it.  Steps
that repeat at once, as polls do, count as one; so does what is done to a file that was just opened, by its descriptor.
"""

from __future__ import annotations

import json
import os
import pkgutil
import re
import signal
import sys
import tempfile
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
    """Counts steps, and kills this process before the one that is asked for, by its number or a part of its label."""

    def __init__(self, at: int | str, folder: str) -> None:
        self.left = at if isinstance(at, int) else 0
        self.wanted = at if isinstance(at, str) else None
        self.folder = folder
        self.last = ""

    def step(self, label: str) -> None:
        if label == self.last:
            return
        self.last = label
        self.left -= 1
        if self.left == 0 or (self.wanted is not None and self.wanted in label):
            os.write(2, f"killed before {label}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "subprocess.Popen" and "info" not in arguments[1]:
            self.step(f"{event} {arguments[1][:2]}")
        elif _changes(event, arguments) and not isinstance(arguments[0], int):  # a descriptor
            self.change(event, str(arguments[0]))

    def change(self, event: str, path: str) -> None:
        if path.startswith(self.folder) or not path.startswith("/"):  # shutil names what is in a folder by its own name
            self.step(f"{event} {path}")


def _changes(event: str, arguments: tuple[Any, ...]) -> bool:
    if event == "open":
        return isinstance(arguments[2], int) and arguments[2] & os.O_ACCMODE != 0
    return event in CHANGES


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


def run_until(at: int | str, folder: str, words: list[str]) -> int:
    from vmimagemanager.cli.run import run

    countdown = Countdown(at, folder)
    libvirt.libvirtmod = Watched(libvirt.libvirtmod, countdown)
    libvirt_qemu.libvirtmod_qemu = Watched(libvirt_qemu.libvirtmod_qemu, countdown)
    sys.addaudithook(countdown.audit)
    return run(words)


def main() -> int:
    import vmimagemanager

    for module in pkgutil.walk_packages(vmimagemanager.__path__, "vmimagemanager."):
        if not module.name.endswith(("__main__", "pytest_plugin")):
            __import__(module.name)
    for line in sys.stdin:
        at = line.strip()
        with tempfile.TemporaryFile() as said:
            child = os.fork()
            if child == 0:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
                status = 1
                try:
                    status = run_until(int(at) if at.isdecimal() else at, sys.argv[1], sys.argv[2:])
                finally:
                    os._exit(status)
            _, ended = os.waitpid(child, 0)
            said.seek(0)
            answer = json.dumps([os.waitstatus_to_exitcode(ended), said.read().decode(errors="replace")])
            sys.stdout.write(f"{answer}\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
