"""The seeds of boxes that stand on cloud images: which box has one, what it says, and which files are still needed.

A seed is a file of the box's own with a name of its own.  Snapshots name it in their definitions, so that it never
changes: what a box is told anew comes in another file, under another name.
"""

from __future__ import annotations

import secrets
from dataclasses import replace

from vmimagemanager import keys
from vmimagemanager.boxes.reach import HOST, LOGIN
from vmimagemanager.boxes.record import BoxRecord
from vmimagemanager.config import BoxSettings, Channel
from vmimagemanager.durable import remove_tree, translate_os_errors
from vmimagemanager.errors import StateError
from vmimagemanager.hypervisor import launch
from vmimagemanager.hypervisor.connection import Hypervisor
from vmimagemanager.hypervisor.domainxml import DomainXml
from vmimagemanager.images import Image, seed
from vmimagemanager.state import BoxFolder


def told_by_seed(settings: BoxSettings, image: Image) -> BoxSettings:
    """Return the settings of a box that is to stand on ``image``: one with a seed and no agent is asked over SSH."""
    if image.seed and not image.agent and settings.channel is Channel.AGENT:
        return replace(settings, channel=Channel.SSH)
    return settings


def with_seed(record: BoxRecord, image: Image, *, before: BoxRecord | None = None) -> BoxRecord:
    """Return the record with the name of its seed, which is a new one unless it says what it said ``before``."""
    if not image.seed:
        return replace(record, seed="")
    if before is not None and before.seed and _told(before) == _told(record):
        return replace(record, seed=before.seed)
    return replace(record, seed=secrets.token_hex(8))


def lay(hypervisor: Hypervisor, record: BoxRecord, folder: BoxFolder) -> None:
    """Write a box's seed into its folder, if it has one; its keys are there.  Raises StateError or SpaceError."""
    if not record.seed:
        return
    private = folder.keys / HOST / keys.PRIVATE
    with translate_os_errors("read", private):
        content = private.read_text()
        public = (folder.keys / HOST / keys.PUBLIC).read_text().strip()
    path = folder.seed(record.seed)
    seed.write(
        path,
        seed.Seed(
            instance=f"{record.uuid}-{record.seed}",  # what is told anew is listened to at the next boot
            host_name=record.host_name,
            authorized_key=keys.load(folder.keys / LOGIN).public,
            host_key=public,
            private_host_key=content,
            users=() if record.user == "root" else (record.user,),
            mac=None if record.settings.network == "none" else record.mac,
        ),
    )
    launch.give_to_qemu(hypervisor, path)


def ensure(hypervisor: Hypervisor, record: BoxRecord, folder: BoxFolder) -> None:
    """Write the seed that a box is about to be started with once more, should it be gone."""
    if record.seed and not folder.seed(record.seed).exists():
        lay(hypervisor, record, folder)


def sweep(folder: BoxFolder) -> None:
    """Remove the seeds that neither the box nor a snapshot names."""
    definitions = [folder.definition, *folder.snapshots.glob("*/domain.xml")]
    try:
        needed = {DomainXml.read(path).seed for path in definitions}
    except StateError:  # one cannot be read, and could name any of them
        return
    for path in folder.seeds:
        if path not in needed:
            remove_tree(path)


def _told(record: BoxRecord) -> tuple[object, ...]:
    return (record.user, record.settings.network == "none", record.mac)
