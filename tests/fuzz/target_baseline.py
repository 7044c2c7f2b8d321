"""A baseline that somebody edited by hand, or merged."""

from __future__ import annotations

from pathlib import Path

from vmimagemanager.trap import Baseline

NAME = "baseline"


def read(content: bytes, folder: Path) -> None:
    path = folder / "deps.toml"
    path.write_bytes(content)
    baseline = Baseline.read(path)
    baseline.write(path)
    assert Baseline.read(path) == baseline
