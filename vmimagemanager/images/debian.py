"""Build a small Debian as a disk image, kernel and initrd: mmdebstrap, mkfs and qemu-img; no mount, no loop device.

mmdebstrap writes a tar (as an ordinary user in a user namespace; as root in a mount namespace, so that a kill leaves
no mount).  What makes it a base image is appended to that tar, and kernel and initrd are read out of it, before
it is unpacked once, in a fakeroot session where the caller is not root, and mkfs fills a file system with it.
"""

from __future__ import annotations

import gzip
import logging
import os
import re
import shutil
import tarfile
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from shlex import quote

from vmimagemanager import disks, process
from vmimagemanager.deadline import Deadline, Stopwatch
from vmimagemanager.durable import remove_tree, require_space, translate_os_errors
from vmimagemanager.errors import DeadlineError, ImageError, SpaceError, StateError, ToolError
from vmimagemanager.images import bootable, layout, userns
from vmimagemanager.images.catalogue import Recipe
from vmimagemanager.images.stage import reachable_folder
from vmimagemanager.progress import Progress
from vmimagemanager.units import Size

_log = logging.getLogger(__name__)

DISK_SIZE = Size(8 << 30)
_NEEDED = Size(2 << 30)
_INSTALL_LIMIT = timedelta(minutes=30)
_LIMIT = timedelta(minutes=10)
_REMOVAL_LIMIT = timedelta(seconds=5)
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_FILE_SYSTEM = ("-t", "ext4", "-L", layout.LABEL, "-m", "1")
_EXTENDED = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """The files that a build made in its stage, and what is installed in them."""

    disk: Path
    kernel: Path | None
    initrd: Path | None
    packages: dict[str, str]


def build(recipe: Recipe, stage: Path, *, mirror: str | None, progress: Progress) -> Built:
    """Build ``recipe`` in the folder ``stage``; ``mirror`` replaces mmdebstrap's default.

    Raises ToolError when a program is missing or fails, ImageError when what came out is not a usable system, and
    SpaceError.  The caller removes the stage.
    """
    watch = Stopwatch()
    progress("checking the host", 0.0)
    _require_tools(recipe)
    userns.require()
    require_space(stage, _NEEDED, purpose=f"Building the image '{recipe.name}'")

    progress(f"installing Debian {recipe.suite} (about a minute)", 0.02)
    tar = _install(recipe, stage, mirror)
    _log.info("installed Debian %s in %.1f s", recipe.suite, watch.lap("install"))

    progress("reading kernel and initrd", 0.7)
    kernel, initrd, packages = _take_out(tar, stage)
    with translate_os_errors("write", tar), tarfile.open(tar, "a") as archive:
        layout.add(archive, layout.on_partition(layout.SYSTEM) if recipe.uefi else layout.SYSTEM)
    _log.info("laid the configuration into the tree in %.1f s", watch.lap("seal"))

    progress("filling the file system", 0.75)
    raw = _fill_file_system(tar, stage, uefi=recipe.uefi)
    if recipe.uefi:
        bootable.install_loader(raw, stage, kernel=kernel, initrd=initrd, command_line=layout.UEFI_COMMAND_LINE)
    _log.info("filled the file system in %.1f s", watch.lap("fill"))

    progress("writing the disk image", 0.85)
    disk = stage / "disk.qcow2"
    disks.convert(raw, disk, source_format="raw")
    raw.unlink()
    _log.info("wrote the disk image in %.1f s", watch.lap("convert"))
    if recipe.uefi:
        return Built(disk=disk, kernel=None, initrd=None, packages=packages)
    return Built(disk=disk, kernel=kernel, initrd=initrd, packages=packages)


def remove(path: Path) -> None:
    """Remove a tree, also one in which an interrupted mmdebstrap left files of other user ids."""
    refused: list[StateError] = []

    def removed() -> bool:
        try:
            remove_tree(path)
        except StateError as error:
            refused.append(error)
            if os.geteuid() != 0 and path.is_dir():
                userns.remove_contents(path)
            return False
        return True

    try:  # more than once, because programs that were ended a moment ago may still be at it
        Deadline(_REMOVAL_LIMIT, scaled=False).wait_for("removal", removed, every=0.5)
    except DeadlineError:
        raise refused[-1] from None


def _require_tools(recipe: Recipe) -> None:
    needed = {"mmdebstrap": "mmdebstrap", "mkfs.ext4": "e2fsprogs", "tar": "tar", "qemu-img": "qemu-utils"}
    if os.geteuid() != 0:
        needed |= {"fakeroot": "fakeroot", "newuidmap": "uidmap"}
    if recipe.uefi:
        needed |= bootable.TOOLS
    missing = sorted({package for program, package in needed.items() if process.find(program) is None})
    if recipe.uefi and not bootable.LOADER.exists():
        missing.append(bootable.LOADER_PACKAGE)
    if not _KEYRING.exists():
        missing.append("debian-archive-keyring")
    if missing:
        raise ToolError(
            f"Building the image '{recipe.name}' needs packages that are not installed: {', '.join(missing)}.",
            hint=f"apt-get install {' '.join(missing)}",
        )


def _install(recipe: Recipe, stage: Path, mirror: str | None) -> Path:
    early, tar = stage / "early.tar", stage / "root.tar"
    if mirror is not None and mirror.startswith("-"):
        raise ImageError(f"'{mirror}' is not a mirror: expected an address such as http://archive.example/debian.")
    with translate_os_errors("write", early), tarfile.open(early, "w") as archive:
        layout.add(archive, layout.on_partition(layout.INITRAMFS) if recipe.uefi else layout.INITRAMFS)
    argv: list[str | Path] = [
        # If we are killed, setpriv has timeout told, and timeout tells the whole group: mmdebstrap alone would go on.
        *("setpriv", "--pdeathsig", "TERM", "--"),
        *("timeout", "--kill-after=5", str(round(_INSTALL_LIMIT.total_seconds()) + 60)),
        process.require("mmdebstrap", package="mmdebstrap"),
        "--mode=unshare",
        "--variant=minbase",
        "--architectures=amd64",
        "--format=tar",
        f"--include={','.join(layout.PACKAGES)}",
        f"--essential-hook=tar-in {quote(str(early))} /",
        recipe.suite,
        tar,
    ]
    if mirror is not None:
        argv.append(mirror)
    try:
        process.run(argv, environment={"TMPDIR": str(reachable_folder(stage))}, limit=_INSTALL_LIMIT)
    except ToolError as error:
        if "No space left on device" in error.detail:
            message = f"The disk became full while '{recipe.name}' was installed."
            raise SpaceError(message, detail=error.detail) from error
        raise ToolError(
            f"Debian {recipe.suite} could not be installed: mmdebstrap ended with status {error.status}.",
            hint="Is the archive reachable?  Another mirror can be given with --mirror.",
            detail=error.detail,
            argv=error.argv,
            status=error.status,
        ) from error
    return tar


def _take_out(tar: Path, stage: Path) -> tuple[Path, Path, dict[str, str]]:
    # From the tar and not from the unpacked tree: a link in there cannot lead to a file of the host.
    with translate_os_errors("read", tar), tarfile.open(tar) as archive:
        members = {member.name: member for member in archive if member.isreg()}
        kernel = _copy_out(archive, members, r"\./boot/vmlinuz-[^/]+", stage / "kernel")
        initrd = _copy_out(archive, members, r"\./boot/initrd\.img-[^/]+", stage / "initrd")
        status = _content(archive, members, r"\./var/lib/dpkg/status").decode("utf-8", "replace")
    return kernel, initrd, installed_packages(status)


def _copy_out(archive: tarfile.TarFile, members: dict[str, tarfile.TarInfo], pattern: str, target: Path) -> Path:
    content = _content(archive, members, pattern)
    # The kernel unpacks an initrd in the guest, slowly under emulation; here it costs nothing.
    target.write_bytes(gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content)
    return target


def _content(archive: tarfile.TarFile, members: dict[str, tarfile.TarInfo], pattern: str) -> bytes:
    found = [member for name, member in members.items() if re.fullmatch(pattern, name)]
    stream = archive.extractfile(found[0]) if len(found) == 1 else None
    if stream is None:
        raise ImageError(f"The installed system has {len(found)} files that match '{pattern}', where one is expected.")
    return stream.read()


def installed_packages(status: str) -> dict[str, str]:
    """Return the installed packages and their versions from the text of /var/lib/dpkg/status, sorted by name."""
    packages = {}
    for stanza in status.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Status|Version): (.*)$", stanza, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed"):
            packages[fields["Package"]] = fields["Version"]
    return dict(sorted(packages.items()))


def _fill_file_system(tar: Path, stage: Path, *, uefi: bool) -> Path:
    tree, raw, owners = stage / "tree", stage / "disk.raw", stage / "owners"
    with translate_os_errors("make the file system", raw):
        tree.mkdir()
        with raw.open("wb") as stream:
            stream.truncate(DISK_SIZE.bytes)
    extended = _EXTENDED
    if uefi:
        bootable.make(raw, DISK_SIZE)
        extended += f",offset={bootable.SYSTEM_OFFSET.bytes}"
    unpack: list[str | Path] = [
        process.require("tar", package="tar"),
        "--extract",
        "--numeric-owner",
        "--same-owner",
        "--preserve-permissions",
        "--xattrs",
        "--xattrs-include=security.capability",
        *(f"--exclude={pattern}" for pattern in layout.LEFT_OUT),
        f"--file={tar}",
        f"--directory={tree}",
    ]
    mkfs = process.require("mkfs.ext4", package="e2fsprogs")
    size = f"{DISK_SIZE.bytes // 1024}k"
    fill: list[str | Path] = [mkfs, "-q", "-F", *_FILE_SYSTEM, "-E", extended, "-d", tree, raw, size]
    # fakeroot remembers owners from the one program to the other.  It is a shell script that does not quote the name of
    # its file, which is therefore given without its folder.
    fakeroot: list[str | Path] = []
    if os.geteuid() != 0:
        owners.touch()
        fakeroot = [process.require("fakeroot", package="fakeroot"), "-i", owners.name, "-s", owners.name, "--"]
    for argv in (unpack, fill):
        try:
            process.run([*fakeroot, *argv], folder=stage, limit=_LIMIT)
        except ToolError as error:
            if "No space left on device" in error.detail:
                raise SpaceError(f"The disk became full in '{stage}'.", detail=error.detail) from error
            raise
    tar.unlink()
    shutil.rmtree(tree)
    return raw
