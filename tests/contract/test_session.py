"""The SSH session: what it promises, over an SSH server in this process and, in tests/vm, over a real guest's."""

from __future__ import annotations

import io
import os
import socket
import stat
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import IO

import paramiko
import pytest
from paramiko.common import AUTH_FAILED, AUTH_SUCCESSFUL, OPEN_SUCCEEDED

from vmimagemanager import keys
from vmimagemanager.errors import (
    CommandFailedError,
    DeadlineError,
    GuestError,
    GuestPanicError,
    GuestUnreachableError,
    HostKeyError,
    TransferError,
)
from vmimagemanager.files import pack
from vmimagemanager.guest import session as session_module
from vmimagemanager.guest import transfer
from vmimagemanager.guest.session import Access, Session

LIMIT = timedelta(seconds=20)
SOON = timedelta(milliseconds=300)
BIG = 3 << 20
BOTH_STREAMS = f"head -c {BIG} /dev/zero & head -c {BIG} /dev/zero | tr '\\0' x >&2; wait"


class Contract:
    """What holds for every session; ``session`` is open, and ``folder`` is an empty folder at its other end."""

    def test_a_commands_words_arrive_as_they_are(self, session: Session) -> None:
        words = ["a b", "", "*", "$HOME", "`id`", "'", '"', "\\", "\n", "ü", "-n", ";", "&&"]
        result = session.run(["printf", "%s\\0", *words])
        assert result.stdout.decode().split("\0")[:-1] == words
        assert result.channel == "ssh"
        assert result.seconds > 0

    def test_both_streams_come_whole_and_apart(self, session: Session) -> None:
        result = session.shell(BOTH_STREAMS)
        assert (len(result.stdout), len(result.stderr)) == (BIG, BIG)
        assert (set(result.stdout), set(result.stderr)) == ({0}, {ord("x")})

    def test_standard_input_comes_whole_and_ends(self, session: Session) -> None:
        content = os.urandom(BIG)
        assert session.run(["cat"], stdin=content).stdout == content
        assert session.run(["cat"], stdin=io.BytesIO(content)).stdout == content
        assert session.run(["cat"]).stdout == b""

    def test_a_program_need_not_read_its_standard_input(self, session: Session) -> None:
        assert session.run(["true"], stdin=b"x" * BIG).status == 0

    @pytest.mark.parametrize("status", [0, 1, 100, 255])
    def test_the_status_is_the_commands_own(self, session: Session, status: int) -> None:
        result = session.shell(f"echo out; echo err >&2; exit {status}")
        assert (result.status, result.stdout, result.stderr) == (status, b"out\n", b"err\n")

    def test_a_checked_failure_carries_what_the_command_said(self, session: Session) -> None:
        with pytest.raises(CommandFailedError) as caught:
            session.shell("echo out; echo err >&2; exit 7").check()
        error = caught.value
        assert (error.status, error.stdout, error.stderr, error.detail) == (7, b"out\n", b"err\n", "err")

    def test_a_command_that_a_signal_ended_has_status_255(self, session: Session) -> None:
        assert session.shell("kill -KILL $$").status in (255, 128 + 9)
        assert session.run(["true"]).status == 0

    def test_output_goes_to_sinks_as_it_comes(self, session: Session) -> None:
        seen: list[tuple[str, bytes]] = []
        result = session.shell(
            "echo out; echo err >&2",
            stdout=lambda chunk: seen.append(("out", chunk)),
            stderr=lambda chunk: seen.append(("err", chunk)),
        )
        assert sorted(seen) == [("err", b"err\n"), ("out", b"out\n")]
        assert (result.stdout, result.stderr) == (b"", b"")

    def test_what_a_sink_raises_is_raised_and_the_session_lives_on(self, session: Session) -> None:
        def broken(_: bytes) -> None:
            raise BrokenPipeError("nobody reads")

        def wrong(_: bytes) -> None:
            raise ValueError("not this")

        with pytest.raises(BrokenPipeError):
            session.shell("yes", stdout=broken)
        with pytest.raises(ValueError, match="not this"):
            session.shell("echo >&2", stderr=wrong)
        assert session.run(["true"]).status == 0

    def test_what_the_source_of_standard_input_raises_is_raised(self, session: Session) -> None:
        class Source(io.BytesIO):
            def read1(self, size: int | None = -1, /) -> bytes:
                raise OSError("the disk is gone")

        with pytest.raises(OSError, match="the disk is gone"):
            session.run(["cat"], stdin=Source())

    def test_a_command_that_exceeds_its_limit_is_named(self, session: Session) -> None:
        with pytest.raises(DeadlineError) as caught:
            session.run(["sleep", "600"], limit=SOON)
        assert caught.value.waited_for == "'sleep 600' to end in the guest"
        assert not session.alive

    def test_a_tree_comes_back_as_it_was_put(self, session: Session, folder: PurePosixPath, tmp_path: Path) -> None:
        tree = tmp_path / "tree"
        (tree / "ünder").mkdir(parents=True)
        (tree / "ünder" / "data").write_bytes(os.urandom(100_000))
        (tree / "tool").write_text("#!/bin/sh\n")
        (tree / "tool").chmod(0o750)
        (tree / "empty").mkdir(mode=0o700)
        (tree / "link").symlink_to("ünder/data")
        (tree / "dangling").symlink_to("/nowhere/at all")
        assert transfer.put(session, tree, folder / "copy") == 100_010
        assert transfer.get(session, folder / "copy", tmp_path / "back") == 100_010
        assert described(tmp_path / "back") == described(tree)

    def test_a_file_goes_into_a_folder_or_by_its_new_name(
        self, session: Session, folder: PurePosixPath, tmp_path: Path
    ) -> None:
        source = tmp_path / "source"
        source.write_bytes(b"first")
        transfer.put(session, source, folder)
        transfer.put(session, source, folder / "other")
        source.write_bytes(b"second")
        transfer.put(session, source, folder / "other")  # replaced
        (tmp_path / "into").mkdir()
        transfer.get(session, folder / "source", tmp_path / "into")
        transfer.get(session, folder / "other", tmp_path / "source")
        assert (tmp_path / "into" / "source").read_bytes() == b"first"
        assert source.read_bytes() == b"second"

    def test_what_cannot_be_copied_is_named_and_leaves_nothing(
        self, session: Session, folder: PurePosixPath, tmp_path: Path
    ) -> None:
        with pytest.raises(TransferError, match="missing"):
            transfer.get(session, folder / "missing", tmp_path / "got")
        with pytest.raises(TransferError, match="missing"):
            transfer.put(session, tmp_path / "missing", folder)
        with pytest.raises(TransferError, match="no/such"):
            transfer.put(session, Path(__file__), folder / "no" / "such" / "place")
        with pytest.raises(TransferError, match="neither"):
            transfer.get(session, PurePosixPath("/dev/null"), tmp_path / "got")
        with pytest.raises(TransferError, match="on the host"):
            transfer.get(session, PurePosixPath("/etc/passwd"), tmp_path / "no" / "such")
        assert list(tmp_path.iterdir()) == []

    def test_names_that_are_not_utf8_survive(self, session: Session, folder: PurePosixPath, tmp_path: Path) -> None:
        tree = tmp_path / "tree"
        tree.mkdir()
        for name in (b"caf\xe9", b"new\nline", b"-rf", b" ", b"\\t*?$(id)"):
            (tree / os.fsdecode(name)).write_bytes(name)
        transfer.put(session, tree, folder / "copy")
        transfer.get(session, folder / "copy", tmp_path / "back")
        assert described(tmp_path / "back") == described(tree)
        transfer.get(session, folder / "copy" / os.fsdecode(b"caf\xe9"), tmp_path / "one")
        assert (tmp_path / "one").read_bytes() == b"caf\xe9"

    def test_several_come_out_at_once_each_by_its_name(
        self, session: Session, folder: PurePosixPath, tmp_path: Path
    ) -> None:
        session.shell(
            f"mkdir -p {folder}/a/sub {folder}/b && echo 1 >{folder}/a/sub/one && echo 2 >{folder}/b/two"
        ).check()
        session.shell(f"ln -s two {folder}/b/link && chmod 600 {folder}/b/two").check()
        (tmp_path / "into").mkdir()
        assert transfer.extract(session, [folder / "a", folder / "b" / "link"], tmp_path / "into") == 4
        assert described(tmp_path / "into") == {
            ".": ((tmp_path / "into").stat().st_mode, ""),
            "a": (stat.S_IFDIR | 0o755, ""),
            "a/sub": (stat.S_IFDIR | 0o755, ""),
            "a/sub/one": (stat.S_IFREG | 0o644, b"1\n"),
            "link": (stat.S_IFREG | 0o600, b"2\n"),
        }

    def test_trees_and_archives_are_laid_over_a_folder_in_their_order(
        self, session: Session, folder: PurePosixPath, tmp_path: Path
    ) -> None:
        session.shell(f"mkdir -m 750 {folder}/etc {folder}/real && ln -s real {folder}/var").check()
        for name, text in (("first", "1"), ("second", "2")):
            (tmp_path / name / "etc").mkdir(parents=True)
            (tmp_path / name / "etc" / "conf").write_text(text)
            (tmp_path / name / "etc" / name).write_text(text)
        (tmp_path / "first" / "var").mkdir()
        (tmp_path / "first" / "var" / "below").write_text("")
        (tmp_path / "file").write_text("alone")
        with tarfile.open(tmp_path / "second.tar.gz", "w:gz") as archive:
            archive.add(tmp_path / "second", ".")
        sources = [tmp_path / "first", tmp_path / "second.tar.gz", tmp_path / "file"]
        transfer.insert(session, [pack.laying(source, folder) for source in sources])
        assert session.shell(f"cd {folder} && cat etc/conf etc/first etc/second file real/below").stdout == b"212alone"
        assert session.shell(f"cd {folder} && stat -c %a etc && test -L var").check().text == "750\n"


def described(path: Path) -> dict[str, tuple[int, bytes | str]]:
    """Return the mode and the content of everything in a tree."""
    found: dict[str, tuple[int, bytes | str]] = {}
    for entry in (path, *sorted(path.rglob("*"))):
        mode = entry.lstat().st_mode
        content: bytes | str = ""
        if stat.S_ISLNK(mode):
            content = str(entry.readlink())
        elif stat.S_ISREG(mode):
            content = entry.read_bytes()
        found[str(entry.relative_to(path))] = (mode, content)
    return found


# -- a server in this process --------------------------------------------------------------------------------------


class Server:
    """An SSH server on a port of 127.0.0.1 that runs real commands; its switches make it misbehave."""

    def __init__(self, folder: Path) -> None:
        self.host = keys.generate(folder / "host")
        self.login = keys.generate(folder / "login")
        self.accepts_key = True
        self.greets = True
        self.answers_requests = True
        self.sends_status = True
        self.answer: str | None = None
        self.drop = threading.Event()
        self._ended = threading.Event()
        self._transports: list[paramiko.Transport] = []
        self._silent: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    @property
    def access(self) -> Access:
        return Access(host="127.0.0.1", port=self.port, user="root", key=self.login.private, host_key=self.host.public)

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            if self._ended.is_set():
                connection.close()
                return
            if not self.greets:
                self._silent.append(connection)
                continue
            transport = paramiko.Transport(connection)
            transport.set_log_channel(session_module._LOG.name)
            transport.add_server_key(paramiko.Ed25519Key.from_private_key_file(str(self.host.private)))
            self._transports.append(transport)
            with suppress(paramiko.SSHException, EOFError, OSError):  # the client may be gone already
                transport.start_server(server=Guest(self, transport))

    def cut(self) -> None:
        """Drop all connections, without a word."""
        for transport in self._transports:
            transport.sock.close()

    def close(self) -> None:
        self._ended.set()
        self.drop.set()
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port)).close()
        self._thread.join()
        self._listener.close()
        for transport in self._transports:
            transport.close()
            transport.join()
        for connection in self._silent:
            connection.close()


class Guest(paramiko.ServerInterface):
    def __init__(self, server: Server, transport: paramiko.Transport) -> None:
        self._server = server
        self._transport = transport

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        known = self._server.login.public.split()[1] == key.get_base64()
        return AUTH_SUCCESSFUL if known and self._server.accepts_key else AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        if not self._server.answers_requests:
            self._server.drop.wait(30)
            return False
        threading.Thread(target=self._serve, args=(channel, os.fsdecode(command))).start()
        return True

    def _serve(self, channel: paramiko.Channel, line: str) -> None:
        pipe = subprocess.PIPE
        line = self._server.answer or line
        with (
            suppress(OSError, EOFError),  # of a channel that is closed when its client is gone already
            channel,
            subprocess.Popen(["sh", "-c", line], 0, stdin=pipe, stdout=pipe, stderr=pipe) as process,
        ):
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            ended = threading.Event()
            pumps = [
                threading.Thread(target=_pump, args=(process.stdout, channel.sendall)),
                threading.Thread(target=_pump, args=(process.stderr, channel.sendall_stderr)),
            ]
            feeder = threading.Thread(target=_feed, args=(channel, process.stdin, ended))
            for thread in (*pumps, feeder):
                thread.start()
            while process.poll() is None and not self._server.drop.is_set() and self._transport.is_active():
                time.sleep(0.005)
            if self._server.drop.is_set():
                self._transport.sock.close()
            if process.poll() is None:
                process.kill()
                process.wait()
            for thread in pumps:
                thread.join()
            ended.set()
            feeder.join()
            with suppress(OSError, EOFError):
                channel.shutdown_write()
                if self._server.sends_status and process.returncode >= 0:
                    channel.send_exit_status(process.returncode)


def _pump(source: IO[bytes], send: Callable[[bytes], None]) -> None:
    with suppress(OSError, EOFError):
        while chunk := os.read(source.fileno(), 1 << 16):
            send(chunk)
    source.close()  # where nobody listens any more, the program hears of it as from sshd


def _feed(channel: paramiko.Channel, target: IO[bytes], ended: threading.Event) -> None:
    with suppress(OSError, EOFError):
        while not ended.is_set():
            if not (channel.recv_ready() or channel.eof_received or channel.closed):
                time.sleep(0.001)  # a blocking read could not be ended from outside
                continue
            chunk = channel.recv(1 << 16)
            if not chunk:
                break
            while chunk:
                chunk = chunk[os.write(target.fileno(), chunk) :]
    target.close()


# -- the contract, and what a real guest does not do on demand ---------------------------------------------------------


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.close()


class TestInProcess(Contract):
    """The contract over the server in this process."""

    @pytest.fixture
    def session(self, server: Server) -> Iterator[Session]:
        with Session.connect(server.access, LIMIT) as session:
            yield session

    @pytest.fixture
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> PurePosixPath:
        return PurePosixPath(tmp_path_factory.mktemp("guest"))


@pytest.fixture
def session(server: Server) -> Iterator[Session]:
    with Session.connect(server.access, LIMIT) as session:
        yield session


def test_another_host_key_is_refused_at_once_and_no_secret_is_shown(server: Server, tmp_path: Path) -> None:
    access = server.access
    other = Access(
        host=access.host,
        port=access.port,
        user=access.user,
        key=access.key,
        host_key=keys.generate(tmp_path / "other").public,
    )
    with pytest.raises(HostKeyError, match=f"port {server.port}"):
        Session.connect(other, LIMIT)


def test_a_key_that_is_not_accepted_is_told_at_once(server: Server) -> None:
    server.accepts_key = False
    with pytest.raises(GuestError, match="does not accept our key for the user 'root'"):
        Session.connect(server.access, LIMIT)


def test_a_silent_server_is_given_up_at_the_limit(server: Server) -> None:
    server.greets = False
    with pytest.raises(DeadlineError) as caught:
        Session.connect(server.access, SOON)
    assert caught.value.waited_for == f"SSH on 127.0.0.1, port {server.port}"
    assert "The last try ended with: timed out." in caught.value.detail
    assert "console" in caught.value.hint


def test_a_closed_port_is_given_up_at_the_limit_and_the_reason_is_quoted(server: Server) -> None:
    server.close()
    with pytest.raises(DeadlineError) as caught:
        Session.connect(server.access, SOON)
    assert "Connection refused" in caught.value.detail


def test_a_server_that_comes_up_late_is_waited_for(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "_TRY", 0.1)
    server.greets = False
    tries = []

    def check() -> None:
        tries.append(1)
        server.greets = len(tries) > 2

    with Session.connect(server.access, LIMIT, check) as session:
        assert session.run(["true"]).status == 0
    assert len(tries) > 2


def test_a_guest_that_has_died_is_not_waited_for(server: Server) -> None:
    server.greets = False

    def check() -> None:
        raise GuestPanicError("it panicked")

    with pytest.raises(GuestPanicError):
        Session.connect(server.access, LIMIT, check)


def test_a_guest_that_dies_under_a_command_is_noticed(server: Server) -> None:
    begun = threading.Event()

    def check() -> None:
        if begun.is_set():
            raise GuestPanicError("it panicked")

    with Session.connect(server.access, LIMIT, check) as session:
        with pytest.raises(GuestPanicError):
            session.shell("echo begun; sleep 600", limit=LIMIT, stdout=lambda _: begun.set())
        assert not session.alive


def test_a_connection_that_drops_under_a_command_is_lost_and_is_no_status(server: Server, session: Session) -> None:
    threading.Timer(0.2, server.drop.set).start()
    with pytest.raises(GuestUnreachableError, match="was lost while 'sleep 600' ran"):
        session.run(["sleep", "600"], limit=LIMIT)
    with pytest.raises(GuestUnreachableError):
        session.run(["true"])


def test_a_status_that_is_never_sent_is_255_as_with_ssh(server: Server, session: Session) -> None:
    server.sends_status = False
    result = session.shell("echo out", limit=LIMIT)
    assert (result.status, result.stdout) == (255, b"out\n")


def test_a_server_that_does_not_begin_a_command_is_given_up_at_the_limit(server: Server, session: Session) -> None:
    server.answers_requests = False
    with pytest.raises(DeadlineError) as caught:
        session.run(["true"], limit=SOON)
    assert caught.value.waited_for == "'true' to end in the guest"


def test_a_connection_that_drops_under_a_transfer_is_an_error_of_ours(
    server: Server, session: Session, tmp_path: Path
) -> None:
    (tmp_path / "big").write_bytes(os.urandom(BIG))
    server.answer = "cat /dev/zero"
    threading.Timer(0.2, server.cut).start()
    with pytest.raises(GuestUnreachableError):
        transfer.get(session, PurePosixPath("/etc/passwd"), tmp_path / "got")
    with pytest.raises(GuestUnreachableError):
        transfer.put(session, tmp_path / "big", PurePosixPath("/tmp/got"))
    assert [path.name for path in tmp_path.iterdir()] == ["big"]


def claimed(*members: tarfile.TarInfo) -> bytes:
    """Return the tar that a guest sends, with members that it makes up."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(bytes(member.size)))
    return buffer.getvalue()


def member(name: str, kind: bytes, link: str = "", size: int = 0) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.size, made.mode = kind, link, size, 0o755
    return made


def received(server: Server, session: Session, tmp_path: Path, stream: bytes) -> Path:
    """Get what a guest claims to be a folder; return where it came to lie."""
    target = tmp_path / "target"
    target.mkdir()
    (tmp_path / "stream").write_bytes(stream)
    server.answer = f"cat {tmp_path / 'stream'}"
    transfer.get(session, PurePosixPath("/some/folder"), target / "got")
    return target / "got"


FILE, FOLDER, LINK, HARD = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


@pytest.mark.parametrize("name", ["/etc/cron.d/evil", "./top/../../evil", "../evil", "top/none/evil"])
@pytest.mark.parametrize("kind", [FILE, FOLDER, LINK])
def test_a_malicious_name_is_refused_and_nothing_is_left(
    server: Server, session: Session, tmp_path: Path, name: str, kind: bytes
) -> None:
    with pytest.raises(TransferError, match="refused"):
        received(server, session, tmp_path, claimed(member("./top", FOLDER), member(name, kind, "/etc/passwd")))
    assert list((tmp_path / "target").iterdir()) == []


@pytest.mark.parametrize("second", [FILE, FOLDER, LINK, HARD])
@pytest.mark.parametrize("first", [FILE, FOLDER, LINK])
def test_a_name_that_comes_twice_is_never_written_through(
    server: Server, session: Session, tmp_path: Path, first: bytes, second: bytes
) -> None:
    passwd = Path("/etc/passwd").read_bytes()  # where the claimed links lead to
    twice = [member("./top/twice", kind, "/etc/passwd") for kind in (first, second)]
    with pytest.raises(TransferError):
        received(server, session, tmp_path, claimed(member("./top", FOLDER), *twice))
    assert list((tmp_path / "target").iterdir()) == []
    assert Path("/etc/passwd").read_bytes() == passwd


def test_nothing_is_written_below_a_link(server: Server, session: Session, tmp_path: Path) -> None:
    below = member("./top/link/evil", FILE, size=3)
    with pytest.raises(TransferError, match="refused"):
        received(server, session, tmp_path, claimed(member("./top", FOLDER), member("./top/link", LINK, ".."), below))
    assert list((tmp_path / "target").iterdir()) == []


@pytest.mark.parametrize("link", ["/etc/passwd", "../../etc/passwd", "./top/none", "./top/soft", "./top"])
def test_a_hard_link_to_anything_but_a_file_of_the_stream_is_refused(
    server: Server, session: Session, tmp_path: Path, link: str
) -> None:
    members = [member("./top", FOLDER), member("./top/soft", LINK, "/etc/passwd"), member("./top/hard", HARD, link)]
    with pytest.raises(TransferError, match="refused"):
        received(server, session, tmp_path, claimed(*members))
    assert list((tmp_path / "target").iterdir()) == []


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_a_device_is_refused(server: Server, session: Session, tmp_path: Path, kind: bytes) -> None:
    with pytest.raises(TransferError, match="neither a file"):
        received(server, session, tmp_path, claimed(member("./top", FOLDER), member("./top/device", kind)))
    assert list((tmp_path / "target").iterdir()) == []


def test_a_stream_that_ends_too_early_is_refused(server: Server, session: Session, tmp_path: Path) -> None:
    whole = claimed(member("./top", FOLDER), member("./top/file", FILE, size=5000))
    with pytest.raises(TransferError, match=r"ends|end of data"):
        received(server, session, tmp_path, whole[:3000])
    assert list((tmp_path / "target").iterdir()) == []


def test_hard_links_and_links_that_lead_nowhere_come_as_they_are(
    server: Server, session: Session, tmp_path: Path
) -> None:
    members = [
        member("./top", FOLDER),
        member("./top/a", FILE, size=3),
        member("./top/b", HARD, "./top/a"),
        member("./top/c", LINK, "/nowhere"),
    ]
    got = received(server, session, tmp_path, claimed(*members))
    assert (got / "a").stat().st_ino == (got / "b").stat().st_ino
    assert (got / "c").readlink() == Path("/nowhere")


def test_a_tree_without_an_end_is_refused(session: Session, tmp_path: Path) -> None:
    source = tmp_path / "source"
    deep = source
    for _ in range(220):
        deep = deep / "d"
    deep.mkdir(parents=True)
    with pytest.raises(TransferError, match="too deep"):
        transfer.get(session, PurePosixPath(source), tmp_path / "got")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_setuid_bits_stay_in_the_guest(session: Session, tmp_path: Path) -> None:
    (tmp_path / "tool").write_text("")
    (tmp_path / "tool").chmod(0o6755)
    transfer.get(session, PurePosixPath(tmp_path / "tool"), tmp_path / "got")
    assert stat.S_IMODE((tmp_path / "got").stat().st_mode) == 0o755


def test_a_link_that_is_in_the_way_is_replaced_and_not_followed(session: Session, tmp_path: Path) -> None:
    (tmp_path / "source").write_text("new")
    (tmp_path / "precious").write_text("old")
    (tmp_path / "got").symlink_to("precious")
    transfer.get(session, PurePosixPath(tmp_path / "source"), tmp_path / "got")
    assert not (tmp_path / "got").is_symlink()
    assert (tmp_path / "precious").read_text() == "old"
