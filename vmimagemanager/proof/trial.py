"""One run of a command in a clone from which files were taken away."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import PurePosixPath
from typing import Protocol

from vmimagemanager.errors import DeadlineError
from vmimagemanager.guest.result import Result
from vmimagemanager.proof.outcome import Outcome

_PLAIN = frozenset(b"/abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-+")
_AT_ONCE = 100


class Clone(Protocol):
    """A box that is thrown away afterwards."""

    def run(self, argv: Sequence[str], *, limit: timedelta | None = None, check: bool = True) -> Result: ...
    def as_root(self, text: str) -> bytes: ...


def attempt(
    clone: Clone,
    command: Sequence[str],
    *,
    hidden: Iterable[bytes] = (),
    artefacts: Sequence[PurePosixPath] = (),
    limit: timedelta | None = None,
) -> tuple[Outcome, Result | None]:
    """Take files away from a guest, run a command there, and return how it ended, and its result if it did."""
    for text in _taking_away(hidden):
        clone.as_root(text)
    try:
        result = clone.run(command, limit=limit, check=False)
    except DeadlineError:
        return Outcome(status=None), None
    return Outcome(status=result.status, files=_digests(clone, artefacts), seconds=result.seconds), result


def _taking_away(paths: Iterable[bytes]) -> Iterator[str]:
    """Yield scripts that remove files, whatever their names are; folders stay.  No maintainer script runs."""
    words = [
        "".join(chr(byte) if byte in _PLAIN else f"\\{byte:03o}" for byte in path) + "\\000" for path in sorted(paths)
    ]
    lines = ["".join(words[at : at + _AT_ONCE]) for at in range(0, len(words), _AT_ONCE)]
    if lines:
        prints = "".join(f"printf '{line}'\n" for line in lines)
        yield f"{{\n{prints}}} | xargs -0 rm -f -- 2>/dev/null || :\n"


def _digests(clone: Clone, artefacts: Sequence[PurePosixPath]) -> dict[str, str]:
    """Return the digest of each file of the artefacts, and where each link leads, by the names."""
    if not artefacts:
        return {}
    paths = " ".join(shlex.quote(str(path)) for path in artefacts)
    answer = clone.as_root(
        f"find {paths} -type f -exec sha256sum {{}} + 2>/dev/null || :\n"
        f'find {paths} -type l -exec sh -c \'for one; do printf "link to %s  %s\\n" "$(readlink "$one")" "$one";'
        " done' sh {} + 2>/dev/null || :\n"
    )
    lines = answer.decode("utf-8", "backslashreplace").splitlines()
    return {name: digest for digest, _, name in (line.rpartition("  ") for line in lines)}
