"""Base images, as rows of a table, as lines and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmimagemanager.report.boxes import moment
from vmimagemanager.units import Size

if TYPE_CHECKING:
    from vmimagemanager.images import Image

HEADER = ("IMAGE", "BUILT", "SIZE", "ON DISK", "PACKAGES", "DESCRIPTION")


def row(image: Image) -> tuple[str, ...]:
    """Return the cells of an image, as `HEADER` names them."""
    return (
        image.address,
        moment(image.created),
        str(image.disk_size),
        on_disk(image).human(),
        str(len(image.packages)),
        image.description,
    )


def lines(image: Image) -> list[str]:
    """Return all that is known about an image, its packages last."""
    facts = [
        ("description", image.description),
        ("built", moment(image.created)),
        ("architecture", image.architecture),
        ("disk", f"{image.disk_size}, {on_disk(image).human()} on the host"),
        ("user", image.user),
        ("agent", "yes" if image.agent else "no"),
        ("firmware", image.firmware),
        *([("seed", image.seed)] if image.seed else []),
        ("command line", image.command_line or "none: it boots from its disk"),
        *((f"{role} file", str(path)) for role, path in image.files.items()),
    ]
    width = max(len(key) for key, _ in facts)
    shown = [image.address, *(f"  {key:{width}}  {value}" for key, value in facts)]
    if image.packages:
        shown += [f"  {len(image.packages)} packages:"]
        shown += [f"    {name} {version}" for name, version in image.packages.items()]
    return shown


def document(image: Image) -> dict[str, Any]:
    """Return an image for JSON."""
    return {
        "address": image.address,
        "name": image.name,
        "generation": image.generation,
        "created": image.created.isoformat(),
        "description": image.description,
        "architecture": image.architecture,
        "disk_size": image.disk_size.bytes,
        "on_disk": on_disk(image).bytes,
        "agent": image.agent,
        "user": image.user,
        "firmware": image.firmware,
        "seed": image.seed or None,
        "command_line": image.command_line,
        "files": {role: str(path) for role, path in image.files.items()},
        "digests": dict(image.digests),
        "packages": dict(image.packages),
    }


def on_disk(image: Image) -> Size:
    """Return the space that the image's files take; one that is missing takes none."""
    return Size(sum(path.stat().st_blocks * 512 for path in image.files.values() if path.exists()))
