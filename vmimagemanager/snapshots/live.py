"""The live engine: the guest's RAM file, mapped private, and a migration of the device state alone.

Its cost does not grow with the guest's memory: QEMU maps the frozen file copy-on-write, and reads a megabyte.
"""

from __future__ import annotations

import os

from vmimagemanager.config import Engine
from vmimagemanager.durable import fsync_path, translate_os_errors
from vmimagemanager.hypervisor import launch
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
        if not ram.shared:
            return "The guest's memory is a private copy of an earlier snapshot's: it was restored, not booted."
        blockers = domain.monitor.migration_blockers()
        return f"QEMU cannot migrate the guest: {'; '.join(blockers)}." if blockers else None

    def take(self, subject: Subject, domain: Domain, stage: SnapshotFolder) -> None:
        domain.suspend()
        try:
            domain.monitor.save_device_state(stage.device_state, STATE_LIMIT)
            stage.device_state.chmod(0o600)
            with translate_os_errors("keep", subject.folder.ram):
                os.link(subject.folder.ram, stage.ram)
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
