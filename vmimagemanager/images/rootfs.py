"""The tar of a root file system, as debootstrap, mmdebstrap or 'docker export' write one, made a disk.

Nothing of it is believed.  It is written anew, member by member, into a tar that can be unpacked below any folder:
relative names without ``..``, no member below a symbolic link, hard links to files that came before, no devices.
Kernel and initrd are taken out of that tar, and boxes are started with them.
"""

from __future__ import annotations

import re
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from vmimagemanager.durable import require_space, translate_os_errors
from vmimagemanager.errors import ImageError
from vmimagemanager.files.tarstream import BLOCK, XATTR, TarStream
from vmimagemanager.images import filesystem
from vmimagemanager.images.filesystem import FileSystem
from vmimagemanager.images.unpacking import unpacked
from vmimagemanager.names import quoted
from vmimagemanager.units import Size

# What is mounted over at each boot.  Devices are only expected there.
_OVERLAID = ("dev", "proc", "run", "sys")
_DEVICES = {tarfile.CHRTYPE: "character device", tarfile.BLKTYPE: "block device"}
_LONGEST_NAME, _LONGEST_PATH = 255, 4095
_LARGEST_ID = (1 << 32) - 2
_LARGEST_BOOT_FILE = 1 << 30
_LARGEST_STATUS = 64 << 20
_KERNEL = re.compile(r"\./(?:boot/vmlinuz-(?P<boot>[^/]+)|(?:usr/)?lib/modules/(?P<modules>[^/]+)/vmlinuz)")
# Debian, Fedora, SUSE and Arch, in this order.
_INITRDS = ("boot/initrd.img-{}", "boot/initramfs-{}.img", "boot/initrd-{}", "boot/initramfs-{}")
_STATUS = "./var/lib/dpkg/status"
_CAPABILITY = f"{XATTR}security.capability"
_LATEST = (1 << 33) - 1  # what GNU tar can write without an extension


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What was made of a root file system: a raw disk, what boots it, and Debian's packages, if it has any."""

    disk: Path
    kernel: Path | None
    initrd: Path | None
    status: str


def take_in(source: Path, stage: Path, *, named: str, wanted: FileSystem, boots: bool) -> Taken:
    """Make a raw disk of the tar ``source``, compressed or not, in the folder ``stage``.

    With ``boots`` a kernel has to be in it.  Raises ImageError for a tar that is damaged, that could write outside of
    the folder it is unpacked in, or that does not fit into ``wanted``; SpaceError and ToolError.
    """
    tar = stage / "root.tar"
    # Its content lies there three times for a moment: as a tar, as a tree and as a disk.
    require_space(stage, Size(3 * source.stat().st_size), purpose=f"Taking in '{named}'")
    youngest = rewrite(source, tar, named=named, wanted=wanted)
    require_space(stage, Size(2 * tar.stat().st_size), purpose=f"Unpacking '{named}'")
    with translate_os_errors("read", tar), tarfile.open(tar) as archive:
        members = {member.name: member for member in archive if member.isreg()}
        version, kernel = _kernel(members)
        if kernel is None and boots:
            raise ImageError(
                f"'{named}' has no kernel: nothing in it is named boot/vmlinuz-VERSION.",
                hint="A root file system has no boot loader.  Give a kernel and an initrd: --kernel, --initrd",
            )
        initrd = next((found for name in _INITRDS if (found := members.get(f"./{name.format(version)}"))), None)
        status = members.get(_STATUS)
        taken = Taken(
            disk=stage / "disk.raw",
            kernel=_copied(archive, kernel, stage / "kernel"),
            initrd=_copied(archive, initrd if kernel is not None else None, stage / "initrd"),
            status=_text(archive, status),
        )
    filesystem.fill(tar, taken.disk, replace(wanted, epoch=youngest))
    return taken


def rewrite(source: Path, target: Path, *, named: str, wanted: FileSystem) -> int:
    """Write the tar ``source`` anew as ``target``, so that it can be unpacked without a thought.

    Return the time of its youngest member, in seconds.

    Raises ImageError for members that nobody should unpack, and when it is larger than the file system.
    """
    survey = _Survey(named=named, limit=wanted.inodes)
    # Headers and padding take at most three blocks for each file.
    limit = Size(wanted.size.bytes + wanted.inodes * 3 * BLOCK)
    with (
        unpacked(source, source=named, limit=limit) as stream,
        translate_os_errors("write", target),
        target.open("wb") as written,
    ):
        archive = TarStream(stream, stream.refusal)
        youngest = 1  # 0 would be no time for mkfs
        for member in archive:
            name = survey.placed(member)
            if name is None:
                continue
            youngest = max(youngest, _moment(member))
            for folder in survey.new_parents(name):  # else their times would be those of today
                written.write(b"".join(_headers(_folder(folder), folder, "")))
            for piece in _headers(member, name, survey.name(member.linkname) if member.islnk() else ""):
                written.write(piece)
            if member.isreg():
                for piece in archive.content():
                    written.write(piece)
                written.write(bytes(-member.size % BLOCK))
        written.write(bytes(2 * BLOCK))
    if not survey.kinds:
        raise ImageError(f"'{named}' is an empty archive.")
    return youngest


@dataclass(slots=True, kw_only=True)
class _Survey:
    """What came so far: a member's place depends on it."""

    named: str
    limit: int
    kinds: dict[str, bytes] = field(default_factory=dict)

    def placed(self, member: tarfile.TarInfo) -> str | None:
        """Return the name under which a member is unpacked, or None when it is left out; raise ImageError."""
        name = self.name(member.name)
        top, _, rest = name.partition("/")
        if top in _OVERLAID and (rest or not member.isdir()):
            return None
        if member.type in _DEVICES:
            raise self._refused(member, f"is a {_DEVICES[member.type]}, and not below /dev")
        if max(member.uid, member.gid) > _LARGEST_ID:
            raise self._refused(member, "belongs to a user that cannot be")
        self._refuse_way(member, name)
        kind = member.type
        if kind == tarfile.LNKTYPE:
            if self.kinds.get(self.name(member.linkname)) != tarfile.REGTYPE:
                raise self._refused(member, "is a hard link to what is no file of the archive")
            kind = tarfile.REGTYPE
        if kind == tarfile.SYMTYPE and not 0 < len(member.linkname) <= _LONGEST_PATH:
            raise self._refused(member, "is a symbolic link to nothing")
        if (kind == tarfile.DIRTYPE) != (self.kinds.get(name, kind) == tarfile.DIRTYPE):
            raise self._refused(member, "comes twice, once as a folder and once as something else")
        self.kinds[name] = kind
        if len(self.kinds) > self.limit:
            raise ImageError(
                f"'{self.named}' has more than {self.limit} files, which its file system cannot hold.",
                hint="Give its disk another size: --disk-size",
            )
        return name

    def name(self, written: str) -> str:
        """Return a name without what says nothing, '' for the root; raise ImageError for one that leads outside."""
        parts = [part for part in written.split("/") if part not in ("", ".")]
        if written.startswith("/") or ".." in parts:
            raise ImageError(
                f"'{self.named}' cannot be taken in: its member {quoted(written)} leads out of the archive.",
                hint="Pack it again with relative names: tar -C FOLDER -c .",
            )
        longest = max((len(part.encode("utf-8", "surrogateescape")) for part in parts), default=0)
        if longest > _LONGEST_NAME or len(written) > _LONGEST_PATH:
            raise ImageError(f"'{self.named}' cannot be taken in: the name {quoted(written)} is too long.")
        return "/".join(parts)

    def new_parents(self, name: str) -> Iterator[str]:
        """Yield the folders above a member that did not come before it, from the top."""
        for parent in reversed(PurePosixPath(name).parents):
            if str(parent) != "." and str(parent) not in self.kinds:
                self.kinds[str(parent)] = tarfile.DIRTYPE
                yield str(parent)

    def _refuse_way(self, member: tarfile.TarInfo, name: str) -> None:
        if not name and not member.isdir():
            raise self._refused(member, "would take the root's place")
        for parent in PurePosixPath(name).parents:
            if str(parent) != "." and self.kinds.get(str(parent), tarfile.DIRTYPE) != tarfile.DIRTYPE:
                raise self._refused(member, f"is below {quoted(str(parent))}, which is no folder")

    def _refused(self, member: tarfile.TarInfo, what: str) -> ImageError:
        return ImageError(f"'{self.named}' cannot be taken in: its member {quoted(member.name)} {what}.")


def _headers(member: tarfile.TarInfo, name: str, link: str) -> Iterator[bytes]:
    header = tarfile.TarInfo(f"./{name}")
    header.type = member.type
    header.size = member.size if member.isreg() else 0
    header.mode, header.uid, header.gid, header.mtime = member.mode & 0o7777, member.uid, member.gid, _moment(member)
    header.linkname = f"./{link}" if member.islnk() else member.linkname
    capability = member.pax_headers.get(_CAPABILITY)
    if capability is not None and member.isreg():
        yield _extended(_CAPABILITY, capability.encode("utf-8", "surrogateescape"))
    yield header.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def _folder(name: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.mode = tarfile.DIRTYPE, 0o755
    return member


def _moment(member: tarfile.TarInfo) -> int:
    return min(max(int(member.mtime), 0), _LATEST)


def _extended(key: str, value: bytes) -> bytes:
    body = b" " + key.encode() + b"=" + value + b"\n"
    length = len(body)
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    record = str(length).encode() + body
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, len(record)
    return header.tobuf(tarfile.USTAR_FORMAT) + record + bytes(-len(record) % BLOCK)


def _kernel(members: dict[str, tarfile.TarInfo]) -> tuple[str, tarfile.TarInfo | None]:
    """Return the newest kernel and its version."""
    found: dict[str, tarfile.TarInfo] = {}
    for name, member in members.items():
        if match := _KERNEL.fullmatch(name):
            found.setdefault(match["boot"] or match["modules"], member)
    if not found:
        return "", None
    newest = max(
        found,
        key=lambda version: [
            (part.isdigit(), int(part) if part.isdigit() else 0, part)
            for part in re.findall(r"[0-9]+|[^0-9]+", version)
        ],
    )
    return newest, found[newest]


def _copied(archive: tarfile.TarFile, member: tarfile.TarInfo | None, target: Path) -> Path | None:
    if member is None:
        return None
    stream = archive.extractfile(member)
    if stream is None or member.size > _LARGEST_BOOT_FILE:
        raise ImageError(f"'{member.name}' is too large for a kernel or an initrd: {Size(member.size).human()}.")
    with stream, target.open("wb") as written:
        shutil.copyfileobj(stream, written)
    return target


def _text(archive: tarfile.TarFile, member: tarfile.TarInfo | None) -> str:
    stream = archive.extractfile(member) if member is not None and member.size <= _LARGEST_STATUS else None
    return stream.read().decode("utf-8", "replace") if stream is not None else ""
