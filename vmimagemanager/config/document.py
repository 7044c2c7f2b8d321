"""Files with a format of their own, that people write or review: TOML with known keys, every mistake named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vmimagemanager import records
from vmimagemanager.config import schema
from vmimagemanager.config.schema import Spot
from vmimagemanager.errors import ConfigError, StateError
from vmimagemanager.names import printable


def is_format(version: int) -> schema.Parser:
    """Return the parser of a format, of which there is only this one."""

    def parse(value: object, spot: Spot) -> int:
        if value != version or isinstance(value, bool):
            raise spot.unexpected(value, f"the number {version}")
        return version

    return parse


def spot(source: Path, hint: str) -> Spot:
    """Return where errors of a file are said to be, and relative paths in it start."""
    return Spot(prefix=f"In '{printable(source)}', ", folder=source.absolute().parent, hint=hint)


def parse(content: bytes, keys: schema.Keys, where: Spot, *, source: Path, version: int) -> dict[str, Any]:
    """Return the values of a file's text; raise ConfigError that names ``source``, the key and what was expected."""
    try:
        table = records.parse(content.decode(), source=printable(source))
    except UnicodeDecodeError as error:
        raise ConfigError(f"'{printable(source)}' is not TOML: it is not UTF-8 text.", hint=where.hint) from error
    except StateError as error:
        raise ConfigError(error.message, hint=where.hint) from error
    values = schema.read_table(table, keys, where)
    if "format" not in values:
        raise ConfigError(f"{where.prefix}'format' is missing: expected 'format = {version}'.", hint=where.hint)
    return values
