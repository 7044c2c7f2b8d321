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
import tarfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from shlex import quote

from vmimagemanager import disks, process
from vmimagemanager.deadline import Deadline, Stopwatch
from vmimagemanager.durable import remove_tree, require_space, translate_os_errors
from vmimagemanager.errors import DeadlineError, ImageError, SpaceError, StateError, ToolError
from vmimagemanager.images import biosboot, bootable, cloudlayout, epoch, filesystem, layout, userns
from vmimagemanager.images.catalogue import DISTRIBUTIONS, Recipe
from vmimagemanager.images.filesystem import FileSystem
from vmimagemanager.images.packages import installed_packages
from vmimagemanager.images.stage import reachable_folder
from vmimagemanager.progress import Progress
from vmimagemanager.units import Size

_log = logging.getLogger(__name__)

_NEEDED = Size(2 << 30)
_INSTALL_LIMIT = timedelta(minutes=30)
_LIMIT = timedelta(minutes=10)
_REMOVAL_LIMIT = timedelta(seconds=5)
_HOOKS = "vmimagemanager-hooks"
_NAMESPACE = uuid.UUID("8e1a9f0a-3c1d-4d58-8f4c-9a7c2a1b6d02")


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """The files that a build made in its stage, and what is installed in them."""

    disk: Path
    kernel: Path | None
    initrd: Path | None
    packages: dict[str, str]


def build(recipe: Recipe, stage: Path, *, mirror: str | None, progress: Progress) -> Built:
    """Build ``recipe`` in the folder ``stage``; ``mirror`` replaces mmdebstrap's default.

    The same recipe and the same state of the archive give the same files, byte for byte, as long as the host's
    mmdebstrap, mkfs, qemu-img and GRUB are the same.  Raises ToolError when a program is missing or fails, ImageError
    when what came out is not a usable system, and SpaceError.  The caller removes the stage.
    """
    watch = Stopwatch()
    mirror = mirror if mirror is not None else recipe.mirror
    if mirror is not None and mirror.startswith("-"):
        raise ImageError(f"'{mirror}' is not a mirror: expected an address such as http://archive.example/debian.")
    progress("checking the host", 0.0)
    _require_tools(recipe)
    userns.require()
    require_space(stage, _NEEDED, purpose=f"Building the image '{recipe.name}'")

    progress("asking the archive how old it is", 0.01)
    moment = epoch.of(recipe, mirror, stage)
    progress(f"installing {recipe.title} (about a minute)", 0.02)
    tar = _install(recipe, stage, mirror, moment)
    _log.info("installed %s in %.1f s", recipe.title, watch.lap("install"))

    progress("reading kernel and initrd", 0.7)
    files, packages = _take_out(tar, stage, uefi=recipe.uefi)
    with translate_os_errors("write", tar), tarfile.open(tar, "a") as archive:
        layout.add(archive, cloudlayout.system(recipe), epoch=moment)
    _log.info("laid the configuration into the tree in %.1f s", watch.lap("seal"))

    progress("filling the file system", 0.75)
    raw = stage / "disk.raw"
    offset = _partitioned(recipe, raw, moment)
    filesystem.fill(
        tar,
        raw,
        FileSystem(
            size=recipe.size,
            uuid=_identity(recipe, moment, "system"),
            epoch=moment,
            label=layout.LABEL,
            offset=offset,
        ),
        left_out=layout.LEFT_OUT,
    )
    if recipe.uefi:
        command_line = layout.command_line(bootable.PARTITION)
        bootable.install_loader(raw, stage, files, command_line=command_line, epoch=moment)
    elif recipe.bios:
        biosboot.install_loader(raw, stage)
    _log.info("filled the file system in %.1f s", watch.lap("fill"))

    progress("writing the disk image", 0.85)
    disk = stage / "disk.qcow2"
    disks.convert(raw, disk, source_format="raw")
    raw.unlink()
    _log.info("wrote the disk image in %.1f s", watch.lap("convert"))
    if recipe.starts_itself:
        return Built(disk=disk, kernel=None, initrd=None, packages=packages)
    return Built(disk=disk, kernel=files["kernel"], initrd=files["initrd"], packages=packages)


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
    distribution = DISTRIBUTIONS[recipe.distribution]
    needed = {"mmdebstrap": "mmdebstrap", "qemu-img": "qemu-utils", **filesystem.tools()}
    if os.geteuid() != 0:
        needed |= {"newuidmap": "uidmap"}
    needed |= bootable.TOOLS if recipe.uefi else biosboot.TOOLS if recipe.bios else {}
    missing = {package for program, package in needed.items() if process.find(program) is None}
    if not distribution.keyring.exists():
        missing.add(distribution.keyring_package)
    if recipe.bios and not biosboot.MODULES.is_dir():
        missing.add(biosboot.MODULES_PACKAGE)
    if missing:
        raise ToolError(
            f"Building the image '{recipe.name}' needs packages that are not installed: {', '.join(sorted(missing))}.",
            hint=f"apt-get install {' '.join(sorted(missing))}",
        )


def _partitioned(recipe: Recipe, raw: Path, moment: int) -> Size:
    """Make the disk with the table of partitions that the recipe asks for, and return where the system begins."""

    def identities(roles: Sequence[str]) -> list[str]:
        return [_identity(recipe, moment, role) for role in roles]

    if recipe.uefi:
        bootable.make(raw, recipe.size, identities=identities(bootable.IDENTITIES))
        return bootable.SYSTEM_OFFSET
    if recipe.bios:
        biosboot.make(raw, recipe.size, identities=identities(biosboot.IDENTITIES))
        return biosboot.SYSTEM_OFFSET
    return Size(0)


def _install(recipe: Recipe, stage: Path, mirror: str | None, epoch: int) -> Path:
    tar = stage / "root.tar"
    for name, entries in (("early", _early(recipe)), ("late", _late(recipe))):
        path = stage / f"{name}.tar"
        with translate_os_errors("write", path), tarfile.open(path, "w") as archive:
            layout.add(archive, entries, epoch=epoch, with_folders=name == "early")
    argv: list[str | Path] = [
        # If we are killed, setpriv has timeout told, and timeout tells the whole group: mmdebstrap alone would go on.
        *("setpriv", "--pdeathsig", "TERM", "--"),
        *("timeout", "--kill-after=5", str(round(_INSTALL_LIMIT.total_seconds()) + 60)),
        process.require("mmdebstrap", package="mmdebstrap"),
        *words(recipe, stage, tar, mirror),
    ]
    environment = {"TMPDIR": str(reachable_folder(stage)), "SOURCE_DATE_EPOCH": str(epoch)}
    try:
        process.run(argv, environment=environment, limit=_INSTALL_LIMIT)
    except ToolError as error:
        if "No space left on device" in error.detail:
            message = f"The disk became full while '{recipe.name}' was installed."
            raise SpaceError(message, detail=error.detail) from error
        raise ToolError(
            f"{recipe.title} could not be installed: mmdebstrap ended with status {error.status}.",
            hint="Is the archive reachable?  Another mirror can be given with --mirror.",
            detail=error.detail,
            argv=error.argv,
            status=error.status,
        ) from error
    return tar


def words(recipe: Recipe, stage: Path, tar: Path, mirror: str | None) -> list[str | Path]:
    """Return what mmdebstrap is told: options, the release, where the tar goes, and the mirror if one is asked for."""
    distribution = DISTRIBUTIONS[recipe.distribution]
    hooks = [f"--essential-hook=tar-in {quote(str(stage / 'early.tar'))} /"]
    if recipe.files or recipe.hooks:
        hooks.append(f"--customize-hook=tar-in {quote(str(stage / 'late.tar'))} /")
    if recipe.user != "root":
        user = "useradd --create-home --user-group --shell /bin/bash"
        hooks.append(f'--customize-hook=chroot "$1" {user} {quote(recipe.user)}')
    hooks += [f'--customize-hook=chroot "$1" /{_HOOKS}/{number}' for number in range(1, len(recipe.hooks) + 1)]
    if recipe.hooks:
        hooks.append(f'--customize-hook=rm -r "$1"/{_HOOKS}')
    loader = (bootable.LOADER_PACKAGE,) if recipe.uefi else ()
    packages = (*cloudlayout.packages(recipe), distribution.kernel, *loader, *recipe.packages)
    return [
        "--mode=unshare",
        "--variant=minbase",
        "--architectures=amd64",
        "--format=tar",
        f"--components={','.join(recipe.components or distribution.components)}",
        f"--keyring={distribution.keyring}",
        f"--include={','.join(packages)}",
        *hooks,
        recipe.suite,
        tar,
        *_sources(recipe, mirror),
    ]


def _sources(recipe: Recipe, mirror: str | None) -> list[str]:
    if mirror is not None:
        return [mirror]
    if recipe.distribution == "debian":
        return []
    # mmdebstrap takes a release of which it never heard for one of Debian's: its own list of Ubuntu's ends with 18.10.
    components = " ".join(recipe.components or DISTRIBUTIONS[recipe.distribution].components)
    return [f"deb {uri} {suite} {components}" for uri, suite in epoch.sources(recipe, None)]


def _early(recipe: Recipe) -> layout.Entries:
    # What is laid into a folder that the tar of the tree has already would give that folder the time of the host.
    loader = biosboot.configuration() if recipe.bios else {}
    return {**layout.on_partition(layout.INITRAMFS, cloudlayout.partition(recipe)), **loader}


def _late(recipe: Recipe) -> layout.Entries:
    return {
        **{file.path.lstrip("/"): layout.File(file.content, file.mode) for file in recipe.files},
        **{f"{_HOOKS}/{number}": layout.File(script, 0o755) for number, script in enumerate(recipe.hooks, 1)},
    }


def _take_out(tar: Path, stage: Path, *, uefi: bool) -> tuple[dict[str, Path], dict[str, str]]:
    # From the tar and not from the unpacked tree: a link in there cannot lead to a file of the host.
    with translate_os_errors("read", tar), tarfile.open(tar) as archive:
        members = {member.name: member for member in archive if member.isreg()}
        files = {
            "kernel": _copy_out(archive, members, r"\./boot/vmlinuz-[^/]+", stage / "kernel"),
            "initrd": _copy_out(archive, members, r"\./boot/initrd\.img-[^/]+", stage / "initrd"),
        }
        if uefi:
            files["loader"] = _copy_out(archive, members, re.escape(f".{bootable.LOADER}"), stage / "loader")
        status = _content(archive, members, r"\./var/lib/dpkg/status").decode("utf-8", "replace")
    return files, installed_packages(status)


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


def _identity(recipe: Recipe, epoch: int, role: str) -> str:
    """Return a UUID that is the same for the same recipe and archive state, and another one for all others."""
    return str(uuid.uuid5(_NAMESPACE, f"{role} {epoch} {replace(recipe, name='', description='')!r}"))
