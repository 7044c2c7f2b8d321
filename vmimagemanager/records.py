"""Versioned TOML: everything that this project writes about itself.

Each record is one file whose first key is ``format``, the version of its layout.  A record with a newer format than
this program knows is refused, never guessed at.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from vmimagemanager.durable import replace_file, translate_os_errors
from vmimagemanager.errors import StateError

Record = dict[str, Any]


def parse(text: str, *, source: str) -> Record:
    """Parse TOML; raise StateError that names ``source`` and the line when it is not."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise StateError(f"'{source}' is not TOML: {error}.") from error
    except RecursionError as error:
        raise StateError(f"'{source}' is not TOML that anybody wrote: it is nested too deeply.") from error


def read(path: Path, *, version: int) -> Record:
    """Read a record that has at most format ``version`` and return it without its ``format`` key.

    Raises StateError when it is missing, damaged or newer.
    """
    with translate_os_errors("read", path):
        content = path.read_bytes()
    try:
        record = parse(content.decode(), source=str(path))
    except UnicodeDecodeError as error:
        raise StateError(f"'{path}' is not TOML: it is not UTF-8 text.") from error
    found = record.pop("format", None)
    if type(found) is not int or found < 1:
        raise StateError(f"'{path}' does not say its format: expected a line such as 'format = {version}'.")
    if found > version:
        raise StateError(
            f"'{path}' has format {found}, and this program knows formats up to {version}.",
            hint="Use the newer version of vmimagemanager that wrote it.",
        )
    return record


def write(path: Path, record: Mapping[str, Any], *, version: int, mode: int = 0o644) -> None:
    """Write a record durably; keys whose value is None are left out (TOML has no null).

    Raises SpaceError or StateError, leaving the old record as it was.
    """
    replace_file(path, dump({"format": version, **record}).encode(), mode=mode)


def dump(record: Mapping[str, Any]) -> str:
    """Return a record as TOML text, without the keys whose value is None."""
    return tomli_w.dumps(_without_none(record))


def _without_none(record: Mapping[str, Any]) -> Record:
    return {key: _clean(value) for key, value in record.items() if value is not None}


def _clean(value: object) -> object:
    if isinstance(value, Mapping):
        return _without_none(value)
    return [_clean(item) for item in value] if isinstance(value, list | tuple) else value
