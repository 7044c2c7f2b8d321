"""The QEMU guest agent: the fast channel, which needs neither a network nor a key.

The protocol is QEMU's (docs/interop/qemu-ga-ref): JSON commands, binary data in base64.
"""

from __future__ import annotations

import base64
import binascii
import json
import shlex
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Protocol

from vmimagemanager.config import Channel
from vmimagemanager.deadline import Deadline, Stopwatch, emulation_factor, pause
from vmimagemanager.errors import GuestError, GuestUnreachableError
from vmimagemanager.guest.result import Result

_ANSWER = timedelta(seconds=5)
_POLL = 0.01
# Each question takes an emulated guest 7 ms of its processor, which the program that is asked for lacks.  It starts in
# 0.1 s there, and in a fifth of that elsewhere.
_START = 0.02


class AgentTransport(Protocol):
    """Something that carries one JSON command to the agent and its answer back."""

    def agent_command(self, text: str, limit: timedelta) -> str: ...


class Agent:
    """The agent of one running guest.

    Raises GuestUnreachableError when it does not answer, GuestError when it refuses or its answer makes no sense.
    """

    def __init__(self, transport: AgentTransport) -> None:
        self._transport = transport

    def command(self, name: str, **arguments: object) -> Any:  # noqa: ANN401 - JSON
        """Run one agent command and return its ``return`` value."""
        text = json.dumps({"execute": name, "arguments": arguments})
        answer = self._transport.agent_command(text, _ANSWER)
        try:
            return json.loads(answer)["return"]
        except (ValueError, KeyError, TypeError) as error:
            raise GuestError(f"The guest agent answered '{name}' with something that makes no sense.") from error

    def wait(self, deadline: Deadline, check: Callable[[], None], *, detail: Callable[[], str] | None = None) -> None:
        """Wait until the agent answers; ``check`` is called before each try and raises when there is no more hope."""

        def answers() -> bool | None:
            check()
            try:
                self.command("guest-ping")
            except GuestUnreachableError:
                return None
            return True

        deadline.wait_for(
            "the guest agent to answer",
            answers,
            every=0.02,
            hint="Does the image run qemu-guest-agent? 'vmimagemanager console' shows the guest's screen.",
            detail=detail,
        )

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        limit: timedelta | Deadline,
        check: Callable[[], None] = lambda: None,
    ) -> Result:
        """Run a program in the guest, as root, to its end; each output stream may have 16 MiB.

        An agent that is silent for a while, as that of a busy guest, is asked again; ``check`` is called each time and
        raises when there is no more hope.  Raises DeadlineError when ``limit`` is over; the program may then still run.
        """
        deadline = limit if isinstance(limit, Deadline) else Deadline(limit)
        watch = Stopwatch()
        shown = shlex.join(argv)
        arguments: dict[str, object] = {"path": argv[0], "arg": list(argv[1:]), "capture-output": True}
        if stdin:
            arguments["input-data"] = base64.b64encode(stdin).decode()
        process = int(self.command("guest-exec", **arguments)["pid"])

        def ended() -> dict[str, Any] | None:
            check()
            try:
                status = self.command("guest-exec-status", pid=process)
            except GuestUnreachableError:
                return None
            return status if status.get("exited") else None

        pause(_START * emulation_factor())
        status = deadline.wait_for(f"'{shown[:80]}' to end in the guest", ended, every=_POLL)
        try:
            return Result(
                command=shown,
                status=int(status.get("exitcode", 255)),
                stdout=base64.b64decode(status.get("out-data", ""), validate=True),
                stderr=base64.b64decode(status.get("err-data", ""), validate=True),
                seconds=watch.total,
                channel=Channel.AGENT,
            )
        except (binascii.Error, TypeError, ValueError) as error:
            raise GuestError("The guest agent returned output that is not base64.") from error
