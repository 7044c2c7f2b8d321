"""What a run is made of: when one fails that passed before, it is known which of its inputs has changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from vmimagemanager.box import Box
from vmimagemanager.errors import ConfigError
from vmimagemanager.manager import Manager
from vmimagemanager.names import printable
from vmimagemanager.nightly.job import Insert, Job, Put, Script, Step
from vmimagemanager.trap import Baseline, Policy

_ARCHIVE = "archive "
_OURS = ("job", "image", "snapshot")


def require(job: Job, *, accept: bool) -> None:
    """Raise ConfigError unless all files that a job names can be read, and those of its traps are understood.

    A baseline may be missing when it is about to be written, and can be.
    """
    if accept and not any(step.trap and step.trap.baseline for step in job.steps):
        raise ConfigError(f"No step of '{printable(job.path)}' has a trap with a baseline, which could be written.")
    for step in job.steps:
        for path in _files(step):
            _require_readable(path, step, job)
        trap = step.trap
        if trap is None:
            continue
        if trap.policy is not None:
            Policy.read(trap.policy)
        if trap.baseline is None:
            continue
        where = f"The baseline '{printable(trap.baseline)}' of the step '{step.name}'"
        if not accept and not trap.baseline.exists():
            again = f"vmimagemanager nightly run {printable(job.path)} --accept"
            raise ConfigError(f"{where} does not exist.", hint=again)
        if accept and not os.access(trap.baseline.parent, os.W_OK):
            raise ConfigError(f"{where} cannot be written: its folder is not writable, or not there.")
        if trap.baseline.exists():
            Baseline.read(trap.baseline)


def _require_readable(path: Path, step: Step, job: Job) -> None:
    where = f"The step '{step.name}' of '{printable(job.path)}' needs '{printable(path)}'"
    try:
        path.stat()
    except FileNotFoundError as error:
        raise ConfigError(f"{where}, which does not exist.") from error
    except OSError as error:
        raise ConfigError(f"{where}, which cannot be read: {error.strerror}.") from error
    if not (path.is_file() or (path.is_dir() and isinstance(step.deed, Put | Insert))):
        raise ConfigError(f"{where}, which is not a file.")
    if not os.access(path, os.R_OK):
        raise ConfigError(f"{where}, which you may not read.")


def gather(manager: Manager, box: Box, job: Job) -> dict[str, str]:
    """Return the inputs of a run that are known before it, each with its digest."""
    found = {"job": job.digest, "image": box.show().image}
    for one in box.snapshots():
        if one.name == job.snapshot:
            found["snapshot"] = f"{one.name} {one.manifest.created.isoformat()}"
    for step in job.steps:
        for path in _files(step):
            found |= of(path, job)
        if isinstance(step.deed, Insert):
            for source in step.deed.sources:
                if "/" not in source:
                    found[f"insert {source}"] = manager.inserts.get(source).created.isoformat()
        if step.trap is not None and step.trap.baseline is not None and step.trap.baseline.exists():
            found |= of(step.trap.baseline, job)
    return found


def of(path: Path, job: Job) -> dict[str, str]:
    """Return a file, or a folder with all that is in it, as an input."""
    shown = _shown(path, job)
    return {f"./{shown}" if shown in _OURS else shown: _digest(path)}


def archives(dates: Mapping[str, str]) -> dict[str, str]:
    """Return the inputs that the package archives are, by the dates of their release files in the guest."""
    return {f"{_ARCHIVE}{name}": date for name, date in dates.items()}


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of inputs that are others, new, or gone; of an archive nothing is known unless it was asked."""
    return tuple(
        name
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name) and (not name.startswith(_ARCHIVE) or (name in before and name in now))
    )


def _files(step: Step) -> Iterator[Path]:
    match step.deed:
        case Script(path=path) | Put(source=path):
            yield path
        case Insert(sources=sources):
            yield from (Path(source) for source in sources if "/" in source)
    if step.trap is not None:
        yield from step.trap.files


def _shown(path: Path, job: Job) -> str:
    return printable(path.relative_to(job.path.parent) if path.is_relative_to(job.path.parent) else path)


def _digest(path: Path) -> str:
    """Return the digest of a file, or of a folder with all names, kinds and contents in it."""
    digest = hashlib.sha256()
    for entry in sorted([path, *path.rglob("*")] if path.is_dir() else [path]):
        name = os.fsencode(entry.relative_to(path))
        try:
            if entry.is_symlink() and entry != path:
                content = b"l" + os.fsencode(entry.readlink())
            elif entry.is_file():
                with entry.open("rb") as stream:
                    content = b"f" + hashlib.file_digest(stream, "sha256").digest()
            else:
                content = b"d"
        except OSError as error:
            raise ConfigError(f"'{printable(entry)}' cannot be read: {error.strerror}.") from error
        digest.update(b"%d %b %b" % (len(name), name, hashlib.sha256(content).digest()))
    return digest.hexdigest()
