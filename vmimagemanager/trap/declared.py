"""What is declared: debian/control's Build-Depends, requirements.txt, pyproject.toml, package.json, a plain list."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from vmimagemanager import records
from vmimagemanager.errors import ConfigError, StateError
from vmimagemanager.guest.inventory.dpkg import clauses
from vmimagemanager.guest.inventory.languages import normalised
from vmimagemanager.names import printable
from vmimagemanager.trap.explain import Need

SYSTEM = ("dpkg", "rpm", "apk", "pacman")
_MANAGERS = (*SYSTEM, "python", "npm", "gem", "cargo")
_BUILD = ("build-depends", "build-depends-arch", "build-depends-indep")
_INCLUDED = re.compile(r"(?:-r|--requirement)[ =]?\s*(\S+)")
_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._+-]*)")
_Reader = Callable[[str, Path], Iterable[Need]]


def read(path: Path) -> list[Need]:
    """Return what a file declares; its name says in which format.

    Raises ConfigError when it cannot be read or understood.
    """
    return _read(path, _reader(path))


def _read(path: Path, reader: _Reader) -> list[Need]:
    try:
        return list(reader(path.read_bytes().decode(), path))
    except OSError as error:
        raise ConfigError(f"'{printable(path)}' cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"'{printable(path)}' is not UTF-8 text.") from error
    except StateError as error:
        raise ConfigError(error.message) from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"'{printable(path)}' does not declare what is needed in a form that is known: {error}."
        ) from error


def _reader(path: Path) -> _Reader:
    if path.name == "control":
        return _control
    if path.name == "pyproject.toml":
        return _pyproject
    if path.name == "package.json":
        return _package_json
    if path.suffix == ".txt" and "requirements" in path.name:
        return _requirements
    return _list


def _list(text: str, path: Path) -> Iterator[Need]:
    """Read one item a line: a name of the system's packages, alternatives with '|', or MANAGER:NAME."""
    for number, line in enumerate(text.splitlines(), 1):
        wanted = line.partition("#")[0].strip()
        if not wanted:
            continue
        manager, colon, name = wanted.partition(":")
        names = [word.strip() for word in (name if colon and manager in _MANAGERS else wanted).split("|")]
        if any(not word or " " in word for word in names):
            raise ConfigError(
                f"In '{printable(path)}', line {number} is {line.strip()!r}: expected the name of a package."
            )
        managers = (manager,) if colon and manager in _MANAGERS else SYSTEM
        yield Need(managers=managers, names=tuple(names), source=f"{path}:{number}")


def _control(text: str, path: Path) -> Iterator[Need]:
    """Read deb-src-control(5): what is needed to build; build-essential always is."""
    number = 0
    field, value, begun = "", "", 0
    yield Need(managers=("dpkg",), names=("build-essential",), source=str(path))
    for number, line in enumerate([*text.splitlines(), ""], 1):
        if line.startswith("#"):
            continue
        if line[:1].isspace() and line.strip():
            value += " " + line.strip()
            continue
        if field in _BUILD:
            yield from (Need(managers=("dpkg",), names=clause, source=f"{path}:{begun}") for clause in clauses(value))
        name, colon, value = line.partition(":")
        field, begun = (name.strip().lower() if colon else ""), number


def _requirements(text: str, path: Path, within: tuple[Path, ...] = ()) -> Iterator[Need]:
    if path.resolve() in within:
        raise ConfigError(f"'{printable(path)}' includes itself.")
    within = (*within, path.resolve())
    for number, line in enumerate(text.replace("\\\n", " ").splitlines(), 1):
        wanted = re.sub(r"(^|\s)#.*", "", line).strip()
        included = _INCLUDED.match(wanted)
        if included:
            yield from _read(path.parent / included[1], partial(_requirements, within=within))
        elif wanted and not wanted.startswith("-"):
            yield from _python([re.sub(r"\s--\S+", "", wanted)], f"{path}:{number}")


def _pyproject(text: str, path: Path) -> Iterator[Need]:
    """Read what the project and its build need, its extras and its dependency groups (PEP 518, 621, 735)."""
    table = records.parse(text, source=printable(path))
    project = table.get("project", {})
    lists = [table.get("build-system", {}).get("requires", []), project.get("dependencies", [])]
    lists += [*project.get("optional-dependencies", {}).values(), *table.get("dependency-groups", {}).values()]
    for entries in lists:
        if not isinstance(entries, list):
            raise TypeError(f"expected a list of requirements instead of {entries!r:.80}")
        yield from _python([entry for entry in entries if isinstance(entry, str)], str(path))


def _package_json(text: str, path: Path) -> Iterator[Need]:
    document: Mapping[str, Mapping[str, str]] = json.loads(text)
    for key in ("dependencies", "devDependencies", "optionalDependencies", "peerDependencies"):
        for name in document.get(key, {}).keys():  # noqa: SIM118 - what is no table is an error
            if not name:
                raise ValueError(f"'{key}' has an entry without a name")
            yield Need(managers=("npm",), names=(name,), source=str(path))


def _python(entries: Iterable[str], source: str) -> Iterator[Need]:
    for entry in entries:
        name = _NAMED.match(entry.strip())
        if name:
            yield Need(managers=("python",), names=(normalised(name[1]),), source=source)
