"""The configuration in force and where each value came from: as text that is a configuration itself, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vmimagemanager import records
from vmimagemanager.config import Configuration, Setting, plain
from vmimagemanager.names import printable

FORMAT = 1
_INSTEAD = {"user": "it is the image's"}


def lines(configuration: Configuration, box: str | None = None) -> list[str]:
    """Return `config show`: everything, or ``[host]`` and one ``box``; the lines together are valid TOML."""
    read = [f"#   {printable(path)}" for path in configuration.files] or ["#   no file"]
    shown = ["# Read, the highest precedence first:", *read, *(f"# {notice}" for notice in configuration.notices)]
    shown += ["", *_table("host", configuration.explain_host())]
    if box is not None:
        return [*shown, "", *_table(_path(box), configuration.explain(box))]
    shown += ["", *_table("defaults", configuration.explain(None))]
    for name in configuration.box_names:
        shown += ["", *_table(_path(name), configuration.explain(name))]
    return shown


def document(configuration: Configuration, box: str | None = None) -> dict[str, Any]:
    """Return the same for JSON: for every key its value as TOML holds it (null: not set) and its origin."""
    names = configuration.box_names if box is None else (box,)
    return {
        "format": FORMAT,
        "kind": "config",
        "files": [str(path) for path in configuration.files],
        "notices": list(configuration.notices),
        "host": _explained(configuration.explain_host()),
        "defaults": _explained(configuration.explain(None)),
        "boxes": {name: _explained(configuration.explain(name)) for name in names},
    }


def _explained(settings: Mapping[str, Setting]) -> dict[str, Any]:
    return {key: {"value": plain(setting.value), "origin": setting.origin} for key, setting in settings.items()}


def _path(box: str) -> str:
    return f'box."{box}"' if "." in box else f"box.{box}"


def _table(path: str, settings: Mapping[str, Setting]) -> list[str]:
    assignments, unset, hooks = [], [], []
    for key, setting in settings.items():
        value = plain(setting.value)
        if value is None:
            unset.append(f"# {key} is not set" + (f": {_INSTEAD[key]}" if key in _INSTEAD else ""))
        elif key == "hooks" and value:
            for entry in value:
                hooks += ["", f"# {setting.origin}", f"[[{path}.hooks]]", *records.dump(entry).splitlines()]
        else:
            assignments.append((f"{key} = {_inline(value)}", setting.origin))
    width = min(max(len(assignment) for assignment, _ in assignments), 60)
    return [f"[{path}]", *(f"{text:{width}}  # {origin}" for text, origin in assignments), *unset, *hooks]


def _inline(value: object) -> str:
    """Return a value as TOML on one line (`records.dump` would spread a list over several)."""
    if isinstance(value, list):
        return f"[{', '.join(_inline(entry) for entry in value)}]"
    return records.dump({"value": value}).removeprefix("value = ").rstrip("\n")
