"""How far long work is: a bar on a terminal, else a line for each phase with -v."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vmimagemanager.cli.invocation import Invocation

if TYPE_CHECKING:
    from vmimagemanager.progress import Progress

_log = logging.getLogger(__name__)


@contextmanager
def shown(invocation: Invocation) -> Iterator[Progress]:
    """Yield what tells the user how far the work of a block is."""

    def log(phase: str, fraction: float | None) -> None:  # noqa: ARG001 - a Progress
        _log.info("%s", phase)

    if invocation.quiet or invocation.verbose or not sys.stderr.isatty():
        yield log
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=1.0)

        def show_bar(phase: str, fraction: float | None) -> None:
            bar.update(task, description=phase, completed=fraction if fraction is not None else 0.0)

        yield show_bar
