"""The saved engine: libvirt's own save and restore, with our overlays.  Portable; grows with the RAM in use."""

from __future__ import annotations

from vmimagemanager.config import Engine
from vmimagemanager.durable import require_space
from vmimagemanager.errors import DomainNotFoundError
from vmimagemanager.hypervisor import launch
from vmimagemanager.hypervisor.domain import Domain
from vmimagemanager.hypervisor.domainxml import DomainXml
from vmimagemanager.hypervisor.ramfile import RamFile
from vmimagemanager.snapshots.subject import Subject
from vmimagemanager.state import SnapshotFolder
from vmimagemanager.units import Size


class SavedEngine:
    kind = Engine.SAVED

    def refusal(self, subject: Subject, domain: Domain) -> str | None:
        return domain.migration_refusal()

    def take(self, subject: Subject, domain: Domain, stage: SnapshotFolder) -> None:
        definition = domain.portable_definition()
        # What is written is as large as the RAM at most; a guest whose RAM is somebody else's file gets one, too.
        files = 1 if definition.ram_file is None or subject.folder.ram.exists() else 2
        needed = Size(definition.ram.bytes * files)
        require_space(stage.path, needed, purpose=f"Saving the memory of '{subject.folder.name}'")
        domain.monitor.ignore_shared(False)  # a live snapshot that was interrupted may have left it on
        # libvirt ends the guest when it has written all; until then, a failure leaves it running.
        domain.save(stage.saved, self._definition(subject, definition))

    def finish(self, domain: Domain) -> None:
        return

    def bring_back(self, subject: Subject, snapshot: SnapshotFolder) -> Domain:
        hypervisor, folder = subject.hypervisor, subject.folder
        definition = self._definition(subject, DomainXml.read(snapshot.definition))
        if definition.ram_file is not None:
            launch.new_ram_file(hypervisor, folder.ram, definition)
        with launch.surroundings(hypervisor, definition):
            hypervisor.restore(str(snapshot.saved), definition)
        domain = hypervisor.find(folder.name)
        if domain is None:
            raise DomainNotFoundError(f"libvirt restored the domain '{folder.name}', and it is not there.")
        subject.attach(domain)
        return domain

    def _definition(self, subject: Subject, definition: DomainXml) -> DomainXml:
        # Its RAM must have the name under which it was saved, so a guest that had no RAM file cannot be given one.  Any
        # other gets a file of its own, mapped shared: it can have a live snapshot again.
        if definition.ram_file is None:
            return definition
        return definition.with_ram_file(RamFile(path=subject.folder.ram, size=definition.ram, shared=True))
