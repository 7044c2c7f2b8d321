"""The images that can be built by name."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from vmimagemanager.errors import ImageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A name, and the Debian suite that is built under it; with ``uefi`` its disk has a boot loader of its own."""

    name: str
    suite: str
    description: str
    uefi: bool = False


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(name="debian-12", suite="bookworm", description="Debian 12, small, with sshd and the guest agent"),
        Recipe(name="debian-13", suite="trixie", description="Debian 13, small, with sshd and the guest agent"),
        Recipe(name="debian-12-uefi", suite="bookworm", description="Debian 12, small, with a boot loader", uefi=True),
        Recipe(name="debian-13-uefi", suite="trixie", description="Debian 13, small, with a boot loader", uefi=True),
    )
}


def recipe(name: str) -> Recipe:
    """Return the recipe of this name; raise ImageError that lists those that exist."""
    found = RECIPES.get(name)
    if found is None:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        raise ImageError(
            f"There is no recipe for an image named '{name}'." + (f"  Did you mean '{near[0]}'?" if near else ""),
            hint=f"These can be built: {', '.join(RECIPES)}.",
        )
    return found
