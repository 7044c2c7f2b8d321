"""The disk of a virtual appliance: an ova, which is a tar of a description, digests and disks (DMTF DSP0243).

Members are read out by what they are, never unpacked by their names; the digests that the archive holds are compared.
Its description is not obeyed: how the box is made is said by the box.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from pathlib import Path

from vmimagemanager.durable import require_space, translate_os_errors
from vmimagemanager.errors import ImageError
from vmimagemanager.files.tarstream import TarStream
from vmimagemanager.images.unpacking import unpacked
from vmimagemanager.names import quoted
from vmimagemanager.units import Size

DESCRIPTION = ".ovf"
_DIGESTS = ".mf"
_DISKS = (".vmdk", ".vdi", ".vhdx", ".qcow2")
_LONGEST_TEXT = 4 << 20
_MOST_MEMBERS = 100
_LINE = re.compile(r"(SHA1|SHA256|SHA512)\s*\(([^()]+)\)\s*=\s*([0-9a-fA-F]+)")


def take_out(source: Path, target: Path, *, named: str) -> None:
    """Write the one disk of an appliance to ``target``.

    Raises ImageError when it has no disk or several, when the archive is damaged, or when a digest does not match.
    """
    require_space(target.parent, Size(source.stat().st_size), purpose=f"Taking the disk out of '{named}'")
    found: dict[str, dict[str, str]] = {}
    text = ""
    disk = ""
    with unpacked(source, source=named, limit=Size(source.stat().st_size)) as stream:
        archive = TarStream(stream, stream.refusal)
        for member in archive:
            if not member.isreg() or member.name in found or len(found) == _MOST_MEMBERS:
                raise _refused(named, f"its member {quoted(member.name)} is no file, comes twice, or is one too many")
            if not found and not member.name.endswith(DESCRIPTION):
                raise _refused(named, f"it begins with {quoted(member.name)}, and not with its description")
            is_disk = member.name.lower().endswith(_DISKS)
            if is_disk and disk:
                raise _refused(named, f"it has several disks: {quoted(disk)} and {quoted(member.name)}")
            disk = member.name if is_disk else disk
            digests, content = _read(archive, member, target if is_disk else None, named)
            found[member.name] = digests
            text += content if member.name.endswith(_DIGESTS) else ""
    if not disk:
        raise _refused(named, f"it has no disk: nothing in it ends with {', '.join(_DISKS)}")
    _compare(found, text, named)


def _read(archive: TarStream, member: tarfile.TarInfo, target: Path | None, named: str) -> tuple[dict[str, str], str]:
    hashes = {name: hashlib.new(name, usedforsecurity=False) for name in ("sha1", "sha256", "sha512")}
    kept = b""
    if target is None:
        if member.size > _LONGEST_TEXT:
            raise _refused(named, f"its member {quoted(member.name)} has {Size(member.size).human()}")
        kept = b"".join(archive.content())
        for each in hashes.values():
            each.update(kept)
    else:
        with translate_os_errors("write", target), target.open("wb") as written:
            for piece in archive.content():
                written.write(piece)
                for each in hashes.values():
                    each.update(piece)
    return {name: each.hexdigest() for name, each in hashes.items()}, kept.decode("utf-8", "replace")


def _compare(found: dict[str, dict[str, str]], text: str, named: str) -> None:
    for algorithm, name, digest in _LINE.findall(text):
        if name in found and found[name][algorithm.lower()] != digest.lower():
            raise _refused(named, f"the content of {quoted(name)} is not what its {algorithm} says")


def _refused(named: str, reason: str) -> ImageError:
    return ImageError(f"The appliance '{named}' cannot be taken in: {reason}.")
