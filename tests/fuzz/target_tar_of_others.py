"""The tar of a root file system that somebody made, compressed or not."""

from __future__ import annotations

import tarfile
from pathlib import Path

from vmimagemanager.images import rootfs
from vmimagemanager.images.filesystem import FileSystem
from vmimagemanager.units import Size

NAME = "tar-of-others"


def read(content: bytes, folder: Path) -> None:
    source, target = folder / "source", folder / "target"
    source.write_bytes(content)
    wanted = FileSystem(size=Size(4 << 20), uuid="", epoch=1)
    rootfs.rewrite(source, target, named="the archive", wanted=wanted)
    with tarfile.open(target) as archive:
        for member in archive:
            assert member.name == "." or member.name.startswith("./")
            assert ".." not in member.name.split("/")
            assert not member.isdev() or member.isfifo()
