"""The merged configuration, which remembers where each value came from."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from vmimagemanager import names
from vmimagemanager.config import files, schema
from vmimagemanager.config.schema import Spot
from vmimagemanager.config.settings import BOX_KEYS, HOST_KEYS, BoxSettings, HostSettings, arguments, attribute
from vmimagemanager.errors import UsageError

_log = logging.getLogger(__name__)

BUILT_IN = "built-in default"
SYSTEM_STATE = Path("/var/lib/vmimagemanager")
VARIABLES = {"uri": ("VMIM_URI", "LIBVIRT_DEFAULT_URI"), "state-dir": ("VMIM_STATE_DIR",)}


@dataclass(frozen=True, slots=True)
class Setting:
    """A value and where it came from: a file and key, an environment variable, an option, or the built-in default."""

    value: object
    origin: str


Settings = Mapping[str, Setting]


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """What was asked for: which files were read, the highest precedence first, and what they say together.

    ``notices`` are whole sentences about files that were ignored; they have been logged as warnings, too.
    """

    files: tuple[Path, ...]
    notices: tuple[str, ...]
    host_table: Settings
    defaults_table: Settings
    box_tables: Mapping[str, Settings]

    @property
    def host(self) -> HostSettings:
        """The settings that hold for all boxes."""
        return HostSettings(**arguments({key: setting.value for key, setting in self.explain_host().items()}))

    @property
    def box_names(self) -> tuple[str, ...]:
        """The names of the boxes that have a table of their own, sorted."""
        return tuple(sorted(self.box_tables))

    def box(self, name: str, options: Mapping[str, object] | None = None) -> BoxSettings:
        """Return the settings of a box: ``options`` first, then ``[box.NAME]``, then ``[defaults]``.

        ``options`` has the keys of the file (or the attributes' names) and values as in the file or already read; None
        means not given, and relative paths start at the current folder.  Raises UsageError for what is not understood.
        """
        return BoxSettings(**arguments({key: setting.value for key, setting in self.explain(name, options).items()}))

    def explain(self, name: str | None, options: Mapping[str, object] | None = None) -> dict[str, Setting]:
        """Return every key of a box (None: one without a table of its own) with its value and where that came from."""
        built_in = BoxSettings()
        return _first_of(
            _from_options(options, BOX_KEYS),
            self.box_tables.get(name, {}) if name is not None else {},
            self.defaults_table,
            {key: Setting(getattr(built_in, attribute(key)), BUILT_IN) for key in BOX_KEYS},
        )

    def explain_host(self) -> dict[str, Setting]:
        """Return every key of ``[host]`` with its value and where that came from."""
        uri = str(self.host_table["uri"].value) if "uri" in self.host_table else _default_uri()
        built_in = HostSettings(uri=uri, state_dir=_default_state(uri))
        defaults = {key: Setting(getattr(built_in, attribute(key)), BUILT_IN) for key in HOST_KEYS}
        defaults["state-dir"] = Setting(built_in.state_dir, f"{BUILT_IN} for {uri}")
        return _first_of(self.host_table, defaults)


def load(explicit: Path | None = None, *, host_options: Mapping[str, object] | None = None) -> Configuration:
    """Read the configuration: ``explicit`` or ``$VMIM_CONFIG`` alone, else all that are found, merged.

    ``host_options`` are options for the keys of ``[host]``; they win over the environment, which wins over the files.
    Raises ConfigError that names file, key, what was expected and the nearest key, or UsageError for an option.
    """
    notices: list[str] = []
    documents = files.find(explicit, notices)
    for notice in notices:
        _log.warning("%s", notice)
    tables = [_read(document) for document in documents]
    boxes = sorted({name for table in tables for name in table if name.startswith("box.")})
    return Configuration(
        files=tuple(document.path for document in documents),
        notices=tuple(notices),
        host_table=_first_of(
            _from_options(host_options, HOST_KEYS), _from_environment(), *_each(tables, "host"), order=HOST_KEYS
        ),
        defaults_table=_first_of(*_each(tables, "defaults"), order=BOX_KEYS),
        box_tables=MappingProxyType(
            {name.removeprefix("box."): _first_of(*_each(tables, name), order=BOX_KEYS) for name in boxes}
        ),
    )


def _each(tables: Iterable[Mapping[str, Settings]], name: str) -> Iterable[Settings]:
    return (table.get(name, {}) for table in tables)


def _first_of(*layers: Settings, order: Iterable[str] = ()) -> dict[str, Setting]:
    """Merge key by key: the first layer that has a key decides it; keys come in ``order``, or as in the last layer."""
    merged: dict[str, Setting] = {}
    for layer in reversed(layers):
        merged |= layer
    return {key: merged[key] for key in order or merged if key in merged}


def _read(document: files.Document) -> dict[str, Settings]:
    """Read one file into its tables: 'host', 'defaults', and 'box.NAME' for each box."""
    spot = Spot(prefix=f"In '{names.printable(document.path)}', ", folder=document.path.parent)
    for key in document.table:
        if key not in ("host", "defaults", "box"):
            raise spot.child(key).unknown(["host", "defaults", "box"], _belongs(key))
    read = {
        "host": _table(document, ("host",), HOST_KEYS, spot),
        "defaults": _table(document, ("defaults",), BOX_KEYS, spot),
    }
    for name in schema.table(document.table.get("box", {}), spot.child("box")):
        if not names.is_name(name):
            raise spot.error(f"{spot.prefix}{names.quoted(name)} in 'box' is not a box name: expected {names.RULE}.")
        read[f"box.{name}"] = _table(document, ("box", name), BOX_KEYS, spot)
    return read


def _table(document: files.Document, path: tuple[str, ...], keys: schema.Keys, spot: Spot) -> Settings:
    value: object = document.table
    for key in path:
        value = schema.table(value, spot).get(key, {})
        spot = spot.child(key)
    elsewhere = {key: _belongs(key) for key in (*BOX_KEYS, *HOST_KEYS)}
    return {
        key: Setting(parsed, f"{names.printable(document.path)}: {spot.child(key).key}")
        for key, parsed in schema.read_table(value, keys, spot, elsewhere=elsewhere).items()
    }


def _belongs(key: str) -> str:
    key = key.replace("_", "-")
    if key in HOST_KEYS:
        return f"host.{key}"
    return f"defaults.{key}" if key in BOX_KEYS else ""


def _from_options(options: Mapping[str, object] | None, keys: schema.Keys) -> Settings:
    given = {key.replace("_", "-"): value for key, value in (options or {}).items() if value is not None}
    spot = Spot(prefix="The option ", error=UsageError)
    return {key: Setting(value, f"option {key}") for key, value in schema.read_table(given, keys, spot).items()}


def _from_environment() -> Settings:
    spot = Spot(prefix="The environment variable ")
    found = {}
    for key, variables in VARIABLES.items():
        variable = next((variable for variable in variables if os.environ.get(variable)), None)
        if variable is not None:
            value = HOST_KEYS[key](os.environ[variable], spot.child(variable))
            found[key] = Setting(value, f"environment variable {variable}")
    return found


def _default_uri() -> str:
    """Return what libvirt itself would choose for this user."""
    return "qemu:///system" if os.geteuid() == 0 else "qemu:///session"


def _default_state(uri: str) -> Path:
    if uri.split("?", maxsplit=1)[0].endswith("/system"):
        return SYSTEM_STATE
    import platformdirs

    return platformdirs.user_data_path("vmimagemanager")
