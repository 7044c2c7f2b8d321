"""The disk engine: the overlay alone.  The guest is shut down first and booted afterwards: the last resort."""

from __future__ import annotations

from vmimagemanager.config import Engine
from vmimagemanager.hypervisor.domain import Domain
from vmimagemanager.snapshots.subject import Subject
from vmimagemanager.state import SnapshotFolder


class DiskEngine:
    kind = Engine.DISK

    def refusal(self, subject: Subject, domain: Domain) -> str | None:
        return None

    def take(self, subject: Subject, domain: Domain, stage: SnapshotFolder) -> None:
        subject.shut_down(domain)

    def finish(self, domain: Domain) -> None:
        return

    def bring_back(self, subject: Subject, snapshot: SnapshotFolder) -> Domain:
        return subject.boot()
