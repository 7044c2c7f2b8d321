"""A virtual appliance: a tar of a description, digests and a disk."""

from __future__ import annotations

from pathlib import Path

from vmimagemanager.images import appliance

NAME = "appliance"


def read(content: bytes, folder: Path) -> None:
    source = folder / "source"
    source.write_bytes(content)
    appliance.take_out(source, folder / "disk", named="the appliance")
    assert (folder / "disk").exists()
