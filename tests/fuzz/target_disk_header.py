"""The header of a disk image of any format."""

from __future__ import annotations

from pathlib import Path

from vmimagemanager.images import foreign

NAME = "disk-header"


def read(content: bytes, folder: Path) -> None:
    path = folder / "disk"
    path.write_bytes(content)
    found = foreign.detect(path)
    if found is not None:
        assert 0 < foreign.virtual_size(path, found, named="the disk").bytes <= foreign.LARGEST.bytes
