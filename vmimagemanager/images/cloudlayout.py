"""What is laid into a tree that is to be a cloud image: cloud-init, in place of what gives our own images an identity.

Such a system has no agent, no network configuration and no condition of its SSH server: a seed says all of it.
"""

from __future__ import annotations

from vmimagemanager.images import biosboot, bootable, layout
from vmimagemanager.images.catalogue import Recipe
from vmimagemanager.images.layout import Entries

_OURS = frozenset(
    {
        "etc/ssh/sshd_config.d/vmimagemanager.conf",
        "etc/systemd/network/80-vmimagemanager.network",
        "etc/systemd/system/ssh.service.d/vmimagemanager.conf",
    }
)
# cloud-init looks for no other cloud: each look takes seconds, and what is found could be anybody's.
_SOURCES = {"etc/cloud/cloud.cfg.d/90-vmimagemanager.cfg": "datasource_list: [NoCloud, None]\n"}


def packages(recipe: Recipe) -> tuple[str, ...]:
    """Return the packages that every image of the recipe's kind has."""
    if not recipe.cloud:
        return layout.PACKAGES
    return (*(package for package in layout.PACKAGES if package != "qemu-guest-agent"), "cloud-init")


def system(recipe: Recipe) -> Entries:
    """Return what is laid in at the end."""
    entries = layout.SYSTEM
    if recipe.cloud:
        entries = {**{name: entry for name, entry in entries.items() if name not in _OURS}, **_SOURCES}
    return layout.on_partition(entries, partition(recipe))


def partition(recipe: Recipe) -> int:
    """Return the number of the partition that the system is in, or 0 where the disk has none."""
    if recipe.uefi:
        return bootable.PARTITION
    return biosboot.PARTITION if recipe.bios else 0
