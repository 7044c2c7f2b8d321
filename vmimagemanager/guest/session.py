"""SSH into the guest: commands and streams.  Host keys are known beforehand, and strict."""

from __future__ import annotations

import logging
import os
import shlex
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import paramiko

from vmimagemanager.config import Channel
from vmimagemanager.deadline import Deadline
from vmimagemanager.errors import DeadlineError, GuestError, GuestUnreachableError, HostKeyError, HypervisorError
from vmimagemanager.guest.result import Result

# The cheapest good algorithms: under emulation the key exchange is most of a connection's time.
_CIPHERS = ("aes128-ctr", "aes128-gcm@openssh.com", "aes256-ctr")
_KEY_EXCHANGES = ("curve25519-sha256@libssh.org", "ecdh-sha2-nistp256")
_HOST_KEY_TYPE = "ssh-ed25519"
_CHUNK = 1 << 16
_TRY = 10.0
_ENDING = 0.5
_NEWS = timedelta(seconds=3)
_ANSWER = timedelta(seconds=20)
_CONNECTION_LOST = (paramiko.SSHException, EOFError, OSError)

_LOG = logging.getLogger(f"{__name__}.paramiko")
_LOG.setLevel(logging.CRITICAL)  # what goes wrong is raised, and need not be printed with a traceback as well

Sink = Callable[[bytes], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """All that an SSH connection to one guest needs; ``host_key`` is its Ed25519 public key, a line as OpenSSH's."""

    host: str
    port: int
    user: str
    key: Path
    host_key: str


class Session:
    """An open SSH connection; a context manager.

    Everything raises GuestUnreachableError when the connection is lost.
    """

    def __init__(self, transport: paramiko.Transport, access: Access, check: Callable[[], None] = lambda: None) -> None:
        self._transport = transport
        self._check = check
        self.access = access

    @classmethod
    def connect(cls, access: Access, limit: timedelta, check: Callable[[], None] = lambda: None) -> Session:
        """Connect, trying again until ``limit`` is over: an SSH server may come up after the agent.

        ``check`` is called before each try, and later while a command runs, and raises when there is no more hope:
        nothing else tells that a guest died, whose end of the connection is only silent.  Raises HostKeyError at once
        when the guest shows another host key, GuestError when it refuses our key, DeadlineError when it stays silent.
        """
        deadline = Deadline(limit)
        key = paramiko.Ed25519Key.from_private_key_file(str(access.key))
        last: list[str] = []

        def connected() -> paramiko.Transport | None:
            check()
            try:
                return _transport(access, key, min(_TRY, max(deadline.remaining, 1.0)))
            except paramiko.AuthenticationException as error:
                raise GuestError(
                    f"The guest does not accept our key for the user '{access.user}'.",
                    hint="Was its authorized_keys changed? 'vmimagemanager reset' starts from the image again.",
                ) from error
            except _CONNECTION_LOST as error:
                last[:] = [str(error) or type(error).__name__]
                return None

        transport = deadline.wait_for(
            f"SSH on {access.host}, port {access.port}",
            connected,
            every=0.05,
            hint="Does the guest run an SSH server? 'vmimagemanager console' shows its screen.",
            detail=lambda: "\n".join(f"The last try ended with: {text}." for text in last),
        )
        return cls(transport, access, check)

    @property
    def alive(self) -> bool:
        return self._transport.is_active()

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | BinaryIO = b"",
        limit: timedelta | None = None,
        stdout: Sink | None = None,
        stderr: Sink | None = None,
    ) -> Result:
        """Run a program; what it writes goes to the sinks as it comes, or else into the result.

        Raises DeadlineError when ``limit`` is over; the connection is closed then, which ends most programs.
        """
        return self.shell(shlex.join(argv), stdin=stdin, limit=limit, stdout=stdout, stderr=stderr)

    def shell(
        self,
        line: str,
        *,
        stdin: bytes | BinaryIO = b"",
        limit: timedelta | None = None,
        stdout: Sink | None = None,
        stderr: Sink | None = None,
    ) -> Result:
        """Run a line in the user's login shell, as `run` does."""
        deadline = Deadline(limit if limit is not None else timedelta(days=365))
        awaited = f"'{line[:80]}' to end in the guest"
        kept: tuple[list[bytes], list[bytes]] = ([], [])
        with self._lost_connection_translated(), self._channel() as channel:
            self._request(channel, os.fsencode(line), deadline, awaited)
            feeder = _Feeder(channel, stdin)
            readers = [
                _Reader(channel, channel.recv, stdout or kept[0].append),
                _Reader(channel, channel.recv_stderr, stderr or kept[1].append),
            ]
            try:
                for reader in readers:
                    while reader.is_alive():
                        reader.join(min(0.5, deadline.remaining))
                        if deadline.expired and reader.is_alive():
                            raise deadline.error(awaited)
                        if reader.is_alive():
                            self._require_life()
                status = _exit_status(channel, deadline)
            except BaseException:
                self.close()
                raise
        for failure in (feeder.failure, *(reader.failure for reader in readers)):
            if failure is not None:
                raise failure
        if status < 0:
            self._transport.join(_ENDING)  # a lost connection ends its channels first, and only then itself
            if not self.alive:
                self._explain_loss()
                raise GuestUnreachableError(f"The connection to the guest was lost while '{line[:80]}' ran.")
        return Result(
            command=line,
            status=status if status >= 0 else 255,
            stdout=b"".join(kept[0]),
            stderr=b"".join(kept[1]),
            seconds=deadline.elapsed,
            channel=Channel.SSH,
        )

    def close(self) -> None:
        self._transport.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _require_life(self) -> None:
        with suppress(HypervisorError):  # libvirt's own trouble is no reason to end a command that runs over SSH
            self._check()

    def _explain_loss(self) -> None:
        """Raise what `_check` says of a guest that is gone, which libvirt may know only a moment later."""
        with suppress(DeadlineError):
            Deadline(_NEWS, scaled=False).wait_for("news of the guest", self._require_life)

    def _channel(self) -> paramiko.Channel:
        return self._transport.open_session(timeout=Deadline(_ANSWER).remaining)

    def _request(self, channel: paramiko.Channel, line: bytes, deadline: Deadline, awaited: str) -> None:
        """Have a line run, for the answer to which paramiko would wait without an end."""
        answer = Deadline(_ANSWER)
        if deadline.remaining < answer.remaining:
            answer = deadline
        watchdog = threading.Timer(answer.remaining, self.close)
        watchdog.daemon = True
        watchdog.start()
        try:
            channel.exec_command(line)
        except _CONNECTION_LOST as error:
            if answer.expired:
                raise answer.error(awaited) from error
            # Of a program that ended at once paramiko may see the channel's end before it looks at the answer.
            if channel.exit_status < 0:
                raise
        finally:
            watchdog.cancel()

    @contextmanager
    def _lost_connection_translated(self) -> Iterator[None]:
        try:
            yield
        except _CONNECTION_LOST as error:
            raise _lost(error) from error


class _Feeder(threading.Thread):
    """Moves the source to standard input; when the source fails, the program is not to take what it got for all."""

    def __init__(self, channel: paramiko.Channel, source: bytes | BinaryIO) -> None:
        super().__init__(daemon=True)
        self._channel = channel
        self._source = source
        self.failure: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            for chunk in self._chunks():
                self._channel.sendall(chunk)
            self._channel.shutdown_write()
        except _CONNECTION_LOST:  # the program ended without reading it all
            return

    def _chunks(self) -> Iterator[bytes]:
        if isinstance(self._source, bytes):
            yield self._source
            return
        read = getattr(self._source, "read1", self._source.read)
        while True:
            try:
                chunk = read(_CHUNK)
            except Exception as error:  # noqa: BLE001 - the source is the caller's: what it raises is raised to him
                self.failure = error
                self._channel.close()
                return
            if not chunk:
                return
            yield chunk


class _Reader(threading.Thread):
    """Moves one output stream to its sink; when the sink fails (a closed pipe), nobody wants the program any more."""

    def __init__(self, channel: paramiko.Channel, receive: Callable[[int], bytes], sink: Sink) -> None:
        super().__init__(daemon=True)
        self._channel = channel
        self._receive = receive
        self._sink = sink
        self.failure: Exception | None = None
        self.start()

    def run(self) -> None:
        while True:
            try:
                chunk = self._receive(_CHUNK)
            except _CONNECTION_LOST:  # EOFError, too, where it asks for more in the same moment
                return
            if not chunk:
                return
            try:
                self._sink(chunk)
            except Exception as error:  # noqa: BLE001 - the sink is the caller's: what it raises is raised to him
                self.failure = error
                self._channel.close()
                return


def _lost(error: Exception) -> GuestUnreachableError:
    return GuestUnreachableError(
        f"The SSH connection to the guest failed: {str(error).rstrip('.') or type(error).__name__}."
    )


def _transport(access: Access, key: paramiko.PKey, seconds: float) -> paramiko.Transport:
    connection = socket.create_connection((access.host, access.port), timeout=seconds)
    try:
        if not connection.recv(1, socket.MSG_PEEK):  # a port that is forwarded answers before the guest listens
            raise EOFError("the connection was closed at once")
        transport = paramiko.Transport(connection)
    except BaseException:
        connection.close()
        raise
    try:
        transport.set_log_channel(_LOG.name)
        options = transport.get_security_options()
        options.ciphers = _available(_CIPHERS, options.ciphers)
        options.kex = _available(_KEY_EXCHANGES, options.kex)
        options.key_types = (_HOST_KEY_TYPE,)
        transport.start_client(timeout=seconds)
        shown = transport.get_remote_server_key()
        if (shown.get_name(), shown.get_base64()) != tuple(access.host_key.split()[:2]):
            raise HostKeyError(
                f"The guest on {access.host}, port {access.port} shows a host key that is not the box's own.",
                hint="Another machine may be listening there: 'vmimagemanager show' prints the known fingerprint.",
            )
        transport.auth_publickey(access.user, key)
        transport.set_keepalive(15)
    except BaseException:
        transport.close()
        raise
    return transport


def _available(wanted: Sequence[str], offered: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in wanted if name in offered)


def _exit_status(channel: paramiko.Channel, deadline: Deadline) -> int:
    # Both streams have ended, so the status is on its way, or the connection is gone.
    if not channel.status_event.wait(min(30.0, max(deadline.remaining, 1.0))):
        return -1
    return channel.exit_status
