"""The list of the pieces of a blob, as a shared store hands it out."""

from __future__ import annotations

from pathlib import Path

from vmimagemanager.images import chunks

NAME = "chunk-list"


def read(content: bytes, folder: Path) -> None:
    pieces = chunks.parse(content, sha512="0" * 128, source="the list")
    assert pieces.text().encode() == content
    assert pieces.size >= 0
