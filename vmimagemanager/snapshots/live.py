"""The live engine: the guest's RAM file, mapped private, and a migration of the device state alone.

A restore does not cost more when the guest has more memory: QEMU maps the frozen file copy-on-write, and reads a
megabyte.  Nor does the snapshot of a guest that was booted: its RAM file becomes the snapshot's.  One that was restored
writes to private copies of the file's pages; those in use are written to a file of the new snapshot's own.
"""

from __future__ import annotations

import os

from vmimagemanager.config import Engine
from vmimagemanager.durable import fsync_path, translate_os_errors
from vmimagemanager.hypervisor import devicestate, launch
from vmimagemanager.hypervisor.devicestate import PrivateRam
from vmimagemanager.hypervisor.domain import Domain
from vmimagemanager.hypervisor.domainxml import DomainXml
from vmimagemanager.hypervisor.ramfile import RamFile
from vmimagemanager.snapshots.subject import STATE_LIMIT, Subject
from vmimagemanager.state import SnapshotFolder


class LiveEngine:
    kind = Engine.LIVE

    def refusal(self, subject: Subject, domain: Domain) -> str | None:
        if not launch.ram_may_be_a_file(subject.hypervisor):
            driver = subject.hypervisor.host.confined_by
            return f"The security driver {driver} keeps QEMU from files that libvirt does not name."
        ram = domain.definition(live=True).ram_file
        if ram is None:
            return "The guest's memory is not in a file: it was not started by vmimagemanager."
        return domain.migration_refusal()

    def take(self, subject: Subject, domain: Domain, stage: SnapshotFolder) -> None:
        definition = domain.definition(live=True)
        domain.suspend()
        try:
            if definition.ram_file is not None and definition.ram_file.shared:
                devicestate.save(domain.monitor, stage.device_state, STATE_LIMIT)
                with translate_os_errors("keep", subject.folder.ram):
                    os.link(subject.folder.ram, stage.ram)
            else:
                private = PrivateRam(target=stage.ram, size=definition.ram)
                devicestate.save(domain.monitor, stage.device_state, STATE_LIMIT, ram=private)
                launch.give_to_qemu(subject.hypervisor, stage.ram)
            fsync_path(stage.device_state)
        except BaseException:
            domain.resume()
            raise

    def finish(self, domain: Domain) -> None:
        domain.end()

    def bring_back(self, subject: Subject, snapshot: SnapshotFolder) -> Domain:
        definition = DomainXml.read(snapshot.definition)
        ram = RamFile(path=snapshot.ram, size=definition.ram, shared=False)
        subject.folder.ram.unlink(missing_ok=True)
        domain = launch.wake(subject.hypervisor, definition, ram, snapshot.device_state, limit=STATE_LIMIT)
        subject.attach(domain)
        return domain
