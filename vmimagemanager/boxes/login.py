"""Whom a box is used as: who its settings name, or else the user that its image has."""

from __future__ import annotations

from vmimagemanager.config import BoxSettings, Channel
from vmimagemanager.images import Image

ROOT = "root"


def user_of(settings: BoxSettings, image: Image | None) -> str:
    """Return the user of a box with these settings on ``image``; None is the disk of an adopted domain.

    A guest that is asked over SSH, and was told nothing by a seed, is repaired over that: it is root's.
    """
    if settings.user is not None:
        return settings.user
    if image is None or (settings.channel is Channel.SSH and not image.seed):
        return ROOT
    return image.user
