"""Asking a guest what is in it: as root, over SSH, or over the agent where there is no network."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from vmimagemanager.boxes import reach
from vmimagemanager.boxes.record import BoxRecord
from vmimagemanager.boxes.site import Site
from vmimagemanager.errors import GuestError, UsageError
from vmimagemanager.guest import tracing
from vmimagemanager.guest.inventory import Run
from vmimagemanager.guest.result import Result
from vmimagemanager.guest.session import Session
from vmimagemanager.guest.tracing import Trace, Tracer

LIMIT = timedelta(minutes=5)
_SUDO = "Let the box's user run everything by sudo without a password, or define the box with '--user root'."


def ask(site: Site, record: BoxRecord, script: str, connected: Callable[[], Session]) -> bytes:
    """Run a POSIX sh script as root in the guest, from its standard input, and return what it wrote.

    A box with a user of its own needs sudo in its guest, without a password.  Raises GuestError when the script, or
    sudo, ends with another status than 0.
    """
    result = _run(site, record, script.encode(), connected)
    if result.status != 0:
        said = result.stderr.decode("utf-8", "replace").strip()
        refused = record.user != "root" and ("sudo" in said or result.status == 127)
        raise GuestError(
            f"What is in the guest of '{record.name}' cannot be listed: the probe ended with status {result.status}.",
            hint=_SUDO if refused else "",
            detail=said,
        )
    return result.stdout


def tracer(how: str | None, run: Run) -> Tracer | None:
    """Return what finds out which files are used in a guest, if that is asked for; raise UsageError."""
    if how is None:
        return None
    if how not in list(Trace):
        raise UsageError(f"'{how}' is no way to trace what is used: expected one of {', '.join(Trace)}.")
    return tracing.tracer(Trace(how), run)


def _run(site: Site, record: BoxRecord, script: bytes, connected: Callable[[], Session]) -> Result:
    if record.settings.network == "none":
        return reach.agent(reach.running_domain(site, record)).run(["/bin/sh", "-s"], stdin=script, limit=LIMIT)
    root = [] if record.user == "root" else ["sudo", "-n", "--"]
    return connected().run([*root, "sh", "-s"], stdin=script, limit=LIMIT)
