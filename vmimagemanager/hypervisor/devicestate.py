"""The state of a guest's devices, as QEMU's migration stream without the RAM: written into a file, and read again.

The stream goes through a pair of sockets, one of them handed to QEMU, so that neither a path nor its permissions matter
to a QEMU that runs as another user.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import Any

from vmimagemanager.deadline import Deadline
from vmimagemanager.durable import translate_os_errors
from vmimagemanager.errors import HypervisorError
from vmimagemanager.hypervisor import ramstream
from vmimagemanager.hypervisor.monitor import Monitor
from vmimagemanager.units import Size

_STREAM = "vmim-stream"
_CHUNK = 1 << 20
_EVERY = 0.002  # seconds
_UNLIMITED = 1 << 40  # bytes a second; QEMU's own limit is 128 MiB


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateRam:
    """Where a guest's RAM is to be written that is in no file of its own, and its size."""

    target: Path
    size: Size


def save(monitor: Monitor, target: Path, limit: timedelta, *, ram: PrivateRam | None = None) -> None:
    """Write a paused guest's device state into ``target``; its RAM is in a shared file, or is written to ``ram``.

    Raises HypervisorError, SpaceError or DeadlineError; the guest is then still there, paused, and what was written is
    to be removed.
    """

    def receive(source: socket.socket) -> None:
        with (
            translate_os_errors("write", target),
            BufferedReader(source.makefile("rb", buffering=0), _CHUNK) as stream,
            _private_file(target) as state,
        ):
            if ram is None:
                _copy(stream.read1, state.write)
            else:
                with _private_file(ram.target) as pages:
                    ramstream.split(stream, state, pages.fileno(), size=ram.size.bytes)

    monitor.ignore_shared(True)
    try:
        monitor.command("migrate-set-parameters", **{"max-bandwidth": _UNLIMITED})
        deadline = Deadline(limit)
        with _other_end(monitor, receive) as reader:
            try:
                monitor.command("migrate", uri=f"fd:{_STREAM}")
                status = deadline.wait_for("QEMU to write its state", lambda: _outgoing_result(monitor), every=_EVERY)
            except BaseException:
                monitor.command("migrate_cancel")
                raise
            reader.join(deadline.remaining)
        if reader.failure is not None:
            raise reader.failure
        if status["status"] != "completed" or reader.is_alive():
            raise HypervisorError(f"QEMU did not write its state: {status.get('error-desc', status['status'])}.")
    except BaseException:
        monitor.ignore_shared(False)
        raise


def load(monitor: Monitor, source: Path, limit: timedelta) -> None:
    """Read the state that `save` wrote into a guest that was started with ``-incoming defer``."""

    def send(target: socket.socket) -> None:
        with translate_os_errors("read", source), source.open("rb") as stream:
            _copy(stream.read, target.sendall)
            target.shutdown(socket.SHUT_WR)

    monitor.ignore_shared(True)
    with _other_end(monitor, send):
        monitor.command("migrate-incoming", uri=f"fd:{_STREAM}")
        Deadline(limit).wait_for("QEMU to read its state", lambda: _has_arrived(monitor), every=_EVERY)
    monitor.ignore_shared(False)  # or a later save of libvirt's would leave the RAM out, too


class _Mover(threading.Thread):
    """Moves a stream at our end of the sockets; what goes wrong is kept, and QEMU's end is closed then."""

    def __init__(self, move: Callable[[socket.socket], None], ours: socket.socket) -> None:
        super().__init__(daemon=True)
        self._move = move
        self._ours = ours
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            self._move(self._ours)
        except Exception as error:  # noqa: BLE001 - it is raised where the thread is waited for
            self.failure = error
        finally:
            # Without a reader QEMU fails, and says so, instead of waiting for us.
            self._ours.close()


@contextmanager
def _other_end(monitor: Monitor, move: Callable[[socket.socket], None]) -> Iterator[_Mover]:
    """Give QEMU one end of a stream, and have ``move`` work at the other one in a thread of its own."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            monitor.pass_descriptor(_STREAM, theirs.fileno())
        mover = _Mover(move, ours)
        mover.start()
        yield mover


def _copy(read: Callable[[int], bytes], write: Callable[[bytes], object]) -> None:
    while chunk := read(_CHUNK):
        write(chunk)


def _private_file(path: Path) -> BufferedWriter:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    return os.fdopen(descriptor, "wb")


def _outgoing_result(monitor: Monitor) -> dict[str, Any] | None:
    status = monitor.command("query-migrate")
    return status if status.get("status") in ("completed", "failed", "cancelled") else None


def _has_arrived(monitor: Monitor) -> bool:
    return bool(monitor.command("query-status")["status"] != "inmigrate")
