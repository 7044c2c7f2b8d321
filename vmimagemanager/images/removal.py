"""Taking generations away, with the blobs that nothing needs any more."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmimagemanager.durable import occupied
from vmimagemanager.errors import ImageError
from vmimagemanager.images import manifest
from vmimagemanager.images.generations import Generations
from vmimagemanager.images.manifest import Image
from vmimagemanager.units import Size

InUse = Callable[[], Mapping[str, Collection[str]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """The generations that were removed, or would be; those that were spared, and why; and the space that it gives."""

    removed: tuple[Image, ...]
    spared: Mapping[Image, str]
    freed: Size


def remove(generations: Generations, address: str, *, used_by: InUse) -> tuple[Sequence[Image], Size]:
    """Remove one generation or all of a name, as `ImageStore.remove` says."""
    name, generation = manifest.parse_address(address)
    with generations.locked():
        latest = generations.get(address)
        removed = [latest] if generation is not None else [each for each in generations.all() if each.name == name]
        for image in removed:
            if image.pinned:
                raise ImageError(
                    f"The image '{image.address}' is pinned.",
                    hint=f"vmimagemanager image unpin {image.address}",
                )
        used = used_by()
        users = _users(generations, removed, used)
        if users:
            raise ImageError(
                f"The image '{address}' is in use by {', '.join(users)}.",
                hint=f"Undefine what stands on it first: vmimagemanager undefine {users[0]}",
            )
        return removed, _remove(generations, removed, used)


def prune(generations: Generations, name: str, *, keep: int, used_by: InUse, remove: bool) -> Pruned:
    """Remove old generations, as `ImageStore.prune` says."""
    with generations.locked():
        latest = generations.get(manifest.parse_name(name))
        family = [image for image in generations.all() if image.name == latest.name]
        used = used_by()
        spared, going = {}, []
        for image in family[: -keep or None]:
            users = _users(generations, [image], used)
            if image.pinned or users:
                spared[image] = "pinned" if image.pinned else f"in use by {', '.join(users)}"
            else:
                going.append(image)
        blobs = _going(generations, going) - set(used)
        freed = Size(sum(occupied(generations.blobs.path(digest)).bytes for digest in blobs))
        if remove:
            freed = _remove(generations, going, used)
        return Pruned(removed=tuple(going), spared=spared, freed=freed)


def unneeded_blobs(generations: Generations, used_by: InUse, *, remove: bool) -> Sequence[tuple[Path, Size]]:
    """Return the blobs that no image has and nothing stands on, with what they take; remove them if asked to."""
    with generations.locked():
        needed = _needed(generations) | set(used_by())
        found = [(path, occupied(path)) for path in generations.blobs.unneeded(needed)]
        if remove:
            generations.blobs.sweep(needed)
        return found


def _users(generations: Generations, removed: Collection[Image], used: Mapping[str, Collection[str]]) -> Sequence[str]:
    """Return who uses one of these generations, or a file that nothing else needs."""
    asked = {image.address for image in removed} | _going(generations, removed)
    return sorted({user for each in asked for user in used.get(each, ())})


def _going(generations: Generations, removed: Collection[Image]) -> set[str]:
    """Return the digests that nothing but the ``removed`` generations needs."""
    addresses = {image.address for image in removed}
    kept = {digest for image in generations.all() if image.address not in addresses for digest in image.needed}
    return {digest for image in removed for digest in image.needed} - kept


def _remove(generations: Generations, removed: Iterable[Image], used: Mapping[str, Collection[str]]) -> Size:
    for image in removed:
        generations.withdraw(image)
    return generations.blobs.sweep(_needed(generations) | set(used))


def _needed(generations: Generations) -> set[str]:
    return {digest for image in generations.all() for digest in image.needed}
