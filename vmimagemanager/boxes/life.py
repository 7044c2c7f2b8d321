"""Up, down, kill and reset."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

from vmimagemanager import disks, keys, snapshots
from vmimagemanager.boxes import making, network, seeding
from vmimagemanager.boxes.define import ensure_defined
from vmimagemanager.boxes.reach import HOST, LOGIN, agent, attach, check_alive, console_tail, host_key, runner
from vmimagemanager.boxes.record import BoxRecord
from vmimagemanager.boxes.site import Site
from vmimagemanager.config import Channel
from vmimagemanager.deadline import Deadline, Stopwatch
from vmimagemanager.durable import translate_os_errors
from vmimagemanager.errors import BoxError, DeadlineError, GuestError, HypervisorError, ImageError
from vmimagemanager.guest.identity import Identity, give_identity
from vmimagemanager.guest.readiness import Readiness, wait_until_ready
from vmimagemanager.guest.repair import CloneIdentity, Proof, new_token, plant_and_repair
from vmimagemanager.guest.result import Runner
from vmimagemanager.hypervisor import launch
from vmimagemanager.hypervisor.domain import Domain, DomainState
from vmimagemanager.images import chain
from vmimagemanager.state import BoxFolder

_IDENTITY_LIMIT = timedelta(seconds=20)
_REPAIR_LIMIT = timedelta(seconds=15)


@dataclass(frozen=True, slots=True, kw_only=True)
class Up:
    """A box that is up: whether it had to be started, whether it was its first boot, and the channel that proved it.

    ``system`` is systemd's word for the guest's state (``running``, ``degraded``), ``boot_id`` its kernel's.
    """

    started: bool
    first_boot: bool
    channel: Channel
    system: str
    boot_id: str
    phases: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Down:
    """A box that is down: whether it had been up, and whether it had to be forced at the time limit."""

    was_up: bool
    forced: bool
    seconds: float


def up(site: Site, record: BoxRecord) -> Up:
    """Start a box unless it runs, and return when a command has run in its guest, or at once where none can.

    At the first boot the guest gets its own key, host key and machine-id, through the agent or a seed.  Raises
    DeadlineError or GuestPanicError with the last console lines; the guest is left as it is, for `console` to look at.
    """
    folder = site.state.box(record.name)
    ensure_defined(site, record)
    watch = Stopwatch()
    domain = site.domain(record.name)
    snapshots.settle(subject(site, record), domain)
    domain = woken(site.domain(record.name))
    started = domain is None
    if domain is None:
        domain = _boot(site, record, folder)
        watch.lap("start")
    if record.settings.channel is Channel.NONE:
        return Up(started=started, first_boot=False, channel=Channel.NONE, system="", boot_id="", phases=watch.phases)
    readiness = _wait(domain, record, folder)
    watch.lap("boot")
    first_boot = _make_ours(domain, record, folder, readiness)
    watch.lap("identity" if first_boot else "waiter")
    return Up(
        started=started,
        first_boot=first_boot,
        channel=record.settings.channel,
        system=readiness.system,
        boot_id=readiness.boot_id,
        phases=watch.phases,
    )


def down(site: Site, record: BoxRecord) -> Down:
    """Shut a box down cleanly, and by force when it has not ended within its ``down-timeout``."""
    domain = site.domain(record.name)
    if domain is None:
        return Down(was_up=False, forced=False, seconds=0.0)
    watch = Stopwatch()
    forced = not _shut_down(domain, Deadline(record.settings.down_timeout))
    if forced:
        domain.end()
    site.state.box(record.name).ram.unlink(missing_ok=True)
    return Down(was_up=True, forced=forced, seconds=watch.total)


def kill(site: Site, record: BoxRecord) -> bool:
    """Power a box off at once; return whether it ran."""
    domain = site.domain(record.name)
    if domain is not None:
        domain.end()
    site.state.box(record.name).ram.unlink(missing_ok=True)
    return domain is not None


def reset(site: Site, record: BoxRecord) -> None:
    """Throw a box's disk and memory away: it is off, and back to its image; its snapshots stay."""
    for base in (Path(record.base), *(one.path for one in record.disks.values())):
        if not base.exists():
            raise BoxError(
                f"The box '{record.name}' cannot be reset: its base '{base}' is gone.", hint="vmimagemanager image list"
            )
    kill(site, record)
    folder = site.state.box(record.name)
    snapshots.stand_on(site.hypervisor, folder, making.bare(record))
    snapshots.sweep(folder)


def require_bases(site: Site, *files: Path) -> None:
    """Raise ImageError when a file of the image store that one of ``files`` is or stands on was changed."""
    site.images.require_intact(link for path in files for link in chain.walk(path))


def subject(site: Site, record: BoxRecord) -> snapshots.Subject:
    """Return the box as the snapshot engines see it."""
    folder = site.state.box(record.name)

    def plant(domain: Domain, token: str) -> Proof:
        return prove(domain, record, folder, token)

    def boot() -> Domain:
        domain = _boot(site, record, folder)
        if record.settings.channel is not Channel.NONE:
            _make_ours(domain, record, folder, _wait(domain, record, folder))
        return domain

    def shut_down(domain: Domain) -> None:
        if not _shut_down(domain, Deadline(record.settings.down_timeout)):
            raise DeadlineError(
                f"The guest of '{record.name}' did not shut down, so its disk cannot be kept cleanly.",
                hint=f"vmimagemanager kill {record.name}",
                waited_for="the guest to shut down",
            )
        folder.ram.unlink(missing_ok=True)

    return snapshots.Subject(
        hypervisor=site.hypervisor,
        folder=folder,
        engines=record.settings.engines,
        plant=None if record.settings.channel is Channel.NONE else plant,
        boot=boot,
        shut_down=shut_down,
        attach=lambda domain: attach(domain, record),
        bases=record.disks,
    )


def _boot(site: Site, record: BoxRecord, folder: BoxFolder) -> Domain:
    definition = ensure_defined(site, record)
    seeding.ensure(site.hypervisor, record, folder)
    for overlay in map(folder.overlay_of, folder.disks):
        if disks.detect_format(overlay) is None:
            raise ImageError(
                f"The disk '{overlay}' is damaged: it is not a qcow2 image any more.",
                hint=f"Restore a snapshot of the box, or start from its image: vmimagemanager reset {record.name}",
            )
    require_bases(site, *map(folder.overlay_of, folder.disks), *definition.boot_files)
    with translate_os_errors("remove", folder.console_log):
        folder.console_log.unlink(missing_ok=True)
    ram = None
    if launch.ram_may_be_a_file(site.hypervisor):
        ram = launch.new_ram_file(site.hypervisor, folder.ram, definition)
    try:
        domain = launch.boot(site.hypervisor, definition, ram)
    except BaseException:
        folder.ram.unlink(missing_ok=True)
        raise
    attach(domain, record)
    return domain


def woken(domain: Domain | None) -> Domain | None:
    """Resume a guest that is paused; one that waits for a memory that will never come, or crashed, is ended."""
    if domain is None or domain.state() is DomainState.RUNNING:
        return domain
    if domain.state() is DomainState.PAUSED:
        try:
            if domain.monitor.command("query-status")["status"] != "inmigrate":
                domain.resume()
                return domain
        except HypervisorError:
            domain.end()
            return None
    domain.end()
    return None


def _wait(domain: Domain, record: BoxRecord, folder: BoxFolder) -> Readiness:
    deadline = Deadline(record.settings.boot_timeout)
    alive = partial(check_alive, domain, folder)
    try:
        if record.settings.channel is Channel.AGENT:
            agent(domain).wait(deadline, alive)
        return wait_until_ready(runner(domain, record, folder), deadline, alive)
    except DeadlineError as error:
        check_alive(domain, folder)
        raise DeadlineError(
            f"The guest of '{folder.name}' was not ready after {error.seconds:.0f} s: waited for {error.waited_for}.",
            hint=f"Look at it: vmimagemanager console {folder.name}; or give it longer: --boot-timeout 5m",
            detail=console_tail(folder),
            waited_for=error.waited_for,
            seconds=error.seconds,
        ) from error


def _make_ours(domain: Domain, record: BoxRecord, folder: BoxFolder, readiness: Readiness) -> bool:
    """Give a guest that boots for the first time its identity, and any its waiter; return whether it was the first."""
    # Whom SSH lets in has an identity already, but for the machine-id, which no seed can give.
    is_ours = readiness.machine_id == record.machine_id
    first_boot = not is_ours and (record.settings.channel is Channel.AGENT or record.seed != "")
    if first_boot and record.seed:
        own = CloneIdentity(host_name=record.host_name, machine_id=record.machine_id)
        if prove(domain, record, folder, new_token(), identity=own).identity != "yes":
            raise GuestError(f"The guest of '{record.name}' did not take its own machine-id.")
    elif first_boot:
        identify(domain, record, folder)
    if not domain.waiter.listens():
        prove(domain, record, folder, new_token())
        if record.lan is not None:
            network.join(domain, folder, record.lan)
    return first_boot


def prove(
    domain: Domain, record: BoxRecord, folder: BoxFolder, token: str, *, identity: CloneIdentity | None = None
) -> Proof:
    """Read the token in a guest's memory and leave ``token`` in its place; repair the guest (see `guest.repair`)."""
    alive = partial(check_alive, domain, folder)

    def ready() -> Runner:
        if record.settings.channel is Channel.AGENT:
            agent(domain).wait(Deadline(_REPAIR_LIMIT), alive, detail=lambda: console_tail(folder))
        return runner(domain, record, folder)

    return plant_and_repair(domain.waiter, ready, token, _REPAIR_LIMIT, check=alive, identity=identity)


def identify(domain: Domain, record: BoxRecord, folder: BoxFolder) -> None:
    """Give a guest what is the box's own: the key that opens it, host key, host name and machine-id."""
    private = folder.keys / HOST / keys.PRIVATE
    with translate_os_errors("read", private):
        content = private.read_bytes()
    identity = Identity(
        host_name=record.host_name,
        user=record.user,
        machine_id=record.machine_id,
        authorized_key=keys.load(folder.keys / LOGIN).public,
        host_key=host_key(folder),
        private_host_key=content,
    )
    give_identity(agent(domain), identity, _IDENTITY_LIMIT)


def _shut_down(domain: Domain, deadline: Deadline) -> bool:
    domain.ask_to_shut_down()
    try:
        deadline.wait_for("the guest to shut down", lambda: not domain.active)
    except DeadlineError:
        return False
    return True
