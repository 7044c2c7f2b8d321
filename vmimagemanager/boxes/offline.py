"""The files of a disk that nobody has open: read, laid in, archived and put back by an appliance.

The scripts here run in the appliance, whose tools are those of the image that it is made of.  They know the root file
system by its ``/etc``, on the disk as a whole or in one of its partitions; ext2, ext3 and ext4 are mounted.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from vmimagemanager import disks, snapshots
from vmimagemanager.boxes.record import BoxRecord
from vmimagemanager.boxes.site import Site
from vmimagemanager.disks import Backing
from vmimagemanager.durable import fsync_path, occupied, require_space, translate_os_errors
from vmimagemanager.errors import BoxError, ImageError, SpaceError, TransferError
from vmimagemanager.files import landing
from vmimagemanager.files.pack import Feed, Laying
from vmimagemanager.guest.transfer import SEND, says_full
from vmimagemanager.hypervisor import accelerator, appliance, launch
from vmimagemanager.hypervisor.appliance import Kit, Worked
from vmimagemanager.images.stage import stage
from vmimagemanager.state import FIRST_DISK
from vmimagemanager.units import Size

_NO_ROOT = 41
# Sets $device, and mounts it on /mnt, read-only.
FIND = f"""\
root=
others=
tries=0
while [ ! -b /dev/vdb ] && [ $tries -lt 100 ]; do sleep 0.1; tries=$((tries + 1)); done
for device in /dev/vdb /dev/vdb[0-9]*; do
    [ -b "$device" ] || continue
    kind=$(blkid -p -o value -s TYPE "$device") || continue
    case $kind in
    ext[234]) mount -t ext4 -o ro "$device" /mnt || continue ;;
    *) others="$others $kind"; continue ;;
    esac
    if [ -d /mnt/etc ]; then root=$device; break; fi
    umount /mnt
done
if [ -z "$root" ]; then echo "found:$others"; exit {_NO_ROOT}; fi
device=$root
"""
# The box's own paths, with absolute symbolic links on their way, mean something inside it alone; but nothing of the box
# is run: the appliance's programs are seen there through /proc, which every system has.
_INSIDE = """\
loader=$(readlink -f /lib64/ld-linux-x86-64.so.2)
[ -d /mnt/proc ] || { echo "The system on the disk has no folder /proc."; exit 42; }
mount --bind / /mnt/proc || exit
export VMIM_LOADER="/proc$loader" VMIM_LIBRARIES="/proc${loader%/*}:/proc/usr/lib:/proc/lib"
inside() {
    program=$(command -v "$1")
    shift
    chroot /mnt "$VMIM_LOADER" --library-path "$VMIM_LIBRARIES" "/proc$(readlink -f "$program")" "$@"
}
"""
_LEAVE = """\
umount /mnt/proc
umount /mnt || exit 43
"""
_FUNCTIONS = """\
tar() { "$VMIM_LOADER" --library-path "$VMIM_LIBRARIES" /proc/usr/bin/tar "$@"; }
readlink() { "$VMIM_LOADER" --library-path "$VMIM_LIBRARIES" /proc/usr/bin/readlink "$@"; }
"""
_QUIET = "--warning=no-unknown-keyword --warning=no-timestamp"
_INSERT = f"""\
mount -o remount,rw /mnt || exit
{_INSIDE}
inside mkdir -p -- "$folder" &&
    inside tar -xp --ignore-zeros --numeric-owner --keep-directory-symlink --no-overwrite-dir --acls --xattrs \\
        --xattrs-include='*' {_QUIET} -C "$folder" -f - <&3
status=$?
[ $status = 0 ] && cat <&3 >/dev/null
"""
_ARCHIVE = f"""\
tar -c --format=posix --pax-option=delete=atime,delete=ctime,exthdr.name=%d/PaxHeaders/%f --numeric-owner --acls \\
    --xattrs --xattrs-include='*' --sparse --one-file-system {_QUIET} -C /mnt -f - . >&3
status=$?
umount /mnt || exit 43
exit $status
"""
# What the file system was made with, it is made with again: a boot loader or an older kernel may know no more.  Only an
# inode of less than 256 bytes, which has no place for parts of seconds, becomes larger.
_FILL = f"""\
umount /mnt
old=$(dumpe2fs -h "$device" 2>/dev/null)
value() {{ printf '%s\\n' "$old" | sed -n "s/^$1: *//p"; }}
features=$(value 'Filesystem features' | tr ' ' '\\n' | grep -vx -e needs_recovery -e orphan_present | paste -sd , -)
inode=$(value 'Inode size')
[ "$inode" -ge 256 ] || inode=256
uuid=$(blkid -p -o value -s UUID "$device")
label=$(blkid -p -o value -s LABEL "$device")
mkfs.ext4 -q -F -E nodiscard -U "$uuid" -L "$label" -b "$(value 'Block size')" -I $inode \\
    -N "$(value 'Inode count')" -O "none,$features" "$device" || exit
mount -t ext4 "$device" /mnt || exit
tar -xp --same-owner --numeric-owner --delay-directory-restore --acls --xattrs --xattrs-include='*' {_QUIET} \\
    -C /mnt -f - <&3
status=$?
[ $status = 0 ] && cat <&3 >/dev/null
umount /mnt || exit 43
exit $status
"""


def insert(site: Site, record: BoxRecord, layings: Sequence[Laying]) -> None:
    """Lay tar streams over folders of a box that is off, in their order: all of them, or nothing.

    Raises TransferError, SpaceError, BoxError for a disk that has no file system that is known.
    """
    with _own_copy(site, record) as disk, work_folder(site, "inserting files") as own:
        for folder, group in groupby(layings, key=lambda laying: laying.folder):
            feeds = [laying.feed for laying in group]

            def feed(stream: BinaryIO, feeds: Sequence[Feed] = feeds) -> None:
                for one in feeds:
                    one(stream)

            script = f"folder={_quoted(folder)}\n{FIND}{_INSERT}{_LEAVE}exit $status\n"
            worked = appliance.work(kit(site, record), script, disk, own, write=True, feed=feed)
            _require_done(worked, f"The files cannot be laid into '{folder}' of '{record.name}'")


def extract(site: Site, record: BoxRecord, sources: Sequence[PurePosixPath], target: Path) -> int:
    """Copy files and folders out of a box that is off, as `guest.transfer.extract` does of one that runs."""
    words = " ".join(_quoted(source) for source in sources)
    script = (
        f"{FIND}{_INSIDE}inside sh -c {shlex.quote(_FUNCTIONS + SEND)} sh {words} >&3\nstatus=$?\n{_LEAVE}"
        "exit $status\n"
    )
    said = ", ".join(f"'{source}'" for source in sources)
    disk = site.state.box(record.name).overlay
    with (
        landing.prepared([source.name for source in sources], target) as arrival,
        work_folder(site, "copying files") as own,
    ):
        failures: list[TransferError] = []

        def drain(stream: BinaryIO) -> None:
            try:
                arrival.receive(stream)
            except TransferError as error:  # what the guest says comes first: it may have sent nothing
                failures.append(error)

        worked = appliance.work(kit(site, record), script, disk, own, drain=drain)
        _require_done(worked, f"{said} cannot be copied out of '{record.name}'")
        if failures:
            raise failures[0]
        return arrival.land()


def archive(site: Site, record: BoxRecord, disk: Path, keep: Callable[[BinaryIO], object]) -> None:
    """Send the root file system of a disk to ``keep`` as a tar stream."""
    with work_folder(site, "archiving files") as own:
        worked = appliance.work(kit(site, record), FIND + _ARCHIVE, disk, own, drain=keep)
    _require_done(worked, f"The files of '{record.name}' cannot be archived")


def filled(site: Site, record: BoxRecord, feed: Feed) -> Path:
    """Return a disk for a box, staged beside its own: its image's, with a new root file system that holds a tar stream.

    Raises TransferError, ImageError, SpaceError, BoxError; nothing is left then.
    """
    folder = site.state.box(record.name)
    backing: Backing = record.bases[FIRST_DISK]
    disk = snapshots.new_overlays(site.hypervisor, folder, {FIRST_DISK: backing})[FIRST_DISK]
    try:
        fill(site, record, disk, feed)
        with translate_os_errors("write", disk):
            fsync_path(disk)
    except BaseException:
        disk.unlink(missing_ok=True)
        raise
    return disk


def fill(site: Site, record: BoxRecord, disk: Path, feed: Feed) -> None:
    """Make the root file system of a disk anew, with the files of a tar stream and nothing else."""
    with work_folder(site, "putting back files") as own:
        worked = appliance.work(kit(site, record), FIND + _FILL, disk, own, write=True, feed=feed)
        _require_done(worked, f"The files cannot be put back onto the disk of '{record.name}'")


def kit(site: Site, record: BoxRecord) -> Kit:
    """Return what an appliance is made of: the box's own image where it was built and will do, else the newest such.

    Raises ImageError that says how to get one.
    """
    # The tools of a stored one are what a guest left.
    images = sorted(
        site.images.list(),
        key=lambda image: (not image.stored_from, image.address == record.image, image.created),
        reverse=True,
    )
    for image in images:
        root = appliance.root_device(image.command_line)
        packages = {"tar", "e2fsprogs", "dash"} <= image.packages.keys() or not image.packages
        whole = packages and image.disk_format == "qcow2" and image.disk.exists()
        if root is None or image.kernel is None or image.initrd is None or not whole:
            continue
        chosen = accelerator.choose(site.configuration.host.accelerator.value, site.state.cache).accelerator
        host = site.hypervisor.host
        return Kit(
            kernel=image.kernel,
            initrd=image.initrd,
            disk=image.disk,
            root=root,
            accelerator=chosen,
            runs_as=None if site.hypervisor.session or os.geteuid() != 0 else host.qemu_owner,
        )
    raise ImageError(
        f"The disk of '{record.name}' cannot be looked into: that is done by a small guest, and no image here has a "
        "kernel and an initrd to start it with.",
        hint="vmimagemanager image build debian-12",
    )


@contextmanager
def _own_copy(site: Site, record: BoxRecord) -> Iterator[Path]:
    """Yield a copy of a box's overlay, which takes its place when the block has ended."""
    folder = site.state.box(record.name)
    require_space(folder.path, Size(occupied(folder.overlay).bytes), purpose=f"Changing the disk of '{record.name}'")
    staged = folder.overlay.with_name(f".{folder.overlay.name}.{os.getpid()}")
    try:
        disks.copy(folder.overlay, staged)
        launch.give_to_qemu(site.hypervisor, staged)
        yield staged
        with translate_os_errors("replace", folder.overlay):
            fsync_path(staged)
            staged.replace(folder.overlay)
            fsync_path(folder.path)
    finally:
        staged.unlink(missing_ok=True)


@contextmanager
def work_folder(site: Site, purpose: str) -> Iterator[Path]:
    """Yield a staged folder for what an appliance is started with."""
    with stage(site.state.path, purpose=purpose) as own:
        own.chmod(0o755)  # QEMU's user reads the initrd in it
        yield own


def _quoted(path: PurePosixPath) -> str:
    return shlex.quote(str(path))


def refuse_no_root(worked: Worked, said: str) -> None:
    """Raise BoxError that begins with ``said``, when a script found no root file system to work on."""
    if worked.status == _NO_ROOT:
        lines = _lines(worked)
        found = lines[-1].removeprefix("found:").strip() if lines else ""
        raise BoxError(
            f"{said}: no ext4 file system with an '/etc' is on its disk" + (f", only {found}." if found else "."),
            hint="Start the box, and do it while it runs; a disk of another kind is stored whole: --format qcow2",
        )


def _lines(worked: Worked) -> list[str]:
    return [line for line in worked.printed.splitlines() if "Exiting with failure status" not in line]


def _require_done(worked: Worked, said: str) -> None:
    if worked.status == 0:
        return
    refuse_no_root(worked, said)
    lines = _lines(worked)
    if any(says_full(line) for line in lines):
        raise SpaceError(f"{said}: its disk is full.", detail=worked.printed)
    reason = lines[-1].removeprefix("tar: ").rstrip(".") if lines else f"status {worked.status}"
    raise TransferError(f"{said}: {reason}.", detail="\n".join(lines[:-1]))
