"""Guests whose file systems are frozen for a moment, and thawed whatever happens to whoever froze them."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

from vmimagemanager import snapshots
from vmimagemanager.boxes import life, reach
from vmimagemanager.boxes.record import BoxRecord
from vmimagemanager.boxes.site import Site
from vmimagemanager.config import Channel
from vmimagemanager.deadline import Deadline
from vmimagemanager.durable import fsync_path, remove_tree, translate_os_errors
from vmimagemanager.errors import GuestError, VmimError
from vmimagemanager.hypervisor.domain import Domain
from vmimagemanager.snapshots import Subject
from vmimagemanager.snapshots.subject import GuestProof
from vmimagemanager.state import BoxFolder

_FLUSH_LIMIT = timedelta(minutes=1)
_THAW_LIMIT = timedelta(seconds=15)

_log = logging.getLogger(__name__)


class Quiet:
    """A subject of a snapshot whose file systems are frozen from its first planting to its second one.

    They are clean in the snapshot then: nothing has to be repaired by whoever boots the disk.  What cannot be frozen
    is at least flushed.  The box's folder says that they are frozen before they are: see `thaw_what_was_left`.
    """

    def __init__(self, subject: Subject, record: BoxRecord) -> None:
        assert subject.plant is not None
        self._plant = subject.plant
        self._shut_down = subject.shut_down
        self._record = record
        self._folder = subject.folder
        self._planted = False
        self.subject = replace(subject, plant=self.plant, shut_down=self.shut_down)

    def plant(self, domain: Domain, token: str) -> GuestProof:
        self.thaw(domain)
        proof = self._plant(domain, token)
        if not self._planted:
            self._planted = True
            self._freeze(domain)
        return proof

    def shut_down(self, domain: Domain) -> None:
        self.thaw(domain)
        self._shut_down(domain)

    def thaw(self, domain: Domain) -> None:
        if self._folder.frozen.exists():
            _thaw(domain, self._folder)

    def _freeze(self, domain: Domain) -> None:
        result = reach.runner(domain, self._record, self._folder).run(["sync"], limit=_FLUSH_LIMIT)
        if result.status != 0:
            raise GuestError(
                f"The guest of '{self._record.name}' could not write out what it has in memory.",
                detail=result.stderr.decode("utf-8", "replace").strip(),
            )
        if self._record.settings.channel is not Channel.AGENT:
            return
        agent = reach.agent(domain)
        with translate_os_errors("write", self._folder.frozen):
            self._folder.frozen.touch()
            fsync_path(self._folder.path)
        try:
            agent.command("guest-fsfreeze-freeze")
        except VmimError as error:
            _log.info("the guest of '%s' was flushed, not frozen: %s", self._record.name, error)
            with suppress(VmimError):  # its answer alone may not have arrived
                _thaw(domain, self._folder)


def thaw_what_was_left(site: Site, record: BoxRecord) -> None:
    """Let a guest go on that a killed process left frozen, if it did.

    A guest that does not answer stays as it is, with a warning, and is asked again by the next operation.
    """
    folder = site.state.box(record.name)
    if not folder.frozen.exists():
        return
    snapshots.settle(life.subject(site, record), site.domain(record.name))  # or what it writes goes to a frozen layer
    domain = life.woken(site.domain(record.name))
    if domain is None:
        remove_tree(folder.frozen)
        return
    _log.warning("the file systems of '%s' were left frozen by an interrupted operation: thawing them", record.name)
    try:
        _thaw(domain, folder)
    except VmimError as error:
        _log.warning("the guest of '%s' cannot be thawed: %s", record.name, error)


def _thaw(domain: Domain, folder: BoxFolder) -> None:
    agent = reach.agent(domain)
    agent.wait(Deadline(_THAW_LIMIT), lambda: reach.check_alive(domain, folder))
    agent.command("guest-fsfreeze-thaw")
    remove_tree(folder.frozen)
