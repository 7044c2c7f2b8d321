r"""What is in the file system of a disk, read without mounting it: the host's kernel trusts no guest's.

QEMU's storage daemon shows a qcow2, with all that it stands on, as a plain file (through FUSE), or where that cannot be
done the disk is written out as one.  **debugfs**\(8) reads ext2, ext3 and ext4 in that file, as a program of its own,
read-only.  Partitions are found by **sfdisk**\(8).  Files are asked for by the numbers of their inodes, so that no name
of the guest's is ever read as a command.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from vmimagemanager import disks, process
from vmimagemanager.durable import fsync_path, translate_os_errors
from vmimagemanager.errors import ImageError, ToolError

_log = logging.getLogger(__name__)
_LIMIT = timedelta(minutes=10)
_START_LIMIT = timedelta(seconds=20)
_AT_ONCE = 2000  # inodes that one debugfs is asked for
_ROOT = 2  # the inode of an ext file system's root, always
_MAGIC_AT, _MAGIC = 0x438, b"\x53\xef"
_ENTRY = re.compile(rb"^/(\d+)/(\d+)/(\d+)/(\d+)/([^/\0]*)/(\d*)/$", re.MULTILINE)
_INODE = re.compile(rb"^Inode: (\d+) +Type: ", re.MULTILINE)
_MODIFIED = re.compile(rb"^ *mtime: (0x[0-9a-f]+(?::[0-9a-f]+)?) ", re.MULTILINE)
_LINK = re.compile(rb'^Fast link dest: "(.*)"$', re.MULTILINE | re.DOTALL)
_STATUS_OF_FILE = re.compile(r"^Inode: (\d+) +Type: (\w+).*?^User:.*? Size: (\d+)$", re.MULTILINE | re.DOTALL)
_FOLDER = 0o40000
_STATUS = b"/var/lib/dpkg/status"


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One name in a file system: the inode's mode in octal, owner, bytes, time of last change, and a link's target.

    ``modified`` is as the file system has it, to be compared alone; it is empty for folders.
    """

    mode: str
    owner: tuple[int, int]
    size: int
    modified: str = ""
    target: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a name leads to: its inode, ``regular``, ``directory``, ``symlink`` or another kind, and its bytes."""

    inode: int
    kind: str
    size: int


class FileSystem:
    """The file system of one disk.  Raises ToolError when debugfs fails, as it does for one that is damaged."""

    def __init__(self, path: Path, offset: int) -> None:
        self._device = f"{path}?offset={offset}" if offset else str(path)
        self._header = ""

    def packages(self) -> dict[str, str]:
        """Return the packages that dpkg says are installed, with their versions; none where there is no dpkg."""
        text = self._asked([b"cat " + _STATUS]).partition(b"\n")[2].decode("utf-8", "replace")
        found = {}
        for stanza in text.split("\n\n"):
            fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line and line[:1] != " ")
            state = fields.get("Status", "").split(" ")[-1]
            if fields.get("Package") and state not in {"", "not-installed", "config-files"}:
                found[fields["Package"]] = fields.get("Version", "")
        return dict(sorted(found.items()))

    def files(self) -> dict[bytes, File]:
        """Return every name in the file system, but for the root itself."""
        found: dict[bytes, File] = {}
        inodes: dict[bytes, int] = {}
        level, seen = {_ROOT: b""}, {_ROOT}
        while level:
            below: dict[int, bytes] = {}
            for folder, entries in self._listed(level):
                for inode, name, file in entries:
                    path = level[folder] + b"/" + name
                    found[path], inodes[path] = file, inode
                    if int(file.mode, 8) & 0o170000 == _FOLDER and inode not in seen:  # a loop is no tree
                        seen.add(inode)
                        below[inode] = path
            level = below
        details = self._details({inodes[path] for path, file in found.items() if not _is_folder(file)})
        return {path: _with(file, details.get(inodes[path])) for path, file in found.items()}

    # -- one file at a time, by names that are one word for debugfs ----------------------------------------------------

    @property
    def block_size(self) -> int:
        """The bytes of a block."""
        found = re.search(r"^Block size: +(\d+)$", self._header or self._read_header(), re.MULTILINE)
        if found is None:
            raise ToolError("debugfs does not say how large the blocks of the file system are.")
        return int(found[1])

    def find(self, paths: Iterable[str]) -> dict[str, Found]:
        """Return what has which of these names, none of which is followed where it is a link itself."""
        found = {}
        for answer in self._asked([b"stat " + os.fsencode(path) for path in paths]).split(b"debugfs: stat ")[1:]:
            path, _, said = answer.decode("utf-8", "replace").partition("\n")
            if match := _STATUS_OF_FILE.search(said):
                found[path] = Found(inode=int(match[1]), kind=match[2], size=int(match[3]))
        return found

    def names(self, folder: str) -> list[str]:
        """Return the names in a folder; none when there is no such folder."""
        entries = _ENTRY.findall(self._said(f"ls -p {folder}"))
        return [os.fsdecode(entry[4]) for entry in entries if entry[4] not in {b".", b".."} and entry[0] != b"0"]

    def content(self, found: Found) -> bytes:
        """Return the content of a file."""
        return self._said(f"cat <{found.inode}>")

    @property
    def features(self) -> frozenset[str]:
        """What the file system was made with, in mke2fs's words."""
        found = re.search(r"^Filesystem features: +(.*)$", self._header or self._read_header(), re.MULTILINE)
        return frozenset(found[1].split()) if found else frozenset()

    def replay_journal(self) -> None:
        """Do what the guest's kernel would do at the next mount with what it had no time to write to its place."""
        if "needs_recovery" in self.features:
            self._run(["-w", "-R", "jr"])
            self._header = ""
            if "needs_recovery" in self.features:
                raise ToolError("debugfs could not replay the file system's journal.")

    def change(self, commands: Sequence[str]) -> None:
        """Run commands that write; raise ToolError when one of them fails, and some were not run then."""
        if not commands:
            return
        with TemporaryDirectory() as folder:
            script = Path(folder, "commands")
            script.write_text("\n".join(commands) + "\n")
            finished = self._run(["-w", "-f", script])
        _, *complaints = finished.stderr.decode("utf-8", "replace").splitlines() or [""]
        if complaints:  # debugfs goes on after an error, and ends with status 0
            raise ToolError("debugfs could not change the file system.", detail="\n".join(complaints[-5:]))

    def _read_header(self) -> str:
        self._header = self._said("stats -h").decode("utf-8", "replace")
        return self._header

    def _said(self, question: str) -> bytes:
        return self._run(["-R", question]).stdout

    def _run(self, words: list[str | Path]) -> process.Finished:
        program = process.require("debugfs", package="e2fsprogs")
        return process.run([program, *words, self._device], limit=_LIMIT, environment={"PAGER": "cat"})

    def _listed(self, folders: Iterable[int]) -> Iterator[tuple[int, list[tuple[int, bytes, File]]]]:
        for chosen in _portions(folders):
            answers = self._asked([b"ls -p <%d>" % inode for inode in chosen]).split(b"debugfs: ls -p <")[1:]
            for answer in answers:
                number, _, text = answer.partition(b">\n")
                yield int(number), [entry for entry in map(_entry, _ENTRY.findall(text)) if entry is not None]

    def _details(self, inodes: Iterable[int]) -> dict[int, tuple[str, bytes]]:
        found = {}
        for chosen in _portions(sorted(inodes)):
            answers = self._asked([b"stat <%d>" % inode for inode in chosen]).split(b"debugfs: stat <")[1:]
            for answer in answers:
                inode, modified = _INODE.search(answer), _MODIFIED.search(answer)
                link = _LINK.search(answer)
                if inode and modified:
                    found[int(inode[1])] = (modified[1].decode(), link[1] if link else b"")
        return found

    def _asked(self, questions: list[bytes]) -> bytes:
        program = process.require("debugfs", package="e2fsprogs")
        with TemporaryDirectory() as folder:
            script = Path(folder, "questions")
            script.write_bytes(b"\n".join(questions) + b"\n")
            finished = process.run([program, "-f", script, self._device], limit=_LIMIT, environment={"PAGER": "cat"})
        if b"not open" in finished.stdout[:2000] or b"Bad magic" in finished.stderr:
            raise ToolError("debugfs cannot read the file system.", detail=finished.stderr.decode(errors="replace"))
        return finished.stdout


@contextmanager
def opened(disk: Path, work: Path, *, disk_format: str = "qcow2", writable: bool = False) -> Iterator[FileSystem]:
    """Open the largest ext file system of a disk that nobody else writes to; raise ImageError when it has none.

    ``work`` is a folder of the caller's, who removes what is left in it when this process is killed.  A ``writable``
    qcow2 needs FUSE: ToolError says so where there is none.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="look-", dir=work)))
        if not writable:
            raw = stack.enter_context(_as_raw(disk, disk_format, folder))
            yield FileSystem(raw, _offset(raw, disk))
            return
        if disk_format != "raw":
            _require_fuse()
        words = ["--blockdev", f"{_node(disk, disk_format)},read-only=off"]
        with _exported(words, "disk", folder, writable=True) if disk_format != "raw" else nullcontext(disk) as raw:
            offset = _offset(raw, disk)
            if not offset:
                yield FileSystem(raw.absolute(), 0)
                fsync_path(raw)  # what the daemon has written to its caches alone would end with it
                return
        _require_fuse()
        # Who replays a journal opens the file system again, and does not look for it in the middle of a file then.
        words += ["--blockdev", f"driver=raw,node-name=system,offset={offset},file=disk"]
        with _exported(words, "system", folder, writable=True) as raw:
            yield FileSystem(raw, 0)
            fsync_path(raw)


@contextmanager
def _as_raw(disk: Path, disk_format: str, folder: Path) -> Iterator[Path]:
    if disk_format == "raw":
        yield disk.absolute()
        return
    with ExitStack() as stack:
        try:
            words = ["--blockdev", f"{_node(disk, disk_format)},read-only=on"]
            raw = stack.enter_context(_exported(words, "disk", folder, writable=False))
        except ToolError as error:  # no FUSE here
            _log.debug("the disk is written out to be read: %s", error)
            raw = folder / "disk"
            disks.convert(disk, raw, source_format="qcow2", target_format="raw")
        yield raw


def may_use_fuse() -> bool:
    """Whether this host lets us show a disk as a file: its device is there, and for an ordinary user the helper."""
    return os.access("/dev/fuse", os.R_OK | os.W_OK) and (os.geteuid() == 0 or process.find("fusermount3") is not None)


def _require_fuse() -> None:
    if not may_use_fuse():
        raise ToolError(
            "This host does not let us use FUSE, without which a disk cannot be changed from outside.",
            hint="apt-get install fuse3; as root: chmod 0666 /dev/fuse",
        )


def _node(disk: Path, disk_format: str) -> str:
    return f"driver={disk_format},node-name=disk,file.driver=file,file.filename={_escaped(disk)}"


@contextmanager
def _exported(nodes: list[str], node: str, folder: Path, *, writable: bool) -> Iterator[Path]:
    """Show a node of QEMU's storage daemon as a file in ``folder`` for as long as the block lasts."""
    raw, record = folder / node, folder / f"{node}.pid"
    raw.touch()
    export = f"type=fuse,id=export,node-name={node},mountpoint={_escaped(raw)},writable={'on' if writable else 'off'}"
    program = process.require("qemu-storage-daemon", package="qemu-system-common")
    words: list[str | Path] = [program, "--pidfile", record, *nodes, "--export", export]
    with process.beside(words, record.exists, limit=_START_LIMIT):
        yield raw


def _offset(raw: Path, disk: Path) -> int:
    """Return where in the disk its largest ext file system begins."""
    if _is_ext(raw, 0):
        return 0
    try:
        finished = process.run([process.require("sfdisk", package="fdisk"), "--json", raw], limit=_LIMIT)
        table = json.loads(finished.stdout)["partitiontable"]
        sector = int(table.get("sectorsize", 512))
        places = [(int(one["size"]), int(one["start"]) * sector) for one in table["partitions"]]
    except (ToolError, KeyError, ValueError):
        places = []
    found = [(size, start) for size, start in places if _is_ext(raw, start)]
    if not found:
        raise ImageError(f"The disk '{disk}' has no file system of the kinds that can be read: ext2, ext3, ext4.")
    return max(found)[1]


def _is_ext(raw: Path, offset: int) -> bool:
    with translate_os_errors("read", raw), raw.open("rb") as stream:
        stream.seek(offset + _MAGIC_AT)
        return stream.read(2) == _MAGIC


def _entry(found: tuple[bytes, ...]) -> tuple[int, bytes, File] | None:
    inode, mode, user, group, name, size = found
    if name in {b".", b".."} or inode == b"0":
        return None
    file = File(mode=mode.decode(), owner=(int(user), int(group)), size=int(size or 0))
    return int(inode), name, file


def _with(file: File, details: tuple[str, bytes] | None) -> File:
    if details is None:
        return file
    modified, target = details
    return File(mode=file.mode, owner=file.owner, size=file.size, modified=modified, target=target)


def _is_folder(file: File) -> bool:
    return int(file.mode, 8) & 0o170000 == _FOLDER


def _portions(inodes: Iterable[int]) -> Iterator[list[int]]:
    rest = list(inodes)
    for at in range(0, len(rest), _AT_ONCE):
        yield rest[at : at + _AT_ONCE]


def _escaped(path: Path) -> str:
    return str(path.absolute()).replace(",", ",,")  # QEMU's own way
