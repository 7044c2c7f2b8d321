"""What earlier trials came to, kept by their content: a proof goes on where the one before it stopped.

One file for each command and set of artefacts, beside the snapshot, of which each trial is known by the digest of what
was hidden in it.  It may be removed at any time: trials are run again then.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from vmimagemanager import records
from vmimagemanager.durable import make_folder
from vmimagemanager.errors import StateError
from vmimagemanager.proof.outcome import Outcome

FORMAT = 1
_NEVER = -1  # TOML has no null


class Results:
    """The outcomes of the trials of one proof; whatever is put here is on the disk at once."""

    def __init__(self, folder: Path, snapshot: str, command: Sequence[str], artefacts: Sequence[PurePosixPath]) -> None:
        asked = json.dumps([snapshot, list(command), [str(path) for path in artefacts]])
        self._path = folder / f"{hashlib.sha256(asked.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.toml"
        self._outcomes = self._read()

    def get(self, hidden: Iterable[str]) -> Outcome | None:
        """Return how the command ended without the packages of these items, if that was tried."""
        return self._outcomes.get(_key(hidden))

    def put(self, hidden: Iterable[str], outcome: Outcome) -> None:
        """Keep an outcome; raise SpaceError or StateError."""
        self._outcomes = {**self._read(), **self._outcomes, _key(hidden): outcome}
        make_folder(self._path.parent)
        trials = {
            key: {
                "status": _NEVER if one.status is None else one.status,
                "seconds": round(one.seconds, 3),
                "files": dict(one.files),
            }
            for key, one in self._outcomes.items()
        }
        records.write(self._path, {"trials": trials}, version=FORMAT)

    def _read(self) -> dict[str, Outcome]:
        try:
            trials = records.read(self._path, version=FORMAT)["trials"]
            return {
                key: Outcome(
                    status=None if one["status"] == _NEVER else one["status"],
                    files=one["files"],
                    seconds=one["seconds"],
                )
                for key, one in trials.items()
            }
        except (StateError, KeyError, TypeError, AttributeError):  # none yet, or one that nobody can use
            return {}


def _key(hidden: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(hidden)).encode("utf-8", "surrogatepass")).hexdigest()
