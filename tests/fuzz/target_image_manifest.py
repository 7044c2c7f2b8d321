"""The manifest of an image, as a shared store hands it out."""

from __future__ import annotations

from pathlib import Path

from vmimagemanager import records
from vmimagemanager.images import manifest
from vmimagemanager.images.selection import Selection

NAME = "image-manifest"


def read(content: bytes, folder: Path) -> None:
    path = folder / manifest.FILE
    path.write_bytes(content)
    image = manifest.read(folder, folder.joinpath)
    # Whatever is believed can be written, and is the same when it is read back.
    again = folder / "again"
    again.mkdir(exist_ok=True)
    manifest.write(again, image)
    assert manifest.read(again, folder.joinpath) == image
    assert records.dump(manifest.to_record(image))
    Selection.parse("os=debian release>=12 created>2020-01-01 size>1M packages~gcc generation<=5").holds(image)
