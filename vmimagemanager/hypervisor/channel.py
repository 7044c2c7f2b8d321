"""A channel between host and guest (virtio-serial), through libvirt: a line there, a line back."""

from __future__ import annotations

from collections.abc import Callable

import libvirt

from vmimagemanager.deadline import Deadline
from vmimagemanager.errors import GuestError, GuestUnreachableError
from vmimagemanager.hypervisor.domainxml import DomainXml
from vmimagemanager.hypervisor.translate import translated

_MOST = 4096  # bytes: a guest that writes more has nothing to say to us
_WOULD_BLOCK = -2  # of virStreamRecv
_EVERY = 0.002  # seconds


class Channel:
    """The host's end of one channel of a running domain."""

    def __init__(self, domain: libvirt.virDomain, name: str) -> None:
        self._domain = domain
        self.name = name

    def listens(self) -> bool:
        """Tell whether a program in the guest has the channel open."""
        with translated(f"look at the channel '{self.name}'"):
            text = self._domain.XMLDesc()
        return DomainXml.parse(text, source="the domain").channel_is_open(self.name)

    def ask(self, line: str, answer: str, deadline: Deadline, check: Callable[[], None]) -> str:
        """Send a line and return the guest's line that begins with ``answer``; others came too late for who asked them.

        ``check`` is called while the answer is awaited and raises when there is no more hope.  Raises HypervisorError
        when the domain has no such channel, DeadlineError when no answer comes, GuestError when there is too much.
        """
        with translated(f"open the channel '{self.name}'"):
            stream = self._domain.connect().newStream(libvirt.VIR_STREAM_NONBLOCK)
            self._domain.openChannel(self.name, stream, libvirt.VIR_DOMAIN_CHANNEL_FORCE)
        try:
            with translated(f"write to the channel '{self.name}'"):
                stream.send(line.encode() + b"\n")
            said = bytearray()

            def answered() -> str | None:
                check()  # a call to libvirt, which also brings what the stream has received
                with translated(f"read from the channel '{self.name}'"):
                    chunk = stream.recv(_MOST)
                if chunk == b"":
                    raise GuestUnreachableError(f"The channel '{self.name}' was closed before the guest answered.")
                if chunk != _WOULD_BLOCK:
                    said.extend(chunk)
                if len(said) > _MOST:
                    raise GuestError(f"The guest says too much on the channel '{self.name}'.")
                lines = said.decode("ascii", "replace").split("\n")[:-1]
                return next((one for one in lines if one.startswith(answer)), None)

            return deadline.wait_for(f"an answer on the channel '{self.name}'", answered, every=_EVERY)
        finally:
            _close(stream)


def _close(stream: libvirt.virStream) -> None:
    try:
        stream.abort()
    except libvirt.libvirtError:  # it is closed
        return
