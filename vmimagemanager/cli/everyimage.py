"""The verb image with all verbs of its own."""

from __future__ import annotations

from vmimagemanager.cli import generations, imagefiles  # noqa: F401 - they add theirs
from vmimagemanager.cli.images import image

__all__ = ["image"]
