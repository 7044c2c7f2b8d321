"""How a guest is asked what is in it: as root, or by sudo that must not ask for a password."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from vmimagemanager.boxes.probe import ask
from vmimagemanager.config import Channel
from vmimagemanager.errors import GuestError
from vmimagemanager.guest.result import Result


class Answering:
    """A connection that answers every command alike, and keeps its words."""

    def __init__(self, status: int = 0, stderr: bytes = b"") -> None:
        self.words: list[str] = []
        self._result = Result(
            command="sh -s", status=status, stdout=b"answer", stderr=stderr, seconds=0.1, channel=Channel.SSH
        )

    def run(self, argv: Sequence[str], **more: object) -> Result:
        self.words = list(argv)
        return self._result


def asked(user: str, connection: Answering) -> bytes:
    record: Any = SimpleNamespace(name="web", user=user, settings=SimpleNamespace(network="user"))
    nowhere: Any = None
    opened: Any = lambda: connection  # noqa: E731
    return ask(nowhere, record, "echo", opened)


def test_root_is_asked_directly_and_others_by_sudo() -> None:
    root, other = Answering(), Answering()
    assert asked("root", root) == b"answer"
    assert asked("zoe", other) == b"answer"
    assert root.words == ["sh", "-s"]
    assert other.words == ["sudo", "-n", "--", "sh", "-s"]


@pytest.mark.parametrize(
    ("status", "said"), [(1, b"sudo: a password is required\n"), (127, b"sh: 1: sudo: not found\n"), (127, b"")]
)
def test_sudo_that_asks_for_a_password_or_is_not_there_is_named_with_what_helps(status: int, said: bytes) -> None:
    with pytest.raises(GuestError, match=f"'web' cannot be listed: the probe ended with status {status}") as caught:
        asked("zoe", Answering(status, said))
    assert "sudo without a password" in caught.value.hint
    assert caught.value.detail == said.decode().strip()


def test_a_probe_of_root_that_fails_says_what_the_guest_said() -> None:
    with pytest.raises(GuestError, match="status 2") as caught:
        asked("root", Answering(2, b"sh: broken\n"))
    assert (caught.value.hint, caught.value.detail) == ("", "sh: broken")
