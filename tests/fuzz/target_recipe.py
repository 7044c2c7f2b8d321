"""A recipe that somebody wrote."""

from __future__ import annotations

from pathlib import Path

from vmimagemanager.images import recipefile

NAME = "recipe"


def read(content: bytes, folder: Path) -> None:
    path = folder / "recipe.toml"
    path.write_bytes(content)
    recipe = recipefile.read(path, "some")
    assert not any(word.startswith("-") for word in (recipe.suite, *recipe.packages, *recipe.components))
