"""The images that can be built by name, and what a recipe says."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from vmimagemanager.errors import ImageError
from vmimagemanager.units import Size

DISK_SIZE = Size(8 << 30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """What differs between the distributions that mmdebstrap installs.

    ``title`` is for people, ``keyring`` what the archive is signed with and ``keyring_package`` the host's package that
    holds it, ``mirror`` and ``security`` where the archive is, ``kernel`` the package of a kernel for virtual machines.
    """

    title: str
    keyring: Path
    keyring_package: str
    mirror: str
    security: str
    kernel: str
    components: tuple[str, ...]


DISTRIBUTIONS = {
    "debian": Distribution(
        title="Debian",
        keyring=Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
        keyring_package="debian-archive-keyring",
        mirror="http://deb.debian.org/debian",
        security="http://security.debian.org/debian-security",
        kernel="linux-image-cloud-amd64",
        components=("main",),
    ),
    "ubuntu": Distribution(
        title="Ubuntu",
        keyring=Path("/usr/share/keyrings/ubuntu-archive-keyring.gpg"),
        keyring_package="ubuntu-keyring",
        mirror="http://archive.ubuntu.com/ubuntu",
        security="http://security.ubuntu.com/ubuntu",
        kernel="linux-image-virtual",
        components=("main", "universe"),  # the guest agent is in universe
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LaidIn:
    """A file that is laid into the tree: ``path`` in the guest, absolute, owned by root."""

    path: str
    content: bytes
    mode: int = 0o644


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What an image is built of.

    ``packages`` come beside those that every image has; ``files`` are laid in before ``hooks`` run in the tree, in
    their order.  With ``uefi`` or ``bios``, one of the two at most, the disk has a boot loader of its own, for that
    firmware.  A ``cloud`` image has cloud-init in place of an agent and of all that is ours, and its boxes get a seed.
    ``epoch`` is the time that nothing in the image is younger than, instead of that of the archive's newest Release
    file.
    """

    name: str
    suite: str
    description: str
    distribution: str = "debian"
    components: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    mirror: str | None = None
    size: Size = DISK_SIZE
    files: tuple[LaidIn, ...] = ()
    hooks: tuple[bytes, ...] = ()
    user: str = "root"
    uefi: bool = False
    bios: bool = False
    cloud: bool = False
    epoch: datetime | None = None

    @property
    def release(self) -> str:
        """The release's number, where it is known, else its name."""
        return _RELEASES.get(self.suite, self.suite)

    @property
    def starts_itself(self) -> bool:
        """Whether the disk has a boot loader of its own."""
        return self.uefi or self.bios

    @property
    def title(self) -> str:
        """What is installed, for people: ``Debian bookworm``."""
        return f"{DISTRIBUTIONS[self.distribution].title} {self.suite}"


_RELEASES = {"bullseye": "11", "bookworm": "12", "trixie": "13", "jammy": "22.04", "noble": "24.04"}
_WHAT = "small, with sshd and the guest agent"
_STARTS = "small, with a boot loader for"

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(name="debian-12", suite="bookworm", description=f"Debian 12, {_WHAT}"),
        Recipe(name="debian-13", suite="trixie", description=f"Debian 13, {_WHAT}"),
        Recipe(name="debian-12-uefi", suite="bookworm", description=f"Debian 12, {_STARTS} UEFI", uefi=True),
        Recipe(name="debian-13-uefi", suite="trixie", description=f"Debian 13, {_STARTS} UEFI", uefi=True),
        Recipe(name="debian-12-bios", suite="bookworm", description=f"Debian 12, {_STARTS} BIOS", bios=True),
        Recipe(name="debian-13-bios", suite="trixie", description=f"Debian 13, {_STARTS} BIOS", bios=True),
        Recipe(name="ubuntu-24.04", suite="noble", description=f"Ubuntu 24.04, {_WHAT}", distribution="ubuntu"),
    )
}


def recipe(name: str) -> Recipe:
    """Return the recipe of this name; raise ImageError that lists those that exist."""
    found = RECIPES.get(name)
    if found is None:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        raise ImageError(
            f"There is no recipe for an image named '{name}'." + (f"  Did you mean '{near[0]}'?" if near else ""),
            hint=f"These can be built: {', '.join(RECIPES)}.  Others need a file: --recipe FILE",
        )
    return found
