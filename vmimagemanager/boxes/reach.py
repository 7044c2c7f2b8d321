"""Reaching the guest of a running box: its agent, its SSH, and whether there is still hope."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from vmimagemanager import keys
from vmimagemanager.boxes.record import BoxRecord
from vmimagemanager.boxes.site import Site
from vmimagemanager.config import Channel
from vmimagemanager.deadline import Deadline, timeout_factor
from vmimagemanager.durable import translate_os_errors
from vmimagemanager.errors import BoxError, GuestPanicError, GuestUnreachableError, SpaceError
from vmimagemanager.guest.agent import Agent
from vmimagemanager.guest.console import last_lines
from vmimagemanager.guest.result import Result, Runner
from vmimagemanager.guest.session import Access, Session
from vmimagemanager.hypervisor.domain import Domain, DomainState
from vmimagemanager.state import BoxFolder

LOGIN, HOST = "login", "host"
_PANIC = b"Kernel panic - not syncing"
_QUOTED_LINES = 15
_LOG_TAIL = 64 << 10
_ADDRESS_LIMIT = timedelta(seconds=15)


def running_domain(site: Site, record: BoxRecord) -> Domain:
    """Return the box's domain, or raise BoxError that says how to start it."""
    domain = site.domain(record.name)
    if domain is None:
        raise BoxError(f"The box '{record.name}' is off.", hint=f"vmimagemanager up {record.name}")
    require_running(domain, record)
    return domain


def require_running(domain: Domain | None, record: BoxRecord) -> None:
    """Raise BoxError, or SpaceError, when the box's guest is paused; one that is off is not."""
    if domain is not None and domain.state() is DomainState.PAUSED:
        refuse_paused_for_space(domain)
        raise BoxError(f"The box '{record.name}' is paused.", hint=f"vmimagemanager up {record.name}")


def refuse_paused_for_space(domain: Domain) -> None:
    """Raise SpaceError when QEMU paused the guest because a write to its disk failed."""
    if domain.paused_for_space():
        raise SpaceError(
            f"The guest of '{domain.name}' is paused: the host's disk is full.",
            hint=f"Free some space, then go on: vmimagemanager up {domain.name}",
        )


def check_alive(domain: Domain, folder: BoxFolder) -> None:
    """Raise GuestPanicError when the guest has stopped or panicked, SpaceError when the disk under it is full."""
    state = domain.state()
    if state is DomainState.RUNNING:
        if _PANIC not in _console_bytes(folder):
            return
        what = "panicked"
    elif state is DomainState.PAUSED:
        refuse_paused_for_space(domain)
        return
    else:
        what = "stopped by itself" if state is DomainState.OFF else "crashed"
    raise GuestPanicError(
        f"The guest of '{folder.name}' {what} while it was waited for.",
        hint=f"vmimagemanager logs --console {folder.name}",
        detail=console_tail(folder),
    )


def console_tail(folder: BoxFolder) -> str:
    """Return the last lines that the guest printed on its serial console; after a panic, those around its own line."""
    output = _console_bytes(folder)
    before, panic, after = output.partition(_PANIC)
    if not panic:
        return last_lines(output, _QUOTED_LINES)
    reason, _, trace = after.partition(b"\n")
    first_lines = last_lines(trace, _LOG_TAIL).splitlines()[: _QUOTED_LINES // 2]
    return "\n".join([last_lines(before + panic + reason, _QUOTED_LINES // 2 + 1), *first_lines])


def access(domain: Domain, record: BoxRecord, folder: BoxFolder, *, user: str = "") -> Access:
    """Return how to reach the guest by SSH, as ``user`` or whom the box is used as.

    Raises GuestUnreachableError when it has no network or no address.
    """
    if record.settings.network == "none":
        raise GuestUnreachableError(
            f"The box '{record.name}' has no network, so no SSH.", hint="Define it with a network: --network user"
        )
    if record.settings.network == "user":
        port = domain.monitor.forwarded_ssh()
        if port is None:
            port = attach(domain, record)
        host = "127.0.0.1"
    else:
        found = domain.addresses(record.mac)
        if not found:
            raise GuestUnreachableError(
                f"The guest of '{record.name}' has no address in the network '{record.settings.network}'.",
                hint="Does that network have DHCP? 'vmimagemanager doctor' checks libvirt's networks.",
            )
        host, port = found[0], 22
    return Access(
        host=host,
        port=port or 22,
        user=user or record.user,
        key=folder.keys / LOGIN / keys.PRIVATE,
        host_key=host_key(folder),
    )


def ssh_command(domain: Domain, record: BoxRecord, folder: BoxFolder) -> tuple[str, ...]:
    """Return the words that run OpenSSH's client on the guest, with the box's key and host key."""
    to = access(domain, record, folder)
    options = {
        "UserKnownHostsFile": str(folder.keys / "known_hosts"),
        "HostKeyAlias": keys.host_alias(record.name),
        "StrictHostKeyChecking": "yes",
        "IdentitiesOnly": "yes",
        "LogLevel": "ERROR",
    }
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    return ("ssh", "-F", "none", "-i", str(to.key), *words, "-p", str(to.port), f"{to.user}@{to.host}")


def attach(domain: Domain, record: BoxRecord) -> int | None:
    """Forward a port of 127.0.0.1 to a user-mode network's guest; return it, or None for another network."""
    if record.settings.network != "user":
        return None
    device = domain.definition(live=True).user_network_device
    return None if device is None else domain.monitor.forward_ssh(device, record.ssh_port)


def host_key(folder: BoxFolder) -> str:
    """Return the box's own public host key."""
    path = folder.keys / HOST / keys.PUBLIC
    with translate_os_errors("read", path):
        return path.read_text().strip()


def runner(domain: Domain, record: BoxRecord, folder: BoxFolder) -> Runner:
    """Return what runs programs in the guest: its agent, or SSH where the box has none."""
    return agent(domain) if record.settings.channel is Channel.AGENT else _OverSsh(domain, record, folder)


@dataclass(frozen=True, slots=True)
class _OverSsh:
    """Runs each program over an SSH connection of its own."""

    domain: Domain
    record: BoxRecord
    folder: BoxFolder

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        limit: timedelta | Deadline,
        check: Callable[[], None] = lambda: None,
    ) -> Result:
        deadline = limit if isinstance(limit, Deadline) else Deadline(limit)
        check()
        user = "root" if self.record.seed else ""  # a seed lets root in, whoever else uses the box
        with open_session(self.domain, self.record, self.folder, limit=_left(deadline), user=user) as session:
            return session.run(argv, stdin=stdin, limit=_left(deadline))


def _left(deadline: Deadline) -> timedelta:
    return timedelta(seconds=max(1.0, deadline.remaining / timeout_factor()))  # what takes it multiplies it again


def open_session(
    domain: Domain, record: BoxRecord, folder: BoxFolder, *, limit: timedelta | None = None, user: str = ""
) -> Session:
    """Connect to the guest by SSH, within ``limit`` or the box's ``ssh-timeout``."""
    limit = limit or record.settings.ssh_timeout
    return Session.connect(access(domain, record, folder, user=user), limit, lambda: check_alive(domain, folder))


def agent(domain: Domain) -> Agent:
    return Agent(domain)


def _console_bytes(folder: BoxFolder) -> bytes:
    try:
        with folder.console_log.open("rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - _LOG_TAIL))
            return stream.read()
    except OSError:  # nothing was printed yet, or virtlogd keeps it to itself
        return b""
