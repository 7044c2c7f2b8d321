"""A file that declares what is needed; its first line is what it is called, as that says in which format it is."""

from __future__ import annotations

from pathlib import Path

from vmimagemanager.trap import declared

NAME = "declared"
NAMES = (b"control", b"pyproject.toml", b"package.json", b"requirements.txt", b"needed")


def read(content: bytes, folder: Path) -> None:
    first, _, text = content.partition(b"\n")
    path = folder / (first if first in NAMES else NAMES[sum(first) % len(NAMES)]).decode()
    path.write_bytes(text)
    for need in declared.read(path):
        assert need.managers
        assert need.names
        assert all(need.names)
        assert need.source
