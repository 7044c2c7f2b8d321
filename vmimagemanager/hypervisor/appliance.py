"""A small guest that lives for one piece of work on a disk, so that this host's kernel never reads a guest's files.

It is the kernel, the initrd and the disk of an image, started without libvirt: no network, no agent, no memory that
outlives it, nothing defined anywhere.  The image's disk is read-only; the disk that is to be worked on is the second.
A script runs in it as root, connected to this process by one stream: descriptor 3 there, a socket here.  What it prints
is kept for errors.

A file system that harms the kernel that mounts it harms a guest that nobody needs a moment later.
"""

from __future__ import annotations

import logging
import pwd
import re
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO, cast

from vmimagemanager import process
from vmimagemanager.deadline import Deadline, Stopwatch
from vmimagemanager.durable import translate_os_errors
from vmimagemanager.errors import DeadlineError, GuestError
from vmimagemanager.hypervisor.accelerator import EMULATOR, Accelerator

_log = logging.getLogger(__name__)

_RAM = "384M"
_STALL = timedelta(minutes=2)  # without a single byte on the stream
_ENDING = timedelta(minutes=2)
_CHUNK = 1 << 20
_ROOT = re.compile(r"(?:^| )root=(/dev/vda[0-9]*)(?: |$)")
# Nothing waits for udev: the names of virtio disks are known.  What is said goes through the kernel's log, each line of
# which comes out before it goes on; what a terminal was told may still be on its way when QEMU ends with the reset.
_INIT = """\
#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mkdir -p /dev /proc /sys /root
mount -t devtmpfs dev /dev
mount -t proc proc /proc
exec </dev/null >/dev/console 2>&1
for module in virtio_pci virtio_blk ext4; do modprobe -q $module; done
tries=0
while [ ! -b {root} ] && [ $tries -lt 100 ]; do sleep 0.1; tries=$((tries + 1)); done
mount -t ext4 -o ro,noload {root} /root && {{
    mount -t devtmpfs dev /root/dev
    mount -t proc proc /root/proc
    mount -t sysfs sys /root/sys
    mount -t tmpfs tmp /root/tmp
    mount -t tmpfs run /root/run
    cat /job >/root/tmp/job
    chroot /root /bin/sh /tmp/job >/root/tmp/said 2>&1
}}
status=$?
chroot /root /bin/sh -c 'tail -n 40 /tmp/said | cut -c 1-300' | while read -r line; do echo "<0>$line" >/dev/kmsg; done
echo "<0>{token} $status" >/dev/kmsg
echo b >/proc/sysrq-trigger
reboot
"""
_JOB = """\
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8
modprobe -q virtio_console
tries=0
while ! port=$(ls /dev/vport*p1 2>/dev/null) && [ $tries -lt 100 ]; do sleep 0.1; tries=$((tries + 1)); done
exec 3<>"$port" || exit
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kit:
    """What an appliance is started from: an image's kernel, initrd and disk, and the device that its root is on.

    ``runs_as`` are the user and the group that QEMU gets, or None for those of this process.
    """

    kernel: Path
    initrd: Path
    disk: Path
    root: str
    accelerator: Accelerator
    runs_as: tuple[int, int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Worked:
    """How a script ended: its status, and the last of what it printed."""

    status: int
    printed: str


def root_device(command_line: str) -> str | None:
    """Return the device of a kernel command line's root file system, as far as an appliance knows it."""
    found = _ROOT.search(command_line)
    return found[1] if found else None


def work(
    kit: Kit,
    script: str,
    disk: Path,
    stage: Path,
    *,
    write: bool = False,
    feed: Callable[[BinaryIO], object] | None = None,
    drain: Callable[[BinaryIO], object] | None = None,
) -> Worked:
    """Run a script of sh on the qcow2 ``disk``, which is ``/dev/vdb`` there, and return how it ended.

    Nothing is written to the disk itself, unless ``write`` says so: what the script changes is gone with the appliance.
    ``feed`` writes to the script's descriptor 3, or ``drain`` reads from it.  ``stage`` is a folder for the initrd.

    Raises what ``feed`` and ``drain`` raise; GuestError when the appliance does not get to the script's end, and
    DeadlineError when it stands still.
    """
    watch = Stopwatch()
    token = f"ended-{secrets.token_hex(8)}"
    initrd = _initrd(kit, script, token, stage)
    ours, theirs = socket.socketpair()
    broken = False
    with ExitStack() as stack:
        stack.callback(ours.close)
        stack.callback(theirs.close)
        running = stack.enter_context(
            process.companion(_argv(kit, initrd, disk, theirs.fileno(), write=write), descriptors=[theirs.fileno()])
        )
        theirs.close()
        ours.settimeout(Deadline(_STALL).limit.total_seconds())
        with _stalls_named():
            try:
                if feed is not None:
                    with ours.makefile("wb", buffering=_CHUNK) as stream:
                        feed(cast("BinaryIO", stream))
                    ours.shutdown(socket.SHUT_WR)
                if drain is not None:
                    with ours.makefile("rb", buffering=_CHUNK) as stream:
                        drain(cast("BinaryIO", stream))
            except (BrokenPipeError, ConnectionResetError):  # it has ended, and its status says why
                broken = True
        finished = running.finish(Deadline(_ENDING).limit)
    found = re.search(rf"{token} (\d+)", finished.stdout.decode("utf-8", "replace"))
    printed = _printed(finished.stdout.decode("utf-8", "replace"), token)
    _log.info("worked on '%s' beside this host's kernel in %.2f s", disk, watch.total)
    if found is None or (broken and found[1] == "0"):
        said = finished.stderr.decode("utf-8", "replace").strip()
        raise GuestError(
            f"The appliance that was to work on '{disk}' ended before its work was done.",
            detail="\n".join(text for text in (printed, said) if text),
            hint="'vmimagemanager doctor' examines this host; the image that it is made of may be damaged.",
        )
    return Worked(status=int(found[1]), printed=printed)


def _argv(kit: Kit, initrd: Path, disk: Path, descriptor: int, *, write: bool) -> list[str | Path]:
    # Whoever runs as root gives that up; and whatever becomes of us, QEMU ends with us.
    words: list[str | Path] = [process.require("setpriv", package="util-linux"), "--pdeathsig=KILL"]
    if kit.runs_as is not None:
        user, group = kit.runs_as
        words += [f"--reuid={user}", f"--regid={group}", "--init-groups" if _is_known(user) else "--clear-groups"]
        words += ["--no-new-privs"]
    command_line = (
        "console=ttyS0 quiet loglevel=2 panic=-1 printk.devkmsg=on rdinit=/vmimagemanager mitigations=off nokaslr"
    )
    words += [process.require(EMULATOR, package="qemu-system-x86"), "-name", "appliance"]
    words += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    words += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
    words += ["-machine", f"q35,accel={kit.accelerator.value}", "-m", _RAM, "-smp", "1"]
    words += ["-cpu", "host" if kit.accelerator is Accelerator.KVM else "qemu64,-svm"]
    words += ["-kernel", kit.kernel, "-initrd", initrd, "-append", command_line]
    words += ["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]
    words += ["-drive", f"file={_escaped(kit.disk)},format=qcow2,if=none,id=root,readonly=on"]
    words += ["-device", "virtio-blk-pci,drive=root"]
    kept = "snapshot=off,cache=unsafe" if write else "snapshot=on"
    words += ["-drive", f"file={_escaped(disk)},format=qcow2,if=none,id=work,{kept}"]
    words += ["-device", "virtio-blk-pci,drive=work"]
    words += ["-device", "virtio-serial-pci,max_ports=2", "-chardev", f"socket,id=stream,fd={descriptor}"]
    words += ["-device", "virtserialport,chardev=stream,nr=1,name=stream"]
    return words


def _initrd(kit: Kit, script: str, token: str, stage: Path) -> Path:
    """Lay two files over the image's initrd: the kernel unpacks archives that follow one another into one tree."""
    path = stage / "initrd"
    with translate_os_errors("write", path):
        content = kit.initrd.read_bytes()
        content += bytes(-len(content) % 4)
        content += _cpio("vmimagemanager", 0o100755, _INIT.format(root=kit.root, token=token).encode())
        content += _cpio("job", 0o100644, (_JOB + script).encode())
        content += _cpio("TRAILER!!!", 0, b"")
        path.write_bytes(content)
        path.chmod(0o444)
    return path


def _cpio(name: str, mode: int, content: bytes) -> bytes:
    # https://docs.kernel.org/driver-api/early-userspace/buffer-format.html: magic, 13 numbers, name, content
    numbers = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % number for number in numbers) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)


def _escaped(path: Path) -> str:
    return str(path.absolute()).replace(",", ",,")


def _is_known(user: int) -> bool:
    try:
        pwd.getpwuid(user)
    except KeyError:
        return False
    return True


def _printed(text: str, token: str) -> str:
    said = text.split(token, maxsplit=1)[0]
    lines = [re.sub(r"^\[ *[0-9.]+\] ?", "", line).rstrip() for line in said.splitlines()]  # the kernel's time
    return "\n".join(line for line in lines if line)[-4000:]


@contextmanager
def _stalls_named() -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise DeadlineError(
            "The appliance that works on the disk stands still.",
            hint="VMIM_TIMEOUT_FACTOR gives a slow host longer.",
            waited_for="the appliance to go on",
        ) from error
