"""Where boxes live: a state directory, the libvirt beside it, its images, and what was configured."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from vmimagemanager.boxes.record import BoxRecord
from vmimagemanager.config import Configuration
from vmimagemanager.deadline import set_emulation_factor
from vmimagemanager.errors import BoxNotFoundError, StateError
from vmimagemanager.hypervisor.accelerator import Accelerator
from vmimagemanager.hypervisor.connection import Hypervisor
from vmimagemanager.hypervisor.domain import Domain
from vmimagemanager.images import ImageStore
from vmimagemanager.state import StateDirectory


@dataclass(frozen=True)
class Site:
    """Everything that the boxes of one state directory share; libvirt is connected to at its first use."""

    state: StateDirectory
    configuration: Configuration

    @cached_property
    def hypervisor(self) -> Hypervisor:
        return Hypervisor.connect(self.configuration.host.uri)

    @cached_property
    def images(self) -> ImageStore:
        return ImageStore(self.state.path)

    def record(self, name: str) -> BoxRecord:
        """Return a box's record, and set the factor of time limits; raise BoxNotFoundError, or StateError."""
        self.require(name)
        try:
            record = BoxRecord.read(self.state.box(name))
        except StateError as error:
            error.hint = error.hint or f"Put it back from a backup, or give up the box: vmimagemanager undefine {name}"
            raise
        set_emulation_factor(record.accelerator is Accelerator.TCG)
        return record

    def require(self, name: str) -> None:
        """Raise BoxNotFoundError, with the nearest name, unless there is a box ``name``."""
        if not self.state.box(name).record.is_file():
            raise BoxNotFoundError(f"There is no box '{name}'.", hint=self._advice(name))

    def taken(self, name: str) -> bool:
        """Tell whether a box or a domain has this name, whoever owns it."""
        return self.state.box(name).path.exists() or self.hypervisor.find(name) is not None

    def domain(self, name: str) -> Domain | None:
        """Return the box's domain when it is active, None when it is off; raise ForeignDomainError for another's."""
        domain = self.hypervisor.domain(name, str(self.state.path))
        return domain if domain is not None and domain.active else None

    def close(self) -> None:
        """Close the connection to libvirt, if it was opened."""
        opened = vars(self).pop("hypervisor", None)
        if opened is not None:
            opened.close()

    def _advice(self, name: str) -> str:
        import difflib

        names = self.state.box_names()
        near = difflib.get_close_matches(name, names, n=1)
        if near:
            return f"Did you mean '{near[0]}'?"
        return f"vmimagemanager define {name} --image debian-12" if not names else "vmimagemanager list"
