"""What was done to a box: one JSON line for each operation, appended in one write."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from vmimagemanager.deadline import Stopwatch
from vmimagemanager.durable import translate_os_errors
from vmimagemanager.leases import owner
from vmimagemanager.state import BoxFolder

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One line of the log: who did what when, how it ended, how long it and each of its phases took (seconds)."""

    when: str
    owner: str
    verb: str
    outcome: str
    seconds: float
    facts: dict[str, Any] = field(default_factory=dict)
    phases: dict[str, float] = field(default_factory=dict)


class Entry:
    """The line that is being written."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self.phases: dict[str, float] = {}


@contextmanager
def logged(folder: BoxFolder, verb: str) -> Iterator[Entry]:
    """Log the block as one operation of ``verb``, whether it succeeds or raises."""
    entry, watch = Entry(), Stopwatch()
    when = datetime.now().astimezone().isoformat(timespec="milliseconds")
    outcome = "done"
    try:
        yield entry
    except BaseException as error:
        outcome = f"{type(error).__name__}: {error}"
        raise
    finally:
        _log.info("%s %s: %s in %.2f s", verb, folder.name, outcome.splitlines()[0], watch.total)
        if folder.path.is_dir():
            line = {
                "when": when,
                "owner": owner(),
                "verb": verb,
                "outcome": outcome,
                "seconds": round(watch.total, 4),
                "facts": entry.facts,
                "phases": {phase: round(seconds, 4) for phase, seconds in entry.phases.items()},
            }
            with translate_os_errors("append to", folder.operations_log), folder.operations_log.open("a") as stream:
                stream.write(json.dumps(line) + "\n")


def history(folder: BoxFolder) -> tuple[Operation, ...]:
    """Return a box's operations, the oldest first; a line that a full disk cut off is left out."""
    if not folder.operations_log.exists():
        return ()
    with translate_os_errors("read", folder.operations_log):
        lines = folder.operations_log.read_text().splitlines()
    found = []
    for line in lines:
        try:
            found.append(Operation(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return tuple(found)
