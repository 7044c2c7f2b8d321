"""The health of the state directory: its own record, its host, and the records of its boxes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from vmimagemanager.boxes.record import BoxRecord
from vmimagemanager.doctor.check import Check, failure, ok
from vmimagemanager.errors import StateError
from vmimagemanager.state import StateDirectory

NAME = "records"


def checks(folder: Path, boxes: list[BoxRecord], *, shared: bool) -> Iterator[Check]:
    """Say whether every record can be read; add those of the boxes to ``boxes``.  Of a new directory, say nothing."""
    if not os.path.exists(folder / "state.toml"):  # noqa: PTH110 - opening would make it; closed is another line's
        return
    try:
        state = StateDirectory.open(folder, shared=shared)
    except StateError as error:
        yield failure(NAME, error.message, error.hint)
        return
    damaged = False
    for name in state.box_names():
        try:
            boxes.append(BoxRecord.read(state.box(name)))
        except StateError as error:
            damaged = True
            yield failure(NAME, error.message, error.hint)
    if not damaged:
        count = {0: "no box", 1: "1 box"}.get(len(boxes), f"{len(boxes)} boxes")
        yield ok(NAME, f"The state directory belongs to this host and has {count}; every record can be read.")
