"""The catalogue of cloud images, as rows of a table and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmimagemanager.images.cloud import CloudImage

HEADER = ("IMAGE", "TITLE", "FOR", "USER", "CHECKED")
UNVERIFIED = "unverified"


def row(image: CloudImage) -> tuple[str, ...]:
    """Return the cells of an entry, as `HEADER` names them."""
    return (image.name, image.title, " ".join(image.architectures), image.user, checked(image))


def checked(image: CloudImage) -> str:
    """Return the day on which somebody compared an entry with its source, or that nobody has."""
    return UNVERIFIED if image.checked is None else image.checked.isoformat()


def document(image: CloudImage) -> dict[str, Any]:
    """Return an entry for JSON."""
    return {
        "name": image.name,
        "title": image.title,
        "user": image.user,
        "url": image.url,
        "kind": image.kind.value,
        "firmware": image.firmware.value,
        "architectures": dict(image.architectures),
        "checksums": image.checksums or None,
        "digests": dict(image.digests),
        "signature": image.signature or None,
        "key": image.key or None,
        "keyrings": [str(path) for path in image.keyrings],
        "source": image.source,
        "checked": None if image.checked is None else image.checked.isoformat(),
        "origin": str(image.origin),
    }
