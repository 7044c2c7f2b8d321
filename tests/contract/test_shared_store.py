"""A shared store on an SSH server, which is one in this process: what is pushed there, and whom we believe."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import paramiko
import pytest
from paramiko.common import AUTH_FAILED, AUTH_SUCCESSFUL, OPEN_SUCCEEDED
from paramiko.sftp import SFTP_OK

from vmimagemanager import Manager
from vmimagemanager.errors import ImageError


class Guard(paramiko.ServerInterface):
    def __init__(self, key: paramiko.PKey) -> None:
        self._key = key

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return AUTH_SUCCESSFUL if key == self._key else AUTH_FAILED

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return OPEN_SUCCEEDED


class Files(paramiko.SFTPServerInterface):
    """The files of this host."""

    def _done(self, deed: Callable[[], object]) -> int:
        try:
            deed()
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno or 0)
        return SFTP_OK

    def list_folder(self, path: str) -> list[paramiko.SFTPAttributes] | int:
        try:
            return [
                paramiko.SFTPAttributes.from_stat(entry.lstat(), filename=entry.name) for entry in Path(path).iterdir()
            ]
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno or 0)

    def stat(self, path: str) -> paramiko.SFTPAttributes | int:
        try:
            return paramiko.SFTPAttributes.from_stat(Path(path).stat())
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno or 0)

    lstat = stat

    def open(self, path: str, flags: int, attr: paramiko.SFTPAttributes) -> paramiko.SFTPHandle | int:
        try:
            descriptor = os.open(path, flags, 0o600)
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno or 0)
        handle = paramiko.SFTPHandle(flags)
        stream = os.fdopen(descriptor, "r+b" if flags & os.O_ACCMODE else "rb")
        handle.readfile = handle.writefile = stream  # type: ignore[attr-defined]  # paramiko's own way
        return handle

    def mkdir(self, path: str, attr: paramiko.SFTPAttributes) -> int:
        return self._done(lambda: Path(path).mkdir())

    def remove(self, path: str) -> int:
        return self._done(lambda: Path(path).unlink())

    def posix_rename(self, oldpath: str, newpath: str) -> int:
        return self._done(lambda: Path(oldpath).replace(newpath))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, paramiko.PKey]]:
    """An SSH server on the loopback, its port and its host key; our home has a key that may log in."""
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    login, host = paramiko.RSAKey.generate(2048), paramiko.RSAKey.generate(2048)
    login.write_private_key_file(str(home / ".ssh/id_rsa"))
    listening = socket.create_server(("127.0.0.1", 0))
    transports: list[paramiko.Transport] = []

    def serve() -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            transport = paramiko.Transport(client)
            transports.append(transport)
            transport.add_server_key(host)
            transport.set_subsystem_handler("sftp", paramiko.SFTPServer, Files)
            transport.start_server(server=Guard(login), event=threading.Event())

    thread = threading.Thread(target=serve)
    thread.start()
    yield listening.getsockname()[1], host
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join()
    for transport in transports:
        transport.close()


def test_an_image_travels_over_ssh_to_a_known_host_alone(
    manager: Manager, server: tuple[int, paramiko.PKey], tmp_path: Path
) -> None:
    port, host = server
    url = f"ssh://somebody@127.0.0.1:{port}{tmp_path}/shared"
    with pytest.raises(ImageError, match="not found in known_hosts"):
        manager.push_image("tiny", url)
    assert not (tmp_path / "shared").exists()
    known = tmp_path / "home/.ssh/known_hosts"
    known.write_text(f"[127.0.0.1]:{port} {host.get_name()} {host.get_base64()}\n")
    assert manager.push_image("tiny", url).address == "tiny:1"
    assert manager.push_image("tiny", url).was_there
    with Manager.open(uri="test:///default", state_directory=tmp_path / "far") as far:
        image = far.pull_image("tiny", url).image
        far.images.verify(image)
        assert image.digests == manager.images.get("tiny").digests
        assert [one.address for one in far.shared_images(url)] == ["tiny:1"]
