"""Proof by hiding: which packages of the base a command really needs, though nobody declared them.

In clones of a snapshot the files of packages are taken away, the command is run again, and how it ends is compared with
how it ends when nothing is missing.  This finds what no tracing sees: a program that is only probed for, and changes
the artefact.  Who calls has to hold the box.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from vmimagemanager.deadline import timeout_factor
from vmimagemanager.errors import SnapshotError, UsageError
from vmimagemanager.guest.inventory import Package, Scope, take
from vmimagemanager.progress import Progress, silent
from vmimagemanager.proof.outcome import Outcome
from vmimagemanager.proof.results import Results
from vmimagemanager.proof.search import needed
from vmimagemanager.proof.trial import attempt
from vmimagemanager.trap.baseline import fingerprint
from vmimagemanager.trap.graph import Graph

if TYPE_CHECKING:
    from vmimagemanager.box import Box
    from vmimagemanager.trap.block import Trap

__all__ = ["Proof", "Question", "prove"]

_log = logging.getLogger(__name__)
_SLOWER = 3.0  # than the reference: hiding makes programs look for things elsewhere
_GRACE = timedelta(seconds=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What came of it: the items that are ``needed``, each with what goes otherwise without it, and those that are not.

    ``compared`` are the artefacts' files that were compared, ``unstable`` those that two equal runs made differently:
    they say nothing.  ``trials`` were run, and ``remembered`` ones were known from earlier proofs.
    """

    snapshot: str
    needed: Mapping[str, str]
    cleared: frozenset[str]
    compared: tuple[str, ...]
    unstable: tuple[str, ...]
    trials: int
    remembered: int

    @property
    def oracle(self) -> str:
        """What tells one run from another, in words."""
        if not self.compared:
            return "the exit status alone: what only changes a result is not found"
        files = "1 file" if len(self.compared) == 1 else f"{len(self.compared)} files"
        left_out = f"; left out, as no two runs agree: {', '.join(self.unstable)}" if self.unstable else ""
        return f"the exit status and {files}{left_out}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Which command is to be run, in clones of which live snapshot, ``jobs`` of them at once.

    Two runs are equal when they end with the same status and the files below the ``artefacts`` are the same.
    ``limit`` is how long a run with nothing missing may take.
    """

    snapshot: str
    command: Sequence[str]
    artefacts: tuple[PurePosixPath, ...] = ()
    jobs: int = min(2, os.cpu_count() or 1)
    limit: timedelta | None = None

    @classmethod
    def of(
        cls,
        box: Box,
        command: Sequence[str],
        *,
        snapshot: str | None = None,
        artefacts: tuple[PurePosixPath, ...] = (),
        jobs: int | None = None,
    ) -> Question:
        """Ask about a box on a snapshot of it, by default the one that it stands on; raise UsageError without one."""
        chosen = snapshot or box.show().snapshot
        if chosen not in [one.name for one in box.snapshots()]:
            what = f"There is no snapshot '{snapshot}'" if snapshot else f"The box '{box.name}' stands on no snapshot"
            raise UsageError(
                f"{what}, of which clones could be made for the proof.",
                hint=f"vmimagemanager snapshot {box.name}@{snapshot or 'clean'}",
            )
        asked = cls(snapshot=chosen, command=command, artefacts=artefacts)
        return asked if jobs is None else replace(asked, jobs=jobs)


def prove(box: Box, question: Question, trap: Trap, *, cache: Path | None = None, progress: Progress = silent) -> Proof:
    """Find out which of the packages that a trap suspects (`Trap.suspects`) the command needs, and tell the trap.

    ``box`` was restored to the snapshot when the trap was set.  Its command is run first twice with nothing missing,
    then with ever fewer packages.  ``cache`` is a folder that keeps what each trial came to, by default one that goes
    with the snapshot.

    Raises UsageError when the trap was not traced, or was not set on this snapshot; SnapshotError when the command does
    not end twice alike with nothing missing, or cannot be forked; SpaceError.  No clone is left then.
    """
    proving = _Proving(box, question, trap, progress)
    proof = proving.prove(
        Results(cache or box.proofs(question.snapshot), proving.identity, question.command, question.artefacts)
    )
    trap.proven(proof.needed, proof.cleared)
    return proof


class _Proving:
    def __init__(self, box: Box, question: Question, trap: Trap, progress: Progress) -> None:
        self._box, self._question, self._trap, self._progress = box, question, trap, progress
        self._address = f"{box.name}@{question.snapshot}"
        self._likely, self._others = map(_leaves_first, trap.suspects)
        self._graph = Graph(trap.verdict.before.packages)
        self._base = {package.item: package for package in trap.verdict.before.packages}
        self._files: dict[str, list[bytes]] = {}
        for path, item in trap.verdict.after.owners.items():
            self._files.setdefault(item, []).append(path)
        self._trials = self._remembered = 0
        self._limit = question.limit
        found = [one.manifest for one in box.snapshots() if one.name == question.snapshot]
        self.identity = f"{found[0].token} {found[0].created.isoformat()}" if found else ""

    def prove(self, results: Results) -> Proof:
        reference, stable, unstable = self._references(results)
        outcomes: dict[tuple[Package, ...], str] = {}

        def suffices(keeps: Sequence[tuple[Package, ...]]) -> Sequence[bool]:
            hidden = [self._hidden(keep) for keep in keeps]
            for keep, outcome in zip(keeps, self._tried(hidden, results), strict=True):
                outcomes[keep] = outcome.otherwise(reference, stable)
            return [not outcomes[keep] for keep in keeps]

        candidates = (*self._likely, *self._others)
        found = needed(candidates, suffices, likely=len(self._likely), width=self._question.jobs)
        why = {one.item.item: f"without it {outcomes[one.without]}" for one in found}
        kept = {package.item for package in self._graph.reach([self._base[item] for item in why])}
        return Proof(
            snapshot=self._question.snapshot,
            needed=why,
            cleared=frozenset(package.item for package in candidates) - kept,
            compared=tuple(sorted(stable)),
            unstable=tuple(sorted(unstable)),
            trials=self._trials,
            remembered=self._remembered,
        )

    def _references(self, results: Results) -> tuple[Outcome, frozenset[str], frozenset[str]]:
        """Run the command twice with nothing missing; return how it ended, and what agreed and what did not."""
        marks = [("reference", str(number)) for number in (1, 2)]
        first, second = self._tried([frozenset(), frozenset()], results, marks=marks)
        # What takes the limit multiplies it by the factor that the seconds were measured with.
        longest = max(first.seconds, second.seconds)
        self._limit = timedelta(seconds=longest * _SLOWER / timeout_factor()) + _GRACE
        if first.status != second.status:
            raise SnapshotError(
                f"Nothing can be proven: in two clones of '{self._address}' the command ended with status "
                f"{first.status} and with {second.status}.",
            )
        agreed = {name for name in first.files if second.files.get(name) == first.files[name]}
        return first, frozenset(agreed), frozenset({*first.files, *second.files} - agreed)

    def _hidden(self, keep: Sequence[Package]) -> frozenset[str]:
        """Return the items that are hidden when some are kept, with what these depend on."""
        kept = {package.item for package in self._graph.reach([self._base[package.item] for package in keep])}
        return frozenset(package.item for package in (*self._likely, *self._others)) - kept

    def _tried(
        self, hidden: Sequence[frozenset[str]], results: Results, *, marks: Sequence[tuple[str, ...]] = ()
    ) -> list[Outcome]:
        keys = list(marks) or [tuple(sorted(items)) for items in hidden]
        known = [results.get(key) for key in keys]
        waiting = [number for number, outcome in enumerate(known) if outcome is None]
        self._remembered += len(known) - len(waiting)
        outcomes = dict(zip(waiting, self._run([hidden[number] for number in waiting]), strict=True))
        for number, outcome in outcomes.items():
            results.put(keys[number], outcome)
        return [outcomes[number] if outcome is None else outcome for number, outcome in enumerate(known)]

    def _run(self, hidden: Sequence[frozenset[str]]) -> list[Outcome]:
        if not hidden:
            return []
        if len(hidden) > self._question.jobs:
            return [outcome for items in hidden for outcome in self._run([items])]
        self._progress(f"trial {self._trials + 1}, {len(hidden[0])} packages hidden", None)
        with (
            self._box.fork(self._question.snapshot, count=len(hidden)) as clones,
            ThreadPoolExecutor(len(hidden)) as pool,
        ):
            if self._trials == 0:
                self._require_base(clones[0])
            self._trials += len(hidden)
            return list(pool.map(self._one, clones, hidden))

    def _one(self, clone: Box, hidden: frozenset[str]) -> Outcome:
        files = [path for item in hidden for path in self._files.get(item, ())]
        asked = self._question
        outcome, result = attempt(clone, asked.command, hidden=files, artefacts=asked.artefacts, limit=self._limit)
        if result is not None and not hidden and result.status != 0:
            raise SnapshotError(
                f"Nothing can be proven: in a clone of '{self._address}', with nothing missing, "
                f"the command ends with status {result.status}.",
                hint="Is what it works on in the snapshot? Put it into the box, and take the snapshot then.",
                detail=result.stderr.decode("utf-8", "replace").rstrip(),
            )
        return outcome

    def _require_base(self, clone: Box) -> None:
        if fingerprint(take(clone.as_root, Scope.PACKAGES)) != self._trap.verdict.base:
            raise UsageError(
                f"The trap was not set on the snapshot '{self._question.snapshot}': other packages were in the guest.",
                hint=f"vmimagemanager restore {self._address}, and try again",
            )


def _leaves_first(packages: Sequence[Package]) -> tuple[Package, ...]:
    """Return packages so that each comes after those that it depends on: what needs the fewest is found first."""
    graph = Graph(packages)
    ordered: dict[Package, None] = {}
    for package in packages:
        way, done = [package], set[Package]()
        while way:
            one = way[-1]
            below = (
                [] if one in done else [low for _, low in graph.needs(one) if low not in ordered and low not in done]
            )
            done.add(one)
            if below:
                way += below
            else:
                ordered.setdefault(way.pop())
    return tuple(ordered)
