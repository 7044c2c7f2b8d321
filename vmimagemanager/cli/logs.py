"""Where the library's log goes: standard error, as much of it as was asked for."""

from __future__ import annotations

import logging

from vmimagemanager.cli import screen
from vmimagemanager.cli.invocation import Invocation

_PACKAGE = "vmimagemanager"
_FOREIGN = ("paramiko",)


def configure(invocation: Invocation) -> None:
    """Send the library's log to standard error: warnings, with -v what is done, with -vv everything."""
    level = {0: logging.WARNING, 1: logging.INFO}.get(invocation.verbose, logging.DEBUG)
    handler = _Handler()
    logger = logging.getLogger(_PACKAGE)
    logger.handlers = [handler]
    logger.setLevel(logging.ERROR if invocation.quiet else level)
    logger.propagate = False
    for name in _FOREIGN:  # its errors reach us as exceptions; it would print them, too
        foreign = logging.getLogger(name)
        foreign.handlers = [handler] if level == logging.DEBUG else [logging.NullHandler()]
        foreign.setLevel(logging.INFO)
        foreign.propagate = False


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            text = f"{record.levelname.lower()}: {text}"
        elif record.levelno < logging.INFO:
            text = f"{record.name}: {text}"
        screen.note(*text.splitlines())
