"""What users open: the boxes of one state directory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from vmimagemanager import names
from vmimagemanager.box import Box
from vmimagemanager.config import BoxSettings, Configuration, Moment, load
from vmimagemanager.errors import UsageError
from vmimagemanager.leases import Lease, Leases
from vmimagemanager.progress import Progress, silent
from vmimagemanager.state import StateDirectory

if TYPE_CHECKING:
    from vmimagemanager.boxes.caretaker import Leftover
    from vmimagemanager.boxes.fsck import Examination
    from vmimagemanager.boxes.importing import Imported
    from vmimagemanager.boxes.inserts import Inserts
    from vmimagemanager.boxes.site import Site
    from vmimagemanager.images import Image, ImageStore
    from vmimagemanager.images.archives import ArchiveStore
    from vmimagemanager.images.difference import Difference
    from vmimagemanager.images.export import Exported
    from vmimagemanager.images.pull import Pulled
    from vmimagemanager.images.share import Pushed
    from vmimagemanager.images.store import Pruned
    from vmimagemanager.pool import Pool


class Manager:
    """The boxes and images of one state directory; a context manager."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self._leases = Leases(site.state)
        self.hooks = True
        self.wait = site.configuration.host.lease_wait
        self.notice: Callable[[str], None] | None = None

    @classmethod
    def open(
        cls,
        *,
        uri: str | None = None,
        state_directory: str | Path | None = None,
        config: str | Path | None = None,
    ) -> Manager:
        """Read the configuration and open the state directory, making it when it is new.

        libvirt is connected to when it is first needed.  Raises ConfigError or StateError.
        """
        options = {"uri": uri, "state-dir": None if state_directory is None else str(state_directory)}
        configuration = load(None if config is None else Path(config), host_options=options)
        return cls.of(configuration)

    @classmethod
    def of(cls, configuration: Configuration) -> Manager:
        """Open the state directory that a configuration names."""
        from vmimagemanager.boxes.site import Site

        host = configuration.host
        shared = host.uri.split("?", maxsplit=1)[0].endswith("/system")
        state = StateDirectory.open(host.state_dir, shared=shared)
        return cls(Site(state=state, configuration=configuration))

    @property
    def configuration(self) -> Configuration:
        return self.site.configuration

    @property
    def state_directory(self) -> Path:
        return self.site.state.path

    @property
    def images(self) -> ImageStore:
        return self.site.images

    @property
    def archives(self) -> ArchiveStore:
        """The archives of boxes' files."""
        from vmimagemanager.images.archives import ArchiveStore

        return ArchiveStore(self.state_directory)

    @property
    def inserts(self) -> Inserts:
        """The named inserts."""
        from vmimagemanager.boxes.inserts import Inserts

        return Inserts(self.state_directory)

    def remove_image(self, address: str) -> tuple[str, ...]:
        """Remove an image (or one generation, ``debian-12:2``) that no box stands on, or an archive of files.

        Return what was removed.
        """
        from vmimagemanager.boxes.define import blobs_in_use

        if self.archives.has(address):
            return tuple(archive.address for archive in self.archives.remove(address))
        removed, _ = self.images.remove(address, used_by=lambda: blobs_in_use(self.site))
        return tuple(image.address for image in removed)

    def prune_images(self, name: str, *, keep: int, remove: bool = True) -> Pruned:
        """Remove all generations of an image but the newest ``keep``; those that are pinned or in use stay.

        Without ``remove`` nothing is removed, and the result says what would be.
        """
        from vmimagemanager.boxes.define import blobs_in_use

        if keep < 1:
            raise UsageError(f"{keep} generations cannot be kept: expected 1 or more.")
        return self.images.prune(name, keep=keep, used_by=lambda: blobs_in_use(self.site), remove=remove)

    def export_image(
        self, address: str, target: str | Path, *, file_format: str | None = None, progress: Progress = silent
    ) -> Exported:
        """Write the disk of an image to a new file, in the format of its suffix unless ``file_format`` names one.

        Formats are qcow2 (compressed), raw, vmdk (stream-optimised), vdi, vhdx and ova.  Raises UsageError, StateError
        when there is such a file, ImageError for an image that was changed, SpaceError; no file is left then.
        """
        from vmimagemanager.images import export

        image = self.images.get(address)
        return export.export(self.images, image, Path(target), file_format=file_format, progress=progress)

    def push_image(self, address: str, url: str, *, progress: Progress = silent) -> Pushed:
        """Make a generation one of the shared store at ``url``: only what is not there travels.

        ``url`` is a folder, or ``ssh://``, or of another kind that fsspec can write to.  Raises ImageError.
        """
        from vmimagemanager.images import share

        return share.push(self.images, self.images.get(address), url, progress=progress)

    def pull_image(self, address: str, url: str, *, progress: Progress = silent) -> Pulled:
        """Make a generation of the shared store at ``url`` the newest one of its name here: see `push_image`.

        Nothing of it is believed before it was compared with its digests.  Raises ImageError, or SpaceError; no
        generation appears then, and the next try goes on where this one ended.
        """
        from vmimagemanager.images import pull

        return pull.pull(self.images, self.state_directory, address, url, progress=progress)

    def shared_images(self, url: str) -> tuple[Image, ...]:
        """Return the generations of the shared store at ``url``; their files are not here."""
        from vmimagemanager.images import share

        return tuple(share.listing(self.images, url))

    def compare_images(self, before: str, after: str, *, files: bool = False) -> Difference:
        """Return how two images differ: in packages, and with ``files`` in files, for which both are read."""
        from vmimagemanager.images import difference

        images = self.images
        return difference.compare(images, images.get(before), images.get(after), files=files)

    def boxes(self) -> tuple[str, ...]:
        """Return the names of all boxes, sorted."""
        return self.site.state.box_names()

    def box(self, name: str) -> Box:
        """Return a box, leased anew for each of its operations; raise BoxNotFoundError when there is none."""
        self.site.require(names.box_name(name))
        return self._box(name)

    def clones_first(self, names: Iterable[str]) -> dict[str, str]:
        """Return names of boxes with the one of them that each stands on in the end, clones before what they stand on.

        In this order they can be undefined.
        """
        from vmimagemanager.boxes import fork

        return fork.clones_first(self.site, names)

    def define(self, name: str, settings: BoxSettings | None = None, *, adopt: bool = False) -> Box:
        """Define a new box with ``settings``, by default those of the configuration, and return it, switched off.

        With ``adopt`` it is made of the existing domain of that name.  Raises BoxError, ImageError, ConfigError or
        ForeignDomainError, and HookError of a hook at after-define; nothing is left then.
        """
        from vmimagemanager.boxes import define
        from vmimagemanager.boxes.hooks import run_hooks
        from vmimagemanager.boxes.operations import logged

        names.box_name(name)
        lease = self._leases.acquire(name, self.wait, notice=self.notice)
        try:
            chosen = settings if settings is not None else self.configuration.box(name)
            record = (define.adopt if adopt else define.define)(self.site, name, chosen)
            try:
                with logged(self.site.state.box(name), "adopt" if adopt else "define") as entry:
                    entry.facts |= {"image": record.image, "accelerator": record.accelerator.value}
                    if self.hooks:
                        run_hooks(self.site, record, Moment.AFTER_DEFINE, None)
            except BaseException:
                define.undefine(self.site, name, force=True)
                raise
        finally:
            lease.release()
        return self._box(name)

    def import_snapshot(
        self, source: str | Path, *, name: str | None = None, trust: bool = False, progress: Progress = silent
    ) -> Imported:
        """Make a box, by default of the name that it had, with one snapshot, of an archive of `Box.export_snapshot`.

        With ``trust`` the snapshot is what it was: restoring it brings the guest back, running.  QEMU believes the
        memory that it reads: only trust an archive whose maker you would let in.  Otherwise its disk comes in, as a new
        generation of an image that is named like the box, and the snapshot is one of a box that is off.

        Raises SnapshotError for an archive that is damaged or that this host cannot run, BoxError when there is a box
        of that name, ImageError for a disk that is none, SpaceError; nothing is left then.
        """
        from vmimagemanager.boxes import archive, importing
        from vmimagemanager.boxes.operations import logged
        from vmimagemanager.snapshots import parcel

        with parcel.opened(Path(source), belongs=archive.belongs) as opened:
            box = names.box_name(name) if name is not None else importing.origin(opened)
            lease = self._leases.acquire(box, self.wait, notice=self.notice)
            try:
                imported = importing.receive(self.site, opened, box, trust=trust, progress=progress)
                with logged(self.site.state.box(box), "snapshot-import") as entry:
                    entry.facts |= {"file": str(source), "snapshot": imported.snapshot, "trusted": trust}
            finally:
                lease.release()
        return imported

    def lease(self, name: str, *, wait: timedelta | None = None) -> Box:
        """Return a box that nobody else can use until it is released or this process ends; a context manager.

        Raises LeaseError that names the holder when it did not become free within ``wait``.
        """
        self.site.require(names.box_name(name))
        lease = self._leases.acquire(name, self.wait if wait is None else wait, notice=self.notice)
        return self._box(name, lease)

    def claim(self, candidates: Iterable[str] | None = None, *, wait: timedelta | None = None) -> Box:
        """Lease any box that is neither leased nor held, of ``candidates`` or of all but clones; a context manager.

        Raises LeaseError when none became free within ``wait``.
        """
        from vmimagemanager.boxes.fork import is_clone

        chosen = None if candidates is None else tuple(candidates)
        clone = cache(lambda name: is_clone(self.site, name))
        for name in chosen or ():
            self.site.require(names.box_name(name))
        lease = self._leases.claim(
            lambda: (name for name in self.boxes() if not clone(name)) if chosen is None else chosen,
            self.wait if wait is None else wait,
        )
        return self._leased_box(lease)

    def pool(
        self,
        snapshot: str,
        *,
        size: int,
        overcommit: bool = False,
        notice: Callable[[str], None] | None = None,
    ) -> Pool:
        """Keep ``size`` paused clones of a live snapshot, ``web@clean``, ready to be taken; a context manager.

        They are made by a thread of this process, which tells ``notice`` what comes and goes, and can be taken by any
        process.  Raises LeaseError that names the holder when there is such a pool already, SnapshotError for a
        snapshot that is not a live one, SpaceError when they could exceed the host's memory (unless ``overcommit``).
        """
        from vmimagemanager.pool import Pool

        address = names.Address.parse(snapshot)
        return Pool(
            self.site, address, size, overcommit=overcommit, wait=self.wait, box=self._leased_box, notice=notice
        )

    def spare(self, snapshot: str, *, wait: timedelta | None = None) -> Box:
        """Take a spare of a snapshot, ``web@clean``, from the pool that some process holds; a context manager.

        The clone that is returned runs, proven and with its clock right, and is leased by this process; its release
        removes it, unless `Box.keep` was called.  Raises LeaseError when none is ready within ``wait``, BoxError when
        there is none and nobody holds a pool.
        """
        from vmimagemanager.boxes import spares

        limit = self.wait if wait is None else wait
        return self._leased_box(spares.acquire(self.site, names.Address.parse(snapshot), limit))

    def fsck(self, *, images: bool = False, progress: Progress = silent) -> Examination:
        """Undo what killed processes left half done, then examine the state directory against itself and libvirt.

        With ``images`` every file of the image store is read, too, and compared with its digest.
        """
        from vmimagemanager.boxes.caretaker import Caretaker
        from vmimagemanager.boxes.fsck import examine

        put_right = tuple(Caretaker(site=self.site, look_only=False).put_right())
        return examine(self.site, put_right, images=images, progress=progress)

    def gc(self, *, remove: bool = False) -> tuple[Leftover, ...]:
        """Return what nobody needs: half-made things of killed processes, clones whose process has ended, old files.

        It is removed only when ``remove`` says so; never a domain or a file that is not ours.
        """
        from vmimagemanager.boxes.caretaker import Caretaker

        caretaker = Caretaker(site=self.site, look_only=not remove)
        return (*caretaker.interrupted(), *caretaker.unneeded())

    def close(self) -> None:
        """Close the connection to libvirt."""
        self.site.close()

    def __enter__(self) -> Manager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _leased_box(self, lease: Lease) -> Box:
        return self._box(lease.box, lease)

    def _box(self, name: str, lease: Lease | None = None) -> Box:
        box = Box(self.site, name, lease=lease, wait=self.wait, hooks=self.hooks)
        box.notice = self.notice
        return box
