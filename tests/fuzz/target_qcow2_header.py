"""The header of a qcow2 that somebody else made."""

from __future__ import annotations

from pathlib import Path

from vmimagemanager.images import chain

NAME = "qcow2-header"


def read(content: bytes, folder: Path) -> None:
    path = folder / "disk"
    path.write_bytes(content)
    chain.head(path)
    chain.parents(path, folder.joinpath)
    assert path in list(chain.walk(path))
