"""What an engine works on: a box's files, its domain, and what the guest has to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from vmimagemanager.config import Engine
from vmimagemanager.disks import Backing
from vmimagemanager.hypervisor.connection import Hypervisor
from vmimagemanager.hypervisor.domain import Domain
from vmimagemanager.state import BoxFolder, SnapshotFolder

STATE_LIMIT = timedelta(seconds=60)


class GuestProof(Protocol):
    """What a guest answers when its memory is looked at: the token in it, its boot id, and how the repair went."""

    @property
    def token(self) -> str: ...
    @property
    def boot_id(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A box as the engines see it.

    ``plant`` leaves a token in the guest's memory, sets its clock, reseeds its random numbers, and returns what it
    found there; it is None for a guest that nothing can be asked of.  ``boot`` starts the box from its disk and returns
    when it is ready; ``shut_down`` ends it cleanly.  ``attach`` makes a started domain reachable from outside.
    ``bases`` is what its further disks stand on without any snapshot.
    """

    hypervisor: Hypervisor
    folder: BoxFolder
    engines: tuple[Engine, ...]
    plant: Callable[[Domain, str], GuestProof] | None
    boot: Callable[[], Domain]
    shut_down: Callable[[Domain], None]
    attach: Callable[[Domain], object]
    bases: Mapping[str, Backing]


class SnapshotEngine(Protocol):
    """How a snapshot is kept.

    `take` is called with a running guest and leaves its memory in ``stage``, the guest no longer running but, on
    failure, as it was.  `bring_back` starts the guest again on a fresh overlay.
    """

    kind: Engine

    def refusal(self, subject: Subject, domain: Domain) -> str | None:
        """Return why this engine cannot take this guest, as a whole sentence, or None."""

    def take(self, subject: Subject, domain: Domain, stage: SnapshotFolder) -> None: ...

    def finish(self, domain: Domain) -> None:
        """End the guest after its snapshot is safe on disk."""

    def bring_back(self, subject: Subject, snapshot: SnapshotFolder) -> Domain: ...
