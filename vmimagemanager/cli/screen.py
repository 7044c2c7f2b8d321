"""What is printed: results on standard output, everything else on standard error, and nothing that moves a cursor."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

PREFIX = "vmimagemanager"


def say(*lines: str) -> None:
    """Print lines of a result on standard output."""
    for line in lines:
        print(safe(line))


def say_marked(mark: str, colour: str, line: str) -> None:
    """Print a line of a result that begins with a coloured word."""
    shown = f"{mark:9}"
    if colours(sys.stdout):
        shown = f"\033[{_COLOURS[colour]}m{shown}\033[0m"
    print(f"{shown}  {safe(line)}")


def note(*lines: str) -> None:
    """Print lines about the work on standard error."""
    for line in lines:
        print(safe(line), file=sys.stderr, flush=True)


def emit(kind: str, values: Mapping[str, Any]) -> None:
    """Print one JSON document of a ``kind``."""
    import json

    print(json.dumps({"format": 1, "kind": kind, **values}, indent=2))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table on standard output: fitted and coloured on a terminal, else in columns that nothing is cut off."""
    shown = [[safe(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _rich_table(header, shown)
        return
    widths = [max(map(len, column)) for column in zip(header, *shown, strict=True)]
    for row in [list(header), *shown]:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def safe(text: str) -> str:
    """Return one line of text without control characters: names, reasons and console lines come from others."""
    return "".join(
        character if character.isprintable() or character == "\t" else _escaped(character) for character in text
    )


def is_interactive() -> bool:
    """Whether there is somebody to ask."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def colours(stream: TextIO) -> bool:
    """Whether ``stream`` is a terminal that wants colours."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def _rich_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for title in header:
        shown.add_column(title, overflow="fold")
    for row in rows:
        shown.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    Console(highlight=False).print(shown)


_STYLES = {"running": "green", "off": "dim", "paused": "yellow", "crashed": "red", "damaged": "red", "-": "dim"}
_COLOURS = {"green": 32, "yellow": 33, "red": 31}
