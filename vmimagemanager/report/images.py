"""Base images, as rows of a table, as lines and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmimagemanager.report.boxes import moment
from vmimagemanager.report.deeds import phases, seconds
from vmimagemanager.units import Size

if TYPE_CHECKING:
    from vmimagemanager.boxes.storing import Stored
    from vmimagemanager.images import Image
    from vmimagemanager.images.difference import Difference
    from vmimagemanager.images.export import Exported
    from vmimagemanager.images.pull import Pulled
    from vmimagemanager.images.share import Pushed
    from vmimagemanager.images.store import Pruned

HEADER = ("IMAGE", "BUILT", "SIZE", "ON DISK", "PACKAGES", "DESCRIPTION")


def row(image: Image) -> tuple[str, ...]:
    """Return the cells of an image, as `HEADER` names them."""
    return (
        image.address,
        moment(image.created),
        str(image.disk_size),
        on_disk(image).human(),
        str(len(image.packages)),
        f"{image.description} (pinned)" if image.pinned else image.description,
    )


def lines(image: Image) -> list[str]:
    """Return all that is known about an image, its packages last."""
    facts = [
        ("description", image.description),
        ("built", moment(image.created)),
        *(("system", " ".join(filter(None, (image.os, image.release)))),) * bool(image.os),
        ("architecture", image.architecture),
        ("disk", f"{image.disk_size}, {on_disk(image).human()} on the host"),
        ("user", image.user),
        ("agent", "yes" if image.agent else "no"),
        ("firmware", image.firmware),
        *([("seed", image.seed)] if image.seed else []),
        ("command line", image.command_line or "none: it boots from its disk"),
        *((key, value) for key, value in (("made of", image.source), ("stored from", image.stored_from)) if value),
        *((("pinned", "yes"),) * image.pinned),
        *((f"{role} file", str(path)) for role, path in image.files.items()),
        *(("stands on", digest) for digest in image.parents),
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
        "os": image.os,
        "release": image.release,
        "source": image.source,
        "stored_from": image.stored_from,
        "pinned": image.pinned,
        "parents": list(image.parents),
        "digests": dict(image.digests),
        "packages": dict(image.packages),
    }


def on_disk(image: Image) -> Size:
    """Return the space that the image's files take; one that is missing takes none."""
    return Size(sum(path.stat().st_blocks * 512 for path in image.files.values() if path.exists()))


def stored_line(box: str, stored: Stored, *, verbose: bool) -> str:
    """Return what became of a box's disk, on one line."""
    image = stored.image
    stands = f", on {len(image.parents)} below" if image.parents else ""
    took = phases(stored.phases) if verbose else seconds(sum(stored.phases.values()))
    return f"{box}: stored as {image.address} in {took}, {on_disk(image).human()} on disk{stands}"


def exported_line(exported: Exported) -> str:
    return f"{exported.address}: written as {exported.format} in {seconds(exported.seconds)}, {exported.size.human()}"


def exported_document(exported: Exported) -> dict[str, Any]:
    return {
        "address": exported.address,
        "file": str(exported.path),
        "image_format": exported.format,
        "bytes": exported.size.bytes,
        "seconds": round(exported.seconds, 4),
    }


def pushed_line(address: str, pushed: Pushed) -> str:
    if pushed.was_there:
        return f"{address}: was there already, as {pushed.address}"
    return (
        f"{address}: pushed as {pushed.address} in {seconds(pushed.seconds)}, {_share(pushed.travelled, pushed.size)}"
    )


def pushed_document(pushed: Pushed) -> dict[str, Any]:
    return {
        "address": pushed.address,
        "travelled": pushed.travelled.bytes,
        "bytes": pushed.size.bytes,
        "was_there": pushed.was_there,
        "seconds": round(pushed.seconds, 4),
    }


def pulled_line(address: str, pulled: Pulled) -> str:
    if pulled.was_here:
        return f"{address}: was here already, as {pulled.image.address}"
    took = seconds(pulled.seconds)
    return f"{address}: pulled as {pulled.image.address} in {took}, {_share(pulled.travelled, pulled.size)}"


def pulled_document(pulled: Pulled) -> dict[str, Any]:
    return {
        "image": document(pulled.image),
        "travelled": pulled.travelled.bytes,
        "bytes": pulled.size.bytes,
        "was_here": pulled.was_here,
        "seconds": round(pulled.seconds, 4),
    }


def pruned_lines(name: str, pruned: Pruned, *, removed: bool) -> list[str]:
    verb = "removed" if removed else "would be removed"
    shown = [f"{image.address}: {verb}" for image in pruned.removed]
    shown += [f"{image.address}: stays, {reason}" for image, reason in pruned.spared.items()]
    if not pruned.removed:
        return [*shown, f"{name}: nothing to remove"]
    return [*shown, f"{pruned.freed.human()} {'are free again' if removed else 'would be free again'}"]


def pruned_document(pruned: Pruned, *, removed: bool) -> dict[str, Any]:
    return {
        "removed": removed,
        "generations": [image.address for image in pruned.removed],
        "spared": {image.address: reason for image, reason in pruned.spared.items()},
        "bytes": pruned.freed.bytes,
    }


def difference_lines(difference: Difference) -> list[str]:
    """Return how two images differ: packages first, then files."""
    shown = [f"{difference.before} -> {difference.after}"]
    if difference.packages is None:
        shown.append("  packages: not known of one of them")
    else:
        shown.append(f"  packages: {_number(len(difference.packages))}")
        for name, (before, after) in difference.packages.items():
            if before is None or after is None:
                shown.append(f"    {'+' if before is None else '-'} {name} {after or before}")
            else:
                shown.append(f"    ! {name} {before} -> {after}")
    if difference.files is not None:
        marked = (("+", difference.files.added), ("-", difference.files.removed), ("!", difference.files.changed))
        shown.append(f"  files: {_number(sum(len(names) for _, names in marked))}")
        shown += [f"    {mark} {name}" for mark, names in marked for name in names]
    return shown


def difference_document(difference: Difference) -> dict[str, Any]:
    packages, files = difference.packages, difference.files
    return {
        "before": difference.before,
        "after": difference.after,
        "packages": None
        if packages is None
        else {name: {"before": before, "after": after} for name, (before, after) in packages.items()},
        "files": None
        if files is None
        else {"added": list(files.added), "removed": list(files.removed), "changed": list(files.changed)},
    }


def _number(count: int) -> str:
    return {0: "no difference", 1: "1 difference"}.get(count, f"{count} differences")


def _share(travelled: Size, size: Size) -> str:
    return f"{travelled.human()} of {size.human()} travelled"
