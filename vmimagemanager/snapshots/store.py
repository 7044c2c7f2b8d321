"""Taking, restoring and removing snapshots, whatever their engine.

What a killed process left in the middle is put right by `interrupted.settle`.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from vmimagemanager.config import Engine
from vmimagemanager.deadline import Stopwatch
from vmimagemanager.disks import Backing
from vmimagemanager.durable import (
    fsync_path,
    make_folder,
    publish,
    remove_tree,
    replace_file,
    require_space,
    translate_os_errors,
)
from vmimagemanager.errors import SnapshotError, SpaceError, VmimError
from vmimagemanager.hypervisor.domain import Domain, DomainState
from vmimagemanager.hypervisor.domainxml import DomainXml
from vmimagemanager.snapshots import layers, seal
from vmimagemanager.snapshots.catalogue import find, find_or_none, sweep
from vmimagemanager.snapshots.disk import DiskEngine
from vmimagemanager.snapshots.fitness import require_platform, require_whole
from vmimagemanager.snapshots.layers import Footing
from vmimagemanager.snapshots.live import LiveEngine
from vmimagemanager.snapshots.manifest import Manifest
from vmimagemanager.snapshots.platform import Platform
from vmimagemanager.snapshots.saved import SavedEngine
from vmimagemanager.snapshots.subject import SnapshotEngine, Subject
from vmimagemanager.state import BoxFolder, SnapshotFolder, staged_folder
from vmimagemanager.units import Size

_log = logging.getLogger(__name__)
_ROOM = Size(16 << 20)  # a device state, an empty overlay and some records, many times over

_LEFT_OUT = "The box's settings leave this engine out."

_ENGINES: dict[Engine, SnapshotEngine] = {
    Engine.LIVE: LiveEngine(),
    Engine.SAVED: SavedEngine(),
    Engine.DISK: DiskEngine(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A snapshot that was taken: the engine, why no better one, and the seconds of each phase."""

    name: str
    engine: Engine
    why_not: tuple[str, ...]
    phases: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """A snapshot that was restored.

    ``proven`` says that the guest showed the value that only the snapshot's memory holds (one that was off, had to be
    booted or cannot be asked has none); ``why_not`` says why a better engine was not used; ``phases`` are seconds.
    """

    name: str
    engine: Engine
    running: bool
    proven: bool
    why_not: tuple[str, ...]
    phases: dict[str, float]


def take(subject: Subject, domain: Domain | None, name: str, *, token: str, owner: str, description: str) -> Taken:
    """Snapshot a box; one that runs goes on running.  ``domain`` is None for a box that is off.

    Raises SnapshotError when there is a snapshot of that name, or no engine could take it: the box is then as it was.
    """
    folder = subject.folder
    if find_or_none(folder, name) is not None:
        raise SnapshotError(
            f"The box '{folder.name}' has a snapshot '{name}' already.",
            hint=f"Choose another name, or remove it: vmimagemanager snapshot-remove {folder.name}@{name}",
        )
    make_folder(folder.snapshots)
    require_space(folder.snapshots, _ROOM, purpose=f"A snapshot of '{folder.name}'")
    watch = Stopwatch()
    with staged_folder(folder.snapshots / name) as path:
        path.chmod(0o711)
        stage = SnapshotFolder(path)
        definition = DomainXml.read(folder.definition) if domain is None else domain.portable_definition()
        replace_file(stage.definition, definition.text().encode(), mode=0o600)
        boot_id = ""
        if domain is not None and subject.plant is not None:
            boot_id = subject.plant(domain, token).boot_id
            watch.lap("plant")
        sweep(folder)  # a restore, which has no time for it, may have left layers that nobody stands on
        layer = secrets.token_hex(8)
        try:
            engine, reasons = _engine_took(subject, domain, stage)
            watch.lap("memory")
            layers.freeze(folder, layer)
            layers.keep_firmware(folder, stage)
            frozen = layers.layers_of(folder, layer, folder.disks)
            successors = layers.new_overlays(subject.hypervisor, folder, frozen)
            Manifest(
                name=name,
                engine=engine.kind,
                created=datetime.now(UTC).replace(microsecond=0),
                owner=owner,
                description=description,
                running=domain is not None,
                layer=layer,
                further_disks=folder.disks[1:],
                token=token if boot_id and engine.kind is not Engine.DISK else "",
                boot_id=boot_id,
                ram=definition.ram,
                why_not=reasons,
                platform=Platform.of(subject.hypervisor, definition),
                seals=seal.seal(stage),
            ).write(stage)
            publish(path, folder.snapshots / name)
        except BaseException as error:
            _undo(subject, domain, stage, layer=layer, boot=isinstance(error, VmimError))
            raise
    watch.lap("disk")
    if domain is not None:
        engine.finish(domain)
        watch.lap("end")
    layers.put_in_place(successors, folder)
    if domain is not None:
        _go_on(subject, engine, name, token=token, watch=watch)
    return Taken(name=name, engine=engine.kind, why_not=reasons, phases=watch.phases)


def require_engine(subject: Subject, domain: Domain) -> None:
    """Raise SnapshotError when no engine that the box may use can take its guest, before anything is done to it."""
    refusals = {kind: _ENGINES[kind].refusal(subject, domain) for kind in subject.engines}
    if all(refusals.values()):
        raise _no_engine(
            subject,
            [f"{kind}: {refusals.get(kind) or _LEFT_OUT}" for kind in _ENGINES],
            hint="Detach what cannot be migrated (virsh detach-device; a share: unmount it in the guest), or allow the "
            f"disk engine: vmimagemanager define --update {subject.folder.name} --engines live,saved,disk",
        )


def restore(
    subject: Subject, domain: Domain | None, name: str, *, next_token: str, disk_only: bool = False
) -> Restored:
    """Put a box back to a snapshot, whatever state it is in; return when that is proven and the guest repaired.

    With ``disk_only`` the memory of a live or saved one is left alone, and the guest booted from its disk.

    Raises SnapshotError when there is none of that name, or its memory cannot be brought back on this host or was
    altered: nothing was touched then, and what runs goes on running.  It is raised, too, when the guest that came up is
    not the snapshot.  A memory that libvirt or QEMU refuses after all, when the guest before has ended, is given up for
    its disk, which is booted, and ``why_not`` says so.
    """
    folder = subject.folder
    manifest = find(folder, name)
    snapshot = folder.snapshot(name)
    disk_only = disk_only and manifest.running and manifest.engine is not Engine.DISK
    if disk_only:
        manifest = replace(
            manifest,
            engine=Engine.DISK,
            why_not=(*manifest.why_not, f"{manifest.engine}: The disk alone was asked for."),
        )
    require_whole(folder, manifest)
    require_platform(subject.hypervisor, folder, manifest)
    _require_room(folder, manifest)
    watch = Stopwatch()
    footing = footing_of(manifest, folder, subject.bases)
    successors = None
    if domain is not None:
        successors = _end_and_prepare(subject, domain, footing)
        watch.lap("end")
    remove_tree(folder.console_log)  # a panic in it would be taken for one of the guest that comes now
    layers.stand_on(subject.hypervisor, folder, footing, successors)
    watch.lap("overlay")
    if not manifest.running:
        return Restored(
            name=name,
            engine=manifest.engine,
            running=False,
            proven=False,
            why_not=manifest.why_not,
            phases=watch.phases,
        )
    engine, reasons = manifest.engine, manifest.why_not
    try:
        revived = _brought_back(subject, engine, snapshot, footing)
    except VmimError as error:
        if engine is Engine.DISK:
            raise
        _log.warning("the %s snapshot '%s' cannot be brought back, booting its disk: %s", engine, name, error)
        reasons = (*reasons, f"{engine}: {error}")
        engine = Engine.DISK
        layers.stand_on(subject.hypervisor, folder, footing)
        revived = _ENGINES[engine].bring_back(subject, snapshot)
    watch.lap("start")
    proven = False
    if engine is not Engine.DISK:
        proven = _prove(subject, revived, manifest.token, name, next_token=next_token)
        watch.lap("proof and repair")
    return Restored(
        name=name,
        engine=engine,
        running=True,
        proven=proven,
        why_not=reasons,
        phases=watch.phases,
    )


def _end_and_prepare(subject: Subject, domain: Domain, footing: Footing) -> dict[str, Path]:
    """End a guest and return new overlays on ``footing``, made while libvirt waits for the end: 0.2 s at the least."""
    with ThreadPoolExecutor(max_workers=1) as beside:
        made = beside.submit(layers.new_overlays, subject.hypervisor, subject.folder, footing.disks)
        try:
            domain.end()
        except BaseException:
            for path in made.result().values():
                remove_tree(path)
            raise
        return made.result()


def _brought_back(subject: Subject, engine: Engine, snapshot: SnapshotFolder, footing: Footing) -> Domain:
    try:
        return _ENGINES[engine].bring_back(subject, snapshot)
    except VmimError as error:
        if engine is not Engine.LIVE:
            raise
        # A QEMU that somebody killed is started again in half a second; its disk takes half a minute to boot.
        _log.warning(
            "the live snapshot of '%s' cannot be brought back, trying once more: %s", subject.folder.name, error
        )
    layers.stand_on(subject.hypervisor, subject.folder, footing)
    return _ENGINES[engine].bring_back(subject, snapshot)


def remove(folder: BoxFolder, name: str) -> None:
    """Remove a snapshot, a damaged one, too; its disk stays as long as the box or another snapshot stands on it.

    Raises SnapshotError when there is none of that name.
    """
    if not folder.snapshot(name).manifest.is_file():
        find(folder, name)
    with staged_folder(folder.snapshots / name) as doomed, translate_os_errors("remove", folder.snapshots / name):
        (folder.snapshots / name).rename(doomed / name)
        fsync_path(folder.snapshots)
    sweep(folder)


def footing_of(manifest: Manifest, folder: BoxFolder, bases: Mapping[str, Backing]) -> Footing:
    """Return what a box stands on that is put back to a snapshot; a disk that it got later stands on its base."""
    snapshot = folder.snapshot(manifest.name)
    return Footing(
        disks={**bases, **layers.layers_of(folder, manifest.layer, manifest.disks)},
        nvram=snapshot.nvram if snapshot.nvram.exists() else None,
        tpm=snapshot.tpm if snapshot.tpm.exists() else None,
    )


def _engine_took(
    subject: Subject, domain: Domain | None, stage: SnapshotFolder
) -> tuple[SnapshotEngine, tuple[str, ...]]:
    if domain is None:
        return _ENGINES[Engine.DISK], ("The box is off: there is no memory to keep.",)
    reasons: list[str] = []
    for kind, engine in _ENGINES.items():
        if kind not in subject.engines:
            reasons.append(f"{kind}: {_LEFT_OUT}")
            continue
        refusal = engine.refusal(subject, domain)
        if refusal is None:
            try:
                engine.take(subject, domain, stage)
                return engine, tuple(reasons)
            except SpaceError:  # no engine needs less
                raise
            except VmimError as error:
                _empty(stage)
                if domain.state() is not DomainState.RUNNING and kind is not Engine.DISK:
                    raise
                refusal = str(error)
        reasons.append(f"{kind}: {refusal}")
    raise _no_engine(subject, reasons, hint="The setting 'engines' says which may be used.")


def _no_engine(subject: Subject, reasons: Sequence[str], *, hint: str) -> SnapshotError:
    return SnapshotError(
        f"No engine can snapshot the box '{subject.folder.name}'.", detail="\n".join(reasons), hint=hint
    )


def _go_on(subject: Subject, engine: SnapshotEngine, name: str, *, token: str, watch: Stopwatch) -> None:
    """Bring the guest of a snapshot that was just taken back from it."""
    domain = engine.bring_back(subject, subject.folder.snapshot(name))
    watch.lap("start")
    if engine.kind is not Engine.DISK:
        _prove(subject, domain, token, name)
        watch.lap("proof and repair")


def _prove(subject: Subject, domain: Domain, token: str, name: str, *, next_token: str | None = None) -> bool:
    """Repair a guest and return whether it is proven to be the snapshot; nothing can be asked of some, or could be."""
    if subject.plant is None:
        return False
    proof = subject.plant(domain, next_token if next_token is not None else secrets.token_hex(16))
    if token and proof.token != token:
        raise SnapshotError(
            f"The guest of '{subject.folder.name}' runs, but it is not the snapshot '{name}': "
            "the value kept in its memory is another one.",
            hint=f"Restore it once more: vmimagemanager restore {subject.folder.name}@{name}",
        )
    return token != ""


def _undo(subject: Subject, domain: Domain | None, stage: SnapshotFolder, *, layer: str, boot: bool) -> None:
    """Put back what a snapshot that failed half-way took: the disk, and the guest that stood still or was ended."""
    folder = subject.folder
    if not stage.path.exists():  # it is published, and `interrupted.settle` finishes it
        return
    try:
        layers.unfreeze(folder, layer)
        for path in layers.staged(folder):
            remove_tree(path)
        state = DomainState.RUNNING if domain is None else domain.state()
        if domain is not None and state is DomainState.PAUSED:
            domain.resume()
        elif state is DomainState.OFF and stage.saved.exists():
            _ENGINES[Engine.SAVED].bring_back(subject, stage)
        elif state is DomainState.OFF and boot:
            subject.boot()
    except VmimError as error:
        _log.warning("the box '%s' could not be put back after a failed snapshot: %s", folder.name, error)


def _require_room(folder: BoxFolder, manifest: Manifest) -> None:
    """Raise SpaceError, while the guest still runs, when a restore would find the disk full."""
    needed = _ROOM.bytes
    if manifest.running and manifest.engine is not Engine.LIVE:
        needed += manifest.ram.bytes  # a RAM file of its own, in place of the one that goes
        if folder.ram.exists() and folder.ram.stat().st_nlink == 1:
            needed -= folder.ram.stat().st_blocks * 512
    require_space(folder.path, Size(max(needed, _ROOM.bytes)), purpose=f"Restoring '{folder.name}'")


def _empty(stage: SnapshotFolder) -> None:
    for entry in stage.path.iterdir():
        if entry != stage.definition:
            remove_tree(entry)
