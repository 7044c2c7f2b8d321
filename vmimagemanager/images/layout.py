"""What is laid into a Debian tree to make it a base image: plain files and links, as members of a tar.

`initramfs` goes in before the kernel is installed, so that its initrd is made once and right.  `system` goes in at the
end and has the last word.  `LEFT_OUT` is what must not be in an image: identities, seeds, caches.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass

LABEL = "vmim-root"
COMMAND_LINE = "root=/dev/vda rw console=ttyS0"
# Without libpam-systemd, a first SSH session starts no systemd of the user's own: 2 s under emulation.
PACKAGES = (
    "systemd",
    "systemd-sysv",
    "systemd-resolved",
    "udev",
    "dbus",
    "openssh-server",
    "qemu-guest-agent",
    "initramfs-tools",
    "iproute2",
    "ca-certificates",
    "e2fsprogs",
)
LEFT_OUT = (
    "./dev/*",
    "./run/*",
    "./tmp/*",
    "./etc/ssh/ssh_host_*",
    "./var/cache/apt/*.bin",
    "./var/cache/apt/archives/*.deb",
    "./var/cache/debconf/*-old",
    "./var/lib/apt/lists/*_*",
    "./var/lib/dbus/machine-id",
    "./var/lib/systemd/random-seed",
    "./var/log/journal",
)


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link."""

    target: str


@dataclass(frozen=True, slots=True)
class File:
    """A file with a mode of its own."""

    content: bytes
    mode: int = 0o644


Entries = Mapping[str, str | File | Link]

# What the root file system may lie on.  All of it is loaded at each boot, which is cheaper under emulation than udev's
# search for what is needed.
_INITRD_MODULES = "virtio_pci virtio_blk virtio_scsi sd_mod ahci nvme ext4"

_FSTAB = "/dev/vda  /  ext4  defaults,noatime  0  0\n"

INITRAMFS: Entries = {
    "etc/fstab": _FSTAB,
    "etc/initramfs-tools/conf.d/vmimagemanager": "MODULES=list\nCOMPRESS=gzip\n",
    "etc/initramfs-tools/conf.d/resume": "RESUME=none\n",  # else it looks for the swap of the host
    "usr/share/initramfs-tools/modules.d/vmimagemanager": _INITRD_MODULES.replace(" ", "\n") + "\n",
}

_MASKED = (
    # what changes the machine, or loads it, at times of its own
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "logrotate.timer",
    "man-db.timer",
    "systemd-tmpfiles-clean.timer",
    # what only costs time at boot: 5 of 20 seconds under emulation (measured); 'systemctl unmask' brings each back
    "console-setup.service",
    "dev-hugepages.mount",
    "getty@tty1.service",
    "keyboard-setup.service",
    "modprobe@configfs.service",
    "modprobe@dm_mod.service",
    "modprobe@drm.service",
    "modprobe@fuse.service",
    "modprobe@loop.service",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-journal-flush.service",  # the journal stays in memory
    "systemd-networkd-wait-online.service",
    "systemd-pstore.service",
    "systemd-repart.service",
    "systemd-update-utmp-runlevel.service",
)

_NETWORK = """\
[Match]
Type=ether
Name=en* eth*

[Link]
RequiredForOnline=no

[Network]
DHCP=yes
LLMNR=no
# After a restore the clock jumps, and the lease may have ended long ago: the address stays all the same.
KeepConfiguration=dhcp

[DHCPv4]
# The machine-id changes with each box; the hardware address is what the host gave.
ClientIdentifier=mac
"""

_SSHD = """\
PermitRootLogin prohibit-password
UseDNS no
"""

_SSH_CONDITION = """\
[Unit]
# An image has no host key: the box gets its own at the first boot, and ssh is started then.
ConditionPathExists=/etc/ssh/ssh_host_ed25519_key
"""

_UNITS = "/usr/lib/systemd/system"

SYSTEM: Entries = {
    "etc/machine-id": "",
    "etc/hostname": "localhost\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
    "etc/fstab": _FSTAB,
    "etc/locale.conf": "LANG=C.UTF-8\n",
    "etc/default/locale": "LANG=C.UTF-8\n",
    "etc/resolv.conf": Link("../run/systemd/resolve/stub-resolv.conf"),
    "etc/ssh/sshd_config.d/vmimagemanager.conf": _SSHD,
    "etc/systemd/journald.conf.d/vmimagemanager.conf": "[Journal]\nStorage=volatile\n",
    "etc/systemd/network/80-vmimagemanager.network": _NETWORK,
    "etc/systemd/system/ssh.service.d/vmimagemanager.conf": _SSH_CONDITION,
    "etc/systemd/system/dbus-org.freedesktop.network1.service": Link(f"{_UNITS}/systemd-networkd.service"),
    "etc/systemd/system/multi-user.target.wants/systemd-networkd.service": Link(f"{_UNITS}/systemd-networkd.service"),
    "etc/systemd/system/sockets.target.wants/systemd-networkd.socket": Link(f"{_UNITS}/systemd-networkd.socket"),
    **{f"etc/systemd/system/{unit}": Link("/dev/null") for unit in _MASKED},
}


def on_partition(entries: Entries, number: int) -> Entries:
    """Return the entries for a system that is in the partition ``number`` of its disk, or 0: it has none."""
    return {**entries, "etc/fstab": _FSTAB.replace("vda", f"vda{number}")} if number else entries


def command_line(partition: int) -> str:
    """Return the command line of a kernel whose root file system is in that partition of the first disk."""
    return COMMAND_LINE.replace("vda", f"vda{partition}")


def add(archive: tarfile.TarFile, entries: Entries, *, epoch: int = 0, with_folders: bool = True) -> None:
    """Add the entries, owned by root and of the time ``epoch``, to a tar, and the folders above them.

    Without folders, those that exist where the tar is unpacked keep their modes, and others are made then.
    """
    folders: set[str] = set()
    for name, entry in entries.items():
        parts = name.split("/")[:-1]
        for depth in range(2, len(parts) + 1):  # the first one (etc, usr) is in every tree, with its own mode
            folder = "/".join(parts[:depth])
            if with_folders and folder not in folders:
                folders.add(folder)
                archive.addfile(_member(folder, tarfile.DIRTYPE, 0o755, epoch))
        if isinstance(entry, Link):
            member = _member(name, tarfile.SYMTYPE, 0o777, epoch)
            member.linkname = entry.target
            archive.addfile(member)
        else:
            file = entry if isinstance(entry, File) else File(entry.encode())
            member = _member(name, tarfile.REGTYPE, file.mode, epoch)
            member.size = len(file.content)
            archive.addfile(member, io.BytesIO(file.content))


def _member(name: str, kind: bytes, mode: int, epoch: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(f"./{name}")
    member.type, member.mode, member.mtime = kind, mode, epoch
    member.uname = member.gname = "root"
    return member
