"""Boxes that are off before they are used, and off again afterwards, whatever happens to whoever uses them.

The box's folder says so before it is started.  When that process is killed, gc powers the box off, unless somebody has
used it since, or holds it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from vmimagemanager.boxes import life
from vmimagemanager.boxes.record import BoxRecord
from vmimagemanager.boxes.site import Site
from vmimagemanager.durable import fsync_path, remove_tree, translate_os_errors
from vmimagemanager.errors import VmimError
from vmimagemanager.leases import Leases
from vmimagemanager.state import BoxFolder

_log = logging.getLogger(__name__)


@contextmanager
def borrowed(site: Site, record: BoxRecord) -> Iterator[None]:
    """Power a box off at the end of the block if it was off before, unless it is held then."""
    folder = site.state.box(record.name)
    if site.domain(record.name) is None:
        with translate_os_errors("write", folder.borrowed):
            folder.borrowed.touch()
            fsync_path(folder.path)
    try:
        yield
    finally:
        if folder.borrowed.exists() and Leases(site.state).hold(record.name) is None:
            try:
                give_back(site, record)
            except VmimError as error:  # whatever the block came to is what counts; gc sees to it
                _log.warning("the box '%s' is not powered off: %s", record.name, error)


def give_back(site: Site, record: BoxRecord) -> None:
    """Power a box off that was off before it was used."""
    life.kill(site, record)
    forget(site.state.box(record.name))


def forget(folder: BoxFolder) -> None:
    """Take a box for that of whoever uses it now."""
    remove_tree(folder.borrowed)
