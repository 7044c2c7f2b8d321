"""What users hold: one box."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

from vmimagemanager import names
from vmimagemanager.config import BoxSettings, Moment
from vmimagemanager.durable import translate_os_errors
from vmimagemanager.errors import BoxError, BoxNotFoundError, StateError, UsageError
from vmimagemanager.leases import Hold, Lease, Leases, owner
from vmimagemanager.progress import Progress, silent

if TYPE_CHECKING:
    from vmimagemanager.boxes.define import Changed
    from vmimagemanager.boxes.exporting import Exported
    from vmimagemanager.boxes.life import Down, Up
    from vmimagemanager.boxes.operations import Entry, Operation
    from vmimagemanager.boxes.record import BoxRecord
    from vmimagemanager.boxes.site import Site
    from vmimagemanager.boxes.status import Status
    from vmimagemanager.boxes.storing import Stored
    from vmimagemanager.forks import Fork
    from vmimagemanager.guest.inventory import Inventory
    from vmimagemanager.guest.result import Result
    from vmimagemanager.guest.session import Session
    from vmimagemanager.hypervisor.domain import Domain
    from vmimagemanager.images import Image
    from vmimagemanager.images.archives import Archive
    from vmimagemanager.snapshots import Restored, Snapshot, Taken
    from vmimagemanager.trap.block import Trap


class Box:
    """One box; a context manager that ends its SSH connection and, where it came from a lease, the lease.

    Each operation leases the box for its own time, unless the box itself came from `Manager.lease`.  Any of them raises
    LeaseError when somebody else has the box, and HypervisorError when libvirt refuses.
    """

    def __init__(
        self, site: Site, name: str, *, lease: Lease | None = None, wait: timedelta, hooks: bool = True
    ) -> None:
        self.name = names.box_name(name)
        self.hooks = hooks
        self._site = site
        self._leases = Leases(site.state)
        self._lease = lease
        self._wait = wait
        self._session: Session | None = None
        self._borrowed = False
        self.notice: Callable[[str], None] | None = None

    # -- its life --------------------------------------------------------------------------------------------------

    def up(self) -> Up:
        """Start the box and return when a command has run in its guest; one that is up already is left as it is."""
        from vmimagemanager.boxes import life

        with self._operation("up") as (record, entry):
            result = life.up(self._site, record)
            entry.phases |= result.phases
            entry.facts |= {"started": result.started, "first-boot": result.first_boot, "channel": result.channel.value}
            if result.started:
                self._lay_inserts(record, entry)
                self._run_hooks(record, Moment.AFTER_UP)
            return result

    def down(self) -> Down:
        """Shut the box down cleanly, and by force at its time limit; the result says which."""
        from vmimagemanager.boxes import life

        with self._operation("down") as (record, entry):
            if self._site.domain(self.name) is not None:
                self._run_hooks(record, Moment.BEFORE_DOWN)
            self.disconnect()
            result = life.down(self._site, record)
            entry.facts["forced"] = result.forced
            return result

    def kill(self) -> bool:
        """Power the box off at once; return whether it ran."""
        from vmimagemanager.boxes import life

        with self._operation("kill") as (record, _):
            self.disconnect()
            return life.kill(self._site, record)

    def reset(self) -> None:
        """Throw disk and memory away: the box is off, and back to its image.  Snapshots stay."""
        from vmimagemanager.boxes import life

        with self._operation("reset") as (record, _):
            self.disconnect()
            life.reset(self._site, record)

    def update(self, settings: BoxSettings) -> Changed:
        """Apply changed settings; what a running guest cannot take waits for its next start or reset."""
        from vmimagemanager.boxes import define

        with self._operation("define --update") as (record, entry):
            changed = define.update(self._site, record, settings)
            entry.facts["changed"] = sorted(changed.keys)
            return changed

    def update_image(self, *, reset: bool = False) -> Changed:
        """Let the box go to the newest generation of its image: at its next reset, or with ``reset`` at once.

        Its snapshots stay what they are.  Raises ConfigError for a box that is defined with a certain generation.
        """
        from vmimagemanager.boxes import define, life

        with self._operation("update") as (record, entry):
            changed = define.to_newest(self._site, record)
            entry.facts["changed"] = sorted(changed.keys)
            if not reset or not changed.keys:
                return changed
            self.disconnect()
            life.reset(self._site, self._record())
            return replace(changed, waits_for="")

    def store(
        self,
        image: str,
        *,
        disk_format: str = "qcow2",
        snapshot: str | None = None,
        description: str = "",
        progress: Progress = silent,
    ) -> Stored:
        """Make the box's disk a new generation of an image: that of a snapshot, or as it is now.

        A guest that runs goes on running: its file systems are frozen for a moment, and its SSH sessions end.  What is
        stored is an overlay on the box's own image ("qcow2"), or stands alone ("raw").  The image holds what the disk
        holds, the keys that open the box included; new boxes of it get keys and a name of their own at their first
        boot.

        Raises BoxError for a guest that runs and cannot be asked to write out what it has in memory, SnapshotError,
        ImageError, SpaceError; no generation is left then.
        """
        from vmimagemanager.boxes import storing

        with self._operation("store") as (record, entry):
            if snapshot is None:
                self.disconnect()
            wanted = storing.Wanted(image=image, disk_format=disk_format, snapshot=snapshot, description=description)
            stored = storing.store(self._site, record, self._settled(record), wanted, progress=progress)
            entry.phases |= stored.phases
            entry.facts |= {"image": stored.image.address, "snapshot": snapshot or ""}
            return stored

    def undefine(self, *, force: bool = False) -> None:
        """Remove the box with its disk, keys and snapshots; a running one only by ``force``.

        This works when the box's record is damaged, too.  Raises BoxError that names its clones, if it has any.
        """
        from vmimagemanager.boxes import define, fork, operations

        with self._leased(), operations.logged(self._site.state.box(self.name), "undefine"):
            fork.refuse_clones(self._site, self.name)
            self.disconnect()
            define.undefine(self._site, self.name, force=force)

    # -- its snapshots ---------------------------------------------------------------------------------------------

    def snapshot(self, name: str, *, description: str = "") -> Taken:
        """Take a snapshot with the best engine that fits; a running box goes on running, its SSH sessions end."""
        from vmimagemanager import snapshots
        from vmimagemanager.boxes import life, reach
        from vmimagemanager.guest.repair import new_token

        names.snapshot_name(name)
        with self._operation("snapshot") as (record, entry):
            subject, domain = life.subject(self._site, record), self._settled(record)
            reach.require_running(domain, record)
            if domain is not None:
                snapshots.require_engine(subject, domain)
                self._run_hooks(record, Moment.BEFORE_SNAPSHOT)
            self.disconnect()
            taken = snapshots.take(subject, domain, name, token=new_token(), owner=owner(), description=description)
            entry.phases |= taken.phases
            entry.facts |= {"snapshot": name, "engine": taken.engine.value}
            if domain is not None:
                self._run_hooks(record, Moment.AFTER_SNAPSHOT)
            return taken

    def restore(self, name: str, *, disk_only: bool = False) -> Restored:
        """Put the box back to a snapshot; return when the guest is proven to be it, and its clock is right again.

        With ``disk_only`` its memory is left alone, and the guest booted from its disk.  Raises SnapshotError, before
        anything is stopped, when the memory was altered or cannot be brought back on this host.
        """
        from vmimagemanager import snapshots
        from vmimagemanager.boxes import life
        from vmimagemanager.guest.repair import new_token

        names.snapshot_name(name)
        with self._operation("restore") as (record, entry):
            self.disconnect()
            domain = self._settled(record)
            folder = self._site.state.box(self.name)
            life.require_bases(self._site, folder.layer(snapshots.find(folder, name).layer))
            subject = life.subject(self._site, record)
            restored = snapshots.restore(subject, domain, name, next_token=new_token(), disk_only=disk_only)
            entry.phases |= restored.phases
            entry.facts |= {"snapshot": name, "engine": restored.engine.value, "proven": restored.proven}
            if restored.running:
                self._lay_inserts(record, entry)
                self._run_hooks(record, Moment.AFTER_RESTORE)
            return restored

    def snapshots(self) -> tuple[Snapshot, ...]:
        """Return the box's snapshots, each before those that stand on it, and those of one parent by their age."""
        from vmimagemanager import snapshots

        self._record()
        return snapshots.tree(self._site.state.box(self.name))

    def remove_snapshot(self, name: str) -> None:
        """Remove a snapshot; the box and other snapshots that stand on its disk keep what they need of it.

        Raises BoxError that names its clones, if it has any.
        """
        from vmimagemanager import snapshots
        from vmimagemanager.boxes import fork

        names.snapshot_name(name)
        with self._operation("snapshot-remove") as (record, entry):
            entry.facts["snapshot"] = name
            fork.refuse_clones(self._site, self.name, name)
            folder = self._site.state.box(record.name)
            if folder.standing.exists():  # an interrupted restore needs the snapshot to be ended
                self._settled(record)
            snapshots.remove(folder, name)

    def export_snapshot(self, name: str, target: str | Path, *, progress: Progress = silent) -> Exported:
        """Write a snapshot to the new file ``target``, for `Manager.import_snapshot`; the box goes on running.

        The archive holds the guest's memory and the keys that open the box, hence every secret in them: it is readable
        by its owner alone, and that is how it has to travel.  Raises SnapshotError, StateError when there is such a
        file already, and SpaceError; no archive is left then.
        """
        from vmimagemanager.boxes import exporting

        names.snapshot_name(name)
        with self._operation("snapshot-export") as (record, entry):
            exported = exporting.export(self._site, record, name, Path(target).absolute(), progress=progress)
            entry.facts |= {"snapshot": name, "file": str(exported.path), "bytes": exported.size.bytes}
            return exported

    def archive(
        self,
        name: str,
        *,
        file_format: str = "tar.zst",
        snapshot: str | None = None,
        description: str = "",
        progress: Progress = silent,
    ) -> Archive:
        """Archive the files of the box's root file system as a new generation of ``name``, or those of a snapshot.

        A guest that runs goes on running: its file systems are frozen for a moment, and its SSH sessions end.

        The formats are tar.gz, tar.zst, cpio.bz2 and rsync (a tree).  Raises BoxError for a disk without a file system
        that is known, ImageError, TransferError, SpaceError; no generation is left then.
        """
        from vmimagemanager.boxes import archiving
        from vmimagemanager.files.formats import Format

        if file_format not in list(Format):
            raise UsageError(f"'{file_format}' is not a format of files: expected one of {', '.join(Format)}.")
        with self._operation("store") as (record, entry):
            entry.facts |= {"archive": name, "format": file_format}
            wanted = archiving.Wanted(name=name, format=Format(file_format), snapshot=snapshot, description=description)
            return archiving.store(self._site, record, self._settled(record), wanted, progress=progress)

    def restore_image(self, address: str, *, progress: Progress = silent) -> Archive | Image:
        """Put what `archive` or `store` made back: the box is off then, and its disk holds nothing else.

        An image becomes that of the box.  Raises ImageError when there is neither an archive nor an image of that name,
        or it was altered, before anything is stopped.
        """
        from vmimagemanager.boxes import archiving, define, life

        with self._operation("restore-image") as (record, entry):
            entry.facts["image"] = address
            self._settled(record)
            if not archiving.is_archive(self._site, address):
                image = self._site.images.get(address)
                self._site.images.require_whole(image)
                define.update(self._site, record, replace(record.settings, image=address))
                self.disconnect()
                life.reset(self._site, self._record())
                return image
            archive = archiving.put_back(self._site, record, address, progress)
            self.disconnect()
            return archive

    def fork(
        self,
        name: str,
        *,
        count: int,
        prefix: str | None = None,
        new_host_keys: bool = False,
        overcommit: bool = False,
        lan: bool = False,
    ) -> Fork[Box]:
        """Make ``count`` running clones of a live snapshot, which share its memory until they write to it.

        They are boxes of their own, named ``prefix`` (by default the box's name and a dash) and the first numbers that
        are free, with a host name, machine-id, generation id and SSH port (on a libvirt network a MAC address and an
        address) of their own, leased by this process.  The
        result is a context manager that removes them all.  With ``lan`` they have a network in common, on this host
        only, in which each knows the others by their names.

        Raises SnapshotError for a snapshot that is not a live one, SpaceError when they could exceed the host's memory
        (unless ``overcommit``), BoxError and GuestError; no clone is left then.
        """
        from vmimagemanager.boxes import fork
        from vmimagemanager.boxes.lan import MOST
        from vmimagemanager.forks import Fork

        names.snapshot_name(name)
        if count < 1:
            raise UsageError(f"{count} clones cannot be made: expected 1 or more.")
        if lan and count > MOST:
            raise UsageError(f"{count} clones cannot have a network in common: expected at most {MOST}.")
        with self._operation("fork") as (record, entry):
            manifest = fork.forkable(self._site, record, name)
            if not overcommit:
                fork.require_memory(count, manifest.ram)
            leases = self._leases.new_names(prefix or f"{self.name}-", count, taken=self._site.taken)
            try:
                clones = [lease.box for lease in leases]
                entry.facts |= {"snapshot": name, "clones": clones}
                forked = fork.fork(self._site, record, manifest, clones, new_host_keys=new_host_keys, common=lan)
            except BaseException:
                for lease in leases:
                    lease.release()
                raise
        boxes = [Box(self._site, lease.box, lease=lease, wait=self._wait, hooks=self.hooks) for lease in leases]
        return Fork(boxes, forked)

    def keep(self) -> None:
        """Make a box that would end with the process that leases it, as clones do, one that stays."""
        from vmimagemanager.boxes import fork

        with self._operation("keep") as (record, _):
            fork.keep(self._site, record)

    # -- its guest -------------------------------------------------------------------------------------------------

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | BinaryIO = b"",
        limit: timedelta | None = None,
        check: bool = True,
        stdout: Callable[[bytes], object] | None = None,
        stderr: Callable[[bytes], object] | None = None,
    ) -> Result:
        """Run a program in the guest; each word of ``argv`` arrives there as it is.

        Raises CommandFailedError when it ends with another status than 0, unless ``check`` is false.
        """
        with self._operation("run", log=False) as (record, _):
            session = self._connected(record)
            result = session.run(argv, stdin=stdin, limit=limit, stdout=stdout, stderr=stderr)
            return result.check() if check else result

    def script(
        self,
        text: str,
        *,
        limit: timedelta | None = None,
        check: bool = True,
        stdout: Callable[[bytes], object] | None = None,
        stderr: Callable[[bytes], object] | None = None,
    ) -> Result:
        """Run a script in the guest: by sh, or by what its first line ``#!…`` names.

        Raises CommandFailedError when it ends with another status than 0, unless ``check`` is false.
        """
        from vmimagemanager.boxes.hooks import script_line

        with self._operation("script", log=False) as (record, _):
            session = self._connected(record)
            result = session.shell(
                script_line(), stdin=text.encode("utf-8", "surrogateescape"), limit=limit, stdout=stdout, stderr=stderr
            )
            return result.check() if check else result

    def as_root(self, text: str) -> bytes:
        """Run a POSIX sh script as root in the guest, over SSH, or the agent without a network; return what it wrote.

        A box with a user of its own needs sudo in its guest, without a password.  Raises GuestError when the script, or
        sudo, ends with another status than 0.
        """
        from vmimagemanager.boxes.probe import ask

        with self._operation("probe", log=False) as (record, _):
            return ask(self._site, record, text, lambda: self._connected(record))

    def put(self, source: str | Path, target: str | PurePosixPath, *, limit: timedelta | None = None) -> int:
        """Copy a file or a folder into the guest; return the bytes of its files.

        Raises TransferError, and DeadlineError when it takes longer than ``limit``, which is scaled.
        """
        from vmimagemanager.guest import transfer

        with self._operation("put", log=False) as (record, _):
            return transfer.put(self._connected(record), Path(source), PurePosixPath(target), limit=limit)

    def get(self, source: str | PurePosixPath, target: str | Path, *, limit: timedelta | None = None) -> int:
        """Copy a file or a folder out of the guest; return the bytes of its files.

        Raises TransferError, and DeadlineError when it takes longer than ``limit``, which is scaled; nothing of the
        copy is left.
        """
        from vmimagemanager.guest import transfer

        with self._operation("get", log=False) as (record, _):
            return transfer.get(self._connected(record), PurePosixPath(source), Path(target), limit=limit)

    def insert(
        self,
        sources: Iterable[str | Path],
        *,
        to: str | PurePosixPath | None = None,
        limit: timedelta | None = None,
    ) -> None:
        """Lay folders' contents, files, archives and named inserts over a folder of the box, in their order.

        ``to`` is ``/`` by default, or what a named insert says.  Of a box that is off the disk is changed, all or
        nothing.  Raises TransferError, and BoxError for a disk without a file system that is known; of a box that runs,
        DeadlineError when one of them takes longer than ``limit``, which is scaled.
        """
        from vmimagemanager.boxes import inserts, offline
        from vmimagemanager.guest import transfer

        folder = None if to is None else PurePosixPath(to)
        if folder is not None:
            inserts.require_absolute(folder)
        with self._operation("insert") as (record, entry):
            kept = inserts.Inserts(self._site.state.path)
            layings = [kept.resolve(str(source), folder) for source in sources]
            entry.facts |= {"sources": len(layings), "to": str(to or "/")}
            if self._settled(record) is None:
                offline.insert(self._site, record, layings)
            else:
                transfer.insert(self._connected(record), layings, limit=limit)

    def extract(self, sources: Iterable[str | PurePosixPath], target: str | Path) -> int:
        """Copy files and folders out of the box, whether it runs or not; return the bytes of all files.

        ``target`` is a folder that exists, or for one source its new name.  Raises TransferError, leaving nothing.
        """
        from vmimagemanager.boxes import offline
        from vmimagemanager.guest import transfer

        paths = [PurePosixPath(source) for source in sources]
        with self._operation("extract") as (record, entry):
            entry.facts |= {"paths": [str(path) for path in paths]}
            if self._settled(record) is None:
                return offline.extract(self._site, record, paths, Path(target))
            return transfer.extract(self._connected(record), paths, Path(target))

    def inventory(self, *, snapshot: str | None = None, verify: bool = False) -> Inventory:
        """Return what is in the guest: packages, and facts such as units, users, and files that no package owns.

        With ``verify`` every file of a package is compared with what its package brought, which takes its time.
        Nothing is changed in the guest.  Raises GuestError; what the guest has no means to look at is `unknown`.  One
        that is off is looked at by an appliance, and what only a running one can tell is `unknown`, too.

        What is in a ``snapshot``, verified, is asked of a clone of it, or of its disk, the first time, and known from
        then on.  Raises SnapshotError for a saved one.
        """
        from vmimagemanager.guest import inventory

        if snapshot is not None:
            return self._inventory_of(snapshot)
        since = inventory.EVER if verify else None
        if self._site.domain(self.name) is not None:
            return inventory.take(self.as_root, since=since)
        return inventory.take(self._probe_disk, since=since, running=False)

    @contextmanager
    def trap(
        self,
        baseline: str | Path | None = None,
        *,
        policy: str | Path | None = None,
        declared: Sequence[str | Path] = (),
        since: str | None = None,
        trace: str | None = None,
        expect_clean: bool = False,
        missing_is_empty: bool = False,
        rebase: bool = False,
    ) -> Iterator[Trap]:
        """Look into the guest before and after the block; ``.verdict`` says what came, what came in with what, and
        what of it the baseline does not accept.

        ``policy`` is a file of severities and exceptions.  ``declared`` are files that say what is needed, such as
        ``debian/control``: what they do not lead to is reported as undeclared.  With ``trace`` ("atime", or "fanotify",
        which also tells who) packages of the base that the block used are reported, too, unless they are declared.
        ``expect_clean`` takes whatever differs for an error: nothing may be left behind.  Either that or a baseline is
        given.
        ``since`` names a snapshot, with which the guest is compared, and not with what it is before the block: all that
        came into it after that snapshot counts (see `inventory`).
        ``missing_is_empty`` takes a baseline file that does not exist for one that accepts nothing, for `Trap.accept`.
        A baseline that was written for another base is refused with ConfigError, unless ``rebase`` says that it will be
        written anew.  Raises UsageError for what does not go together, GuestError.
        """
        from vmimagemanager.boxes.probe import tracer
        from vmimagemanager.trap.block import Settings, Trap

        if (baseline is None) is not expect_clean:
            raise UsageError("A trap goes by a baseline, or expects that nothing is left behind: expected one of both.")
        settings = Settings(
            baseline=None if baseline is None else Path(baseline),
            policy=None if policy is None else Path(policy),
            declared=tuple(map(Path, declared)),
            missing_is_empty=missing_is_empty,
            clean=expect_clean,
        )
        trap = Trap(
            self.as_root,
            settings,
            tracer=tracer(trace, self.as_root),
            idle=self._do_nothing,
            before=None if since is None else self._inventory_of(since),
        )
        try:
            trap.begin(rebase=rebase)
            yield trap
        except BaseException:
            trap.abandon()
            raise
        trap.end()

    def proofs(self, snapshot: str) -> Path:
        """Return the folder that keeps what the trials of proofs on a snapshot came to, and goes with that snapshot.

        It may be removed at any time: trials are run again then.
        """
        return self._site.state.box(self.name).snapshot(names.snapshot_name(snapshot)).proofs

    def ssh_command(self) -> tuple[str, ...]:
        """Return the words that run OpenSSH's client on this box, with its key, host key, address and user."""
        from vmimagemanager.boxes import reach

        record = self._record()
        self._take_over()
        return reach.ssh_command(reach.running_domain(self._site, record), record, self._site.state.box(self.name))

    def console_command(self) -> tuple[str, ...]:
        """Return the words that connect a terminal to the guest's serial console."""
        from vmimagemanager.boxes import reach

        reach.running_domain(self._site, self._record())
        self._take_over()
        return ("virsh", "-q", "-c", self._site.hypervisor.uri, "console", "--force", self.name)

    def console_log(self) -> bytes:
        """Return what the guest has printed on its serial console since it was started or restored."""
        self._record()
        path = self._site.state.box(self.name).console_log
        with translate_os_errors("read", path):
            return path.read_bytes() if path.exists() else b""

    # -- what is known about it ------------------------------------------------------------------------------------

    def show(self) -> Status:
        """Return what is known about the box, from its record and from libvirt."""
        from vmimagemanager.boxes.status import status

        return status(self._site, self._leases, self.name)

    def logs(self) -> tuple[Operation, ...]:
        """Return what was done to the box, the oldest first."""
        from vmimagemanager.boxes.operations import history

        self._record()
        return history(self._site.state.box(self.name))

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """Have a leased box that is off before the block powered off after it, unless it is held then.

        When this process is killed, gc sees to it.
        """
        from vmimagemanager.boxes import borrowing

        if self._lease is None or not self._lease.active:
            raise ValueError(f"the box '{self.name}' is not leased: take it from Manager.lease")
        self._borrowed = True
        try:
            with borrowing.borrowed(self._site, self._record()):
                yield
        finally:
            self.disconnect()
            self._borrowed = False

    # -- the right to it -------------------------------------------------------------------------------------------

    def lock(self, length: timedelta, reason: str = "") -> Hold:
        """Keep the box across processes: a hold of this owner for ``length``."""
        with self._operation("lock") as (_, entry):
            hold = self._leases.keep(self.name, length, reason)
            entry.facts |= {"until": hold.until.isoformat(), "reason": reason}
            return hold

    def unlock(self, *, force: bool = False) -> Hold | None:
        """End the hold; somebody else's only by ``force``."""
        self._record()
        return self._leases.release(self.name, force=force)

    def disconnect(self) -> None:
        """End the SSH connection that is kept between commands; the next command makes a new one."""
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def release(self) -> None:
        """End the connection and the lease; a temporary box, such as a clone, is removed with it."""
        self.disconnect()
        if self._lease is not None and self._lease.active:
            try:
                if self._is_temporary():
                    self.undefine(force=True)
            finally:
                self._lease.release()

    def __enter__(self) -> Box:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    # -- inside ----------------------------------------------------------------------------------------------------

    def _record(self) -> BoxRecord:
        return self._site.record(self.name)

    def _is_temporary(self) -> bool:
        try:
            return self._record().temporary
        except (BoxNotFoundError, StateError):  # it was removed, or is damaged
            return False

    def _settled(self, record: BoxRecord) -> Domain | None:
        from vmimagemanager import snapshots
        from vmimagemanager.boxes import define, life

        define.ensure_defined(self._site, record)
        snapshots.settle(life.subject(self._site, record), self._site.domain(self.name))
        return self._site.domain(self.name)

    @contextmanager
    def _operation(self, verb: str, *, log: bool = True) -> Iterator[tuple[BoxRecord, Entry]]:
        from vmimagemanager.boxes import operations

        self._record()  # its time limits are those of waiting for the lease, too
        with self._leased():
            record = self._record()
            if record.spare:
                raise BoxError(
                    f"The box '{self.name}' is a spare of '{record.fork_of}', which waits to be taken.",
                    hint=f"Take one: vmimagemanager acquire {record.fork_of}",
                )
            self._take_over()
            if self._site.state.box(self.name).frozen.exists():
                from vmimagemanager.boxes import quiet

                quiet.thaw_what_was_left(self._site, record)
            if log:
                with operations.logged(self._site.state.box(self.name), verb) as entry:
                    yield record, entry
            else:
                yield record, operations.Entry()

    @contextmanager
    def _leased(self) -> Iterator[None]:
        self._site.require(self.name)  # a box that does not exist leaves no lock behind
        if self._lease is not None and self._lease.active:
            yield
            return
        lease = self._leases.acquire(self.name, self._wait, notice=self.notice)
        try:
            self._site.require(self.name)
            yield
        finally:
            lease.release()

    def _take_over(self) -> None:
        """Have the box be that of whoever uses it now, if a run that is over had borrowed it."""
        if self._site.state.box(self.name).borrowed.exists() and not self._borrowed:
            from vmimagemanager.boxes import borrowing

            borrowing.forget(self._site.state.box(self.name))

    def _connected(self, record: BoxRecord) -> Session:
        from vmimagemanager.boxes import reach

        if self._session is None or not self._session.alive:
            self._session = reach.open_session(
                reach.running_domain(self._site, record), record, self._site.state.box(self.name)
            )
        return self._session

    def _do_nothing(self) -> None:
        if self._record().settings.network != "none":
            self.run(["true"])

    def _probe_disk(self, text: str, snapshot: str | None = None) -> bytes:
        from vmimagemanager import snapshots
        from vmimagemanager.boxes import offline_probe

        with self._operation("probe", log=False) as (record, _):
            folder = self._site.state.box(self.name)
            if snapshot is not None:
                disk = folder.layer(snapshots.find(folder, snapshot).layer)
            elif self._settled(record) is None:
                disk = folder.overlay
            else:
                raise BoxError(f"The box '{self.name}' was started meanwhile.", hint="Try again: it can be asked now.")
            return offline_probe.ask(self._site, record, disk, text)

    def _inventory_of(self, snapshot: str) -> Inventory:
        from vmimagemanager.boxes import hindsight
        from vmimagemanager.deadline import Stopwatch

        names.snapshot_name(snapshot)
        past = hindsight.Past.of(self._site.state.box(self._record().name), snapshot)
        found = past.known()
        if found is not None:
            return found
        watch = Stopwatch()
        if not past.is_live:
            return past.ask(lambda text: self._probe_disk(text, snapshot), watch)
        with self.fork(snapshot, count=1) as [clone]:
            return past.ask(clone.as_root, watch)

    def _lay_inserts(self, record: BoxRecord, entry: Entry) -> None:
        from vmimagemanager.boxes.inserts import Inserts
        from vmimagemanager.deadline import Stopwatch
        from vmimagemanager.guest import transfer

        if not record.settings.inserts:
            return
        watch = Stopwatch()
        kept = Inserts(self._site.state.path)
        transfer.insert(self._connected(record), [kept.laying(name) for name in record.settings.inserts])
        entry.phases["inserts"] = watch.total

    def _run_hooks(self, record: BoxRecord, moment: Moment) -> None:
        from vmimagemanager.boxes.hooks import run_hooks

        if self.hooks:
            run_hooks(self._site, record, moment, self._site.domain(self.name))
