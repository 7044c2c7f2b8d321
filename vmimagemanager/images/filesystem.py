"""An ext4 file system filled from a tar, with no mount and no loop device, and the same one from the same tar.

The tar is unpacked into a folder that nobody else can enter (it may hold setuid programs of a system that nobody here
trusts), in a fakeroot session where the caller is not root, and mkfs fills the file system with that folder.
"""

from __future__ import annotations

import os
import re
import shutil
import tarfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from vmimagemanager import process
from vmimagemanager.durable import translate_os_errors
from vmimagemanager.errors import ImageError, SpaceError, ToolError
from vmimagemanager.names import quoted
from vmimagemanager.units import Size

TOOLS = {"mkfs.ext4": "e2fsprogs", "debugfs": "e2fsprogs", "dumpe2fs": "e2fsprogs", "tar": "tar"}
TOOLS_OF_USERS = {"fakeroot": "fakeroot"}

_NONE = Size(0)
_LIMIT = timedelta(minutes=10)
_OPTIONS = ("-t", "ext4", "-m", "1")
_EXTENDED = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"
_NUMBERS = re.compile(r"^(Inode count|Free inodes|First inode):\s+(\d+)$", re.MULTILINE)
_FREE = re.compile(r"^  Free inodes: (.+)$", re.MULTILINE)
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_CAPABILITY = "SCHILY.xattr.security.capability"
_PLAIN = re.compile(r"[A-Za-z0-9/._+@:,=~-]+", re.ASCII)
_BYTES_PER_INODE = 16384  # what mke2fs.conf says, and what we say too


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSystem:
    """What a file system is to be like: ``uuid`` and ``epoch`` (seconds) make it the same each time."""

    size: Size
    uuid: str
    epoch: int
    label: str = ""
    offset: Size = _NONE

    @property
    def inodes(self) -> int:
        """How many files it can hold."""
        return self.size.bytes // _BYTES_PER_INODE


def tools() -> dict[str, str]:
    """Return the programs that are needed, with the packages that hold them."""
    return TOOLS | ({} if os.geteuid() == 0 else TOOLS_OF_USERS)


def fill(tar: Path, raw: Path, wanted: FileSystem, *, left_out: Collection[str] = ()) -> None:
    """Make a file system with what is in ``tar`` in the raw disk ``raw``; members that match ``left_out`` stay out.

    ``raw`` is made larger when it is too small.  ``tar`` is removed.  Raises ToolError, SpaceError, or ImageError when
    the file system is too small for its content; the caller removes the stage then.
    """
    stage = tar.parent
    closed, owners = stage / "closed", stage / "owners"
    tree = closed / "tree"
    with translate_os_errors("make the file system", raw):
        closed.mkdir(mode=0o700)
        tree.mkdir()
        with raw.open("ab") as stream:
            stream.truncate(max(raw.stat().st_size, wanted.offset.bytes + wanted.size.bytes))
    unpack: list[str | Path] = [
        process.require("tar", package="tar"),
        "--extract",
        "--numeric-owner",
        "--same-owner",
        "--preserve-permissions",
        *(f"--exclude={pattern}" for pattern in left_out),
        f"--file={tar}",
        f"--directory={tree}",
    ]
    extended = f"{_EXTENDED},hash_seed={wanted.uuid},offset={wanted.offset.bytes}"
    program = process.require("mkfs.ext4", package="e2fsprogs")
    mkfs: list[str | Path] = [program, "-q", "-F", *_OPTIONS, "-i", str(_BYTES_PER_INODE)]
    label = ["-L", wanted.label] if wanted.label else []
    fill: list[str | Path] = [
        *mkfs,
        *label,
        "-U",
        wanted.uuid,
        "-E",
        extended,
        "-d",
        tree,
        raw,
        f"{wanted.size.bytes // 1024}k",
    ]
    # fakeroot remembers owners from the one program to the other.  It is a shell script that does not quote the name of
    # its file, which is therefore given without its folder.
    fakeroot: list[str | Path] = []
    if os.geteuid() != 0:
        owners.touch()
        fakeroot = [process.require("fakeroot", package="fakeroot"), "-i", owners.name, "-s", owners.name, "--"]
    capabilities = _capabilities(tar)
    _run([*fakeroot, *unpack], stage)
    _run([*fakeroot, *fill], stage, epoch=wanted.epoch)
    tar.unlink()
    shutil.rmtree(closed)
    _finish(raw, wanted, capabilities)


def _run(argv: list[str | Path], stage: Path, *, epoch: int = 1) -> None:
    environment = {"E2FSPROGS_FAKE_TIME": str(epoch), "SOURCE_DATE_EPOCH": str(epoch)}
    try:
        process.run(argv, folder=stage, environment=environment, limit=_LIMIT)
    except ToolError as error:
        if "No space left on device" in error.detail:
            raise SpaceError(f"The disk became full in '{stage}'.", detail=error.detail) from error
        if "Could not allocate" in error.detail:
            raise ImageError(
                "The file system is too small for what is to be in it.",
                hint="Give it another size.",
                detail=error.detail,
            ) from error
        raise


def _capabilities(tar: Path) -> dict[str, bytes]:
    """Return the capabilities of files by their paths.

    fakeroot 1.31 loses the type of a file of which it remembers one: they are not unpacked, but written at the end.
    """
    with translate_os_errors("read", tar), tarfile.open(tar) as archive:
        found = {
            member.name.removeprefix("."): member.pax_headers[_CAPABILITY].encode("utf-8", "surrogateescape")
            for member in archive
            if _CAPABILITY in member.pax_headers
        }
    for name in found:
        if not _PLAIN.fullmatch(name):  # it would be several words for debugfs
            raise ImageError(f"The file {quoted(name)} has a capability, and a name that cannot have one here.")
    return found


def _finish(raw: Path, wanted: FileSystem, capabilities: Mapping[str, bytes]) -> None:
    """Write the files' capabilities, and date their changes and when they were last read to ``epoch``.

    mkfs copies these two times from the folder (mke2fs 1.47), where they are of today and nobody can set them.
    """
    stage = raw.parent
    device = f"{raw.name}?offset={wanted.offset.bytes}"  # what libext2fs calls a file system inside of a file
    dump = process.run([process.require("dumpe2fs", package="e2fsprogs"), device], folder=stage, limit=_LIMIT)
    commands = stage / "commands"
    with translate_os_errors("write", commands), commands.open("w") as stream:
        for number, (name, capability) in enumerate(sorted(capabilities.items())):
            (stage / f"capability-{number}").write_bytes(capability)
            stream.write(f"ea_set -f capability-{number} {name} security.capability\n")
        for inode in _used(dump.stdout.decode("utf-8", "replace")):
            stream.write(f"sif <{inode}> ctime @{wanted.epoch}\nsif <{inode}> atime @{wanted.epoch}\n")
    finished = process.run(
        [process.require("debugfs", package="e2fsprogs"), "-w", "-f", commands.name, device],
        folder=stage,
        environment={"E2FSPROGS_FAKE_TIME": str(wanted.epoch)},
        limit=_LIMIT,
    )
    _, *complaints = finished.stderr.decode("utf-8", "replace").splitlines() or [""]
    if complaints:  # debugfs goes on after an error, and ends with status 0
        raise ToolError("debugfs could not finish the file system.", detail="\n".join(complaints[-5:]))


def _used(dump: str) -> Iterator[int]:
    """Yield the numbers of the inodes that files have, from what dumpe2fs says of each group."""
    numbers = {key: int(number) for key, number in _NUMBERS.findall(dump)}
    free = [(int(first), int(last or first)) for text in _FREE.findall(dump) for first, last in _RANGE.findall(text)]
    count, used = numbers["Inode count"], numbers["Inode count"] - numbers["Free inodes"]
    expected = 1
    seen = 0
    for first, last in [*sorted(free), (count + 1, count + 1)]:
        seen += first - expected
        yield from range(max(expected, numbers["First inode"]), first)
        expected = last + 1
    if seen != used:
        raise ImageError(f"The file system that was made is not understood: it has {used} files, and {seen} are found.")
