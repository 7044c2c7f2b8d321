"""One line of what the doctor says."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """Whether something works, works less well than it could, or stands in the way; the worst is the greatest."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What was looked at, how it is, a whole sentence about it, and the command that mends it (or nothing)."""

    name: str
    status: Status
    message: str
    hint: str = ""


def ok(name: str, message: str) -> Check:
    return Check(name=name, status=Status.OK, message=message)


def warning(name: str, message: str, hint: str = "") -> Check:
    return Check(name=name, status=Status.WARNING, message=message, hint=hint)


def failure(name: str, message: str, hint: str = "") -> Check:
    return Check(name=name, status=Status.FAILURE, message=message, hint=hint)


def as_root(command: str) -> str:
    """Return a command line as this user has to type it for root to run it."""
    if os.geteuid() == 0 or not command:
        return command
    return f"sudo sh -c {shlex.quote(command)}" if "&&" in command else f"sudo {command}"
