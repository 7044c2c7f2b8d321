"""Asking a guest that is off what is in it: by its own tools on its own disk, in an appliance that nobody needs later.

What only a running system can tell (kernel, modules, sockets) is not asked.  A tool may write, as rpm does to open its
database: that goes to the appliance's copy, and away with it.  Only the first disk is there: where the guest would
mount more than that over folders that are listed, nothing is said at all.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from vmimagemanager.boxes.offline import FIND, kit, refuse_no_root, work_folder
from vmimagemanager.boxes.record import BoxRecord
from vmimagemanager.boxes.site import Site
from vmimagemanager.errors import GuestError
from vmimagemanager.guest.inventory.answer import MOST
from vmimagemanager.hypervisor import appliance

_UNMOUNTED = 44
_ENTER = f"""\
mount -o remount,rw,noatime /mnt 2>/dev/null
for module in vfat nls_cp437 nls_ascii nls_iso8859-1; do modprobe -q $module; done
device_of() {{
    case $1 in
    UUID=*) tag=UUID ;;
    LABEL=*) tag=LABEL ;;
    PARTUUID=*) tag=PART_ENTRY_UUID ;;
    PARTLABEL=*) tag=PART_ENTRY_NAME ;;
    /dev/[sv]da[0-9]*|/dev/xvda[0-9]*) echo "/dev/vdb${{1##*[!0-9]}}"; return ;;
    *) return 1 ;;
    esac
    for device in /dev/vdb[0-9]*; do
        [ "$(blkid -p -o value -s "$tag" "$device")" != "${{1#*=}}" ] || echo "$device"
    done
}}
[ ! -f /mnt/etc/fstab ] || while read -r device folder type options rest; do
    case $folder in
    /usr|/usr/local|/opt|/boot|/boot/efi|/home|/root|/srv|/var|/var/lib|/var/opt) ;;
    *) continue ;;
    esac
    case $type,$options, in
    nfs*|cifs*|smb*|9p*|virtiofs*|fuse*|ceph*|afs*|glusterfs*|tmpfs*|*,noauto,*) continue ;;
    esac
    mount -o ro "$(device_of "$(echo "$device" | tr -d '"')")" "/mnt$folder" || {{ echo "$folder"; exit {_UNMOUNTED}; }}
done </mnt/etc/fstab
mkdir -p /mnt/dev /mnt/proc
mount --bind /dev /mnt/dev
mount -t proc proc /mnt/proc || exit
"""


def ask(site: Site, record: BoxRecord, disk: Path, script: str) -> bytes:
    """Run a POSIX sh script as root on the disk of a guest, and return what it wrote; the disk stays as it is.

    Raises BoxError for a disk without a file system that is known, GuestError when the script cannot be run there, and
    ImageError when there is no image to make an appliance of.
    """
    end = "end-of-the-probe"
    content = BytesIO()

    def drain(stream: BinaryIO) -> None:
        while piece := stream.read(1 << 20):
            if content.tell() + len(piece) > MOST:
                raise GuestError(f"The inventory of '{record.name}' is larger than {MOST >> 20} MiB.")
            content.write(piece)

    job = f"{FIND}{_ENTER}chroot /mnt /bin/sh -s >&3 <<'{end}'\n{script}\n{end}\n"
    with work_folder(site, "looking at what is in a guest") as own:
        worked = appliance.work(kit(site, record), job, disk, own, drain=drain)
    said = f"What is in the guest of '{record.name}', which is off, cannot be listed"
    refuse_no_root(worked, said)
    if worked.status != 0:
        last = (worked.printed.splitlines() or [""])[-1]
        reason = f"its '{last}' lies where the appliance cannot mount it" if worked.status == _UNMOUNTED else last
        raise GuestError(
            f"{said}: {reason or f'the probe ended with status {worked.status}'}.",
            hint=f"Ask it while it runs: vmimagemanager up {record.name}",
            detail=worked.printed,
        )
    return content.getvalue()
