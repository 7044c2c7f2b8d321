"""Jobs: what a nightly run does, on which box, from which snapshot.  People write them: vmimagemanager-job(5)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any, cast

from vmimagemanager import names
from vmimagemanager.config import document, schema
from vmimagemanager.config.schema import Spot
from vmimagemanager.config.settings import arguments
from vmimagemanager.errors import ConfigError
from vmimagemanager.names import printable, quoted

FORMAT = 1
_HINT = "'man vmimagemanager-job' describes every key."


class Trace(StrEnum):
    """How it is found out what a step uses."""

    ATIME = "atime"
    FANOTIFY = "fanotify"


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """Run a program in the guest."""

    argv: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """Run a script of the host in the guest."""

    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Put:
    """Copy a file or a folder into the guest."""

    source: Path
    target: PurePosixPath


@dataclass(frozen=True, slots=True, kw_only=True)
class Insert:
    """Lay files and named inserts over a folder of the guest; None: over the one that each names, or the root."""

    sources: tuple[str, ...]
    folder: PurePosixPath | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Get:
    """Copy a file or a folder out of the guest, to where the run keeps its artefacts."""

    source: PurePosixPath


Deed = Command | Script | Put | Insert | Get


@dataclass(frozen=True, slots=True, kw_only=True)
class Trapping:
    """What a step's trap goes by, as `Box.trap` takes it; with ``prove`` as `proof.Question` does."""

    baseline: Path | None = None
    policy: Path | None = None
    declared: tuple[Path, ...] = ()
    since: str | None = None
    trace: Trace | None = None
    expect_clean: bool = False
    prove: bool = False
    artefacts: tuple[PurePosixPath, ...] = ()
    jobs: int | None = None

    @property
    def files(self) -> Iterator[Path]:
        """What was written by hand for it; the baseline is ours."""
        yield from self.declared
        if self.policy is not None:
            yield self.policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing to do; an ``always`` one is done after a failure, too.

    ``timeout`` is how long its deed may take: like all limits it is scaled under emulation.
    """

    name: str
    deed: Deed
    timeout: timedelta = timedelta(hours=1)
    always: bool = False
    trap: Trapping | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is done to a box that was put back to a snapshot, or without one to its image.

    ``keep`` runs of it are kept; after one that did not pass, the box is held for ``hold``.  ``digest`` is that of the
    file.
    """

    name: str
    path: Path
    digest: str
    box: str
    steps: tuple[Step, ...]
    snapshot: str | None = None
    keep: int = 30
    hold: timedelta | None = None

    @classmethod
    def read(cls, path: str | Path) -> Job:
        """Read a job file; raise ConfigError that names file, key and what was expected."""
        path = Path(path).absolute()
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"The job '{printable(path)}' cannot be read: {error.strerror}.", hint=_HINT) from error
        return cls.parse(content, source=path)

    @classmethod
    def parse(cls, content: bytes, *, source: Path) -> Job:
        """Read a job's text."""
        spot = document.spot(source, _HINT)
        values = document.parse(content, KEYS, spot, source=source, version=FORMAT)
        del values["format"]
        values["steps"] = values.pop("step", ())
        for key, expected in (("box", "box = 'NAME'"), ("steps", "at least one [[step]]")):
            if not values.get(key):
                missing = key.removesuffix("s")
                raise ConfigError(f"{spot.prefix}'{missing}' is missing: expected {expected}.", hint=_HINT)
        values.setdefault("name", source.stem)
        if not names.is_name(values["name"]):
            raise spot.child("name").unexpected(values["name"], f"a name: {names.RULE}")
        job = cls(path=source, digest=hashlib.sha256(content).hexdigest(), **values)
        job._require_sense(spot)
        return job

    def _require_sense(self, spot: Spot) -> None:
        """Raise ConfigError for keys that do not go together."""
        seen: set[str] = set()
        baselines: set[Path] = set()
        for number, step in enumerate(self.steps, 1):
            here = spot.child("step").entry(number)
            if step.name in seen:
                raise here.child("name").unexpected(step.name, "a name that no step before it has")
            seen.add(step.name)
            if step.trap is not None and step.trap.baseline is not None:
                if step.trap.baseline in baselines:
                    where = here.child("trap").child("baseline")
                    raise where.unexpected(str(step.trap.baseline), "a file that no step before it writes")
                baselines.add(step.trap.baseline)
            if isinstance(step.deed, Get) and step.deed.source == PurePosixPath("/"):
                raise here.child("get").unexpected("/", "a file or a folder of the guest, and not all of it")
            if step.trap is not None and step.trap.prove and self.snapshot is None:
                raise here.child("trap").child("prove").unexpected(True, "a job with a 'snapshot', which can be cloned")


def _step(value: Mapping[str, object], spot: Spot) -> Step:
    found = arguments(schema.read_table(value, STEP_KEYS, spot))
    if "name" not in found:
        raise ConfigError(f"{spot.prefix}'{spot.key}' has no 'name'.", hint=_HINT)
    kinds = [key for key in DEEDS if key in found]
    if len(kinds) != 1:
        raise ConfigError(f"{spot.prefix}'{spot.key}' needs one of {_listed(DEEDS)}.", hint=_HINT)
    deed = _deed(kinds[0], found.pop(kinds[0]), found.pop("to", None), spot)
    trap = cast("Trapping | None", found.get("trap"))
    if trap is not None and trap.prove and not isinstance(deed, Command):
        raise spot.child("trap").child("prove").unexpected(True, "a step with a 'command', which can be run again")
    return Step(deed=deed, **found)


def _deed(kind: str, value: Any, target: PurePosixPath | None, spot: Spot) -> Deed:  # noqa: ANN401 - read by its parser
    if kind == "put" and target is None:
        raise ConfigError(f"{spot.prefix}'{spot.key}' has no 'to': expected where in the guest.", hint=_HINT)
    if kind not in {"put", "insert"} and target is not None:
        raise spot.child("to").unexpected(str(target), "it beside 'put' or 'insert' only")
    match kind:
        case "command":
            return Command(argv=value)
        case "script":
            return Script(path=value)
        case "put":
            return Put(source=value, target=target or PurePosixPath("/"))
        case "insert":
            return Insert(sources=value, folder=target)
        case _:
            return Get(source=value)


def _trapping(value: object, spot: Spot) -> Trapping:
    found = arguments(schema.read_table(value, TRAP_KEYS, spot))
    trap = Trapping(**found)
    if (trap.baseline is None) is not trap.expect_clean:
        raise ConfigError(f"{spot.prefix}'{spot.key}' needs either 'baseline' or 'expect-clean'.", hint=_HINT)
    if (trap.trace or trap.prove) and not trap.declared:
        raise ConfigError(
            f"{spot.prefix}'{spot.key}' has no 'declared', with which what is used is compared.", hint=_HINT
        )
    if not trap.prove and ("artefacts" in found or "jobs" in found):
        raise ConfigError(f"{spot.prefix}'{spot.key}': 'artefacts' and 'jobs' belong to 'prove'.", hint=_HINT)
    return trap


def _listed(keys: tuple[str, ...]) -> str:
    return ", ".join(f"'{key}'" for key in keys)


def _name(value: object, spot: Spot) -> str:
    if not isinstance(value, str) or not names.is_name(value):
        raise spot.unexpected(value, f"a name: {names.RULE}")
    return value


def _guest_path(value: object, spot: Spot) -> PurePosixPath:
    if not isinstance(value, str) or not value.startswith("/") or not value.isprintable() or ".." in value.split("/"):
        raise spot.unexpected(value, "an absolute path of the guest, such as '/root/build'")
    return PurePosixPath(value)


def _list_of(one: schema.Parser) -> schema.Parser:
    def parse(value: object, spot: Spot) -> tuple[object, ...]:
        if not isinstance(value, list) or not value:
            raise spot.unexpected(value, "a list of at least one")
        return tuple(one(entry, spot.entry(number)) for number, entry in enumerate(value, 1))

    return parse


def _source(value: object, spot: Spot) -> str:
    """Read the name of an insert, or a path, which has a slash."""
    if isinstance(value, str) and "/" not in value:
        if not names.is_name(value):
            raise spot.unexpected(quoted(value)[1:-1], "the name of an insert, or a path with a '/', such as './files'")
        return value
    return str(schema.path(value, spot))


DEEDS = ("command", "script", "put", "insert", "get")
TRAP_KEYS: schema.Keys = {
    "baseline": schema.path,
    "policy": schema.path,
    "declared": _list_of(schema.path),
    "since": _name,
    "trace": schema.choice(Trace),
    "expect-clean": schema.switch,
    "prove": schema.switch,
    "artefacts": _list_of(_guest_path),
    "jobs": schema.integer(1, 64),
}
STEP_KEYS: schema.Keys = {
    "name": _name,
    "command": schema.argv,
    "script": schema.path,
    "put": schema.path,
    "insert": _list_of(_source),
    "get": _guest_path,
    "to": _guest_path,
    "timeout": schema.duration,
    "always": schema.switch,
    "trap": _trapping,
}
KEYS: schema.Keys = {
    "format": document.is_format(FORMAT),
    "name": _name,
    "box": _name,
    "snapshot": _name,
    "keep": schema.integer(1, 10_000),
    "hold": schema.duration,
    "step": schema.tables(_step, Step),
}
