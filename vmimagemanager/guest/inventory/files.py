"""The files of a guest: one walk, minus what packages own, which is found out here and not in the guest.

``dpkg -S`` takes 46 ms for each file and is wrong where ``/bin`` is a link to ``/usr/bin``.  Here the links that were
walked over are followed on both sides.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from vmimagemanager.errors import GuestError
from vmimagemanager.guest.inventory.answer import Answer, visible
from vmimagemanager.guest.inventory.packages import Fact, Kind

# GNU's find prints what is asked for; another one (busybox) leaves it to stat, whose lines begin with the mark because
# names may hold line feeds.  Only file systems of disks are walked, each one where it is mounted.  Files come first: to
# compare each with the folders that are left out would take as long as all the rest.  Of most it is enough to tell the
# size: under emulation, to write numbers takes as long as to read them from the inodes.
ROOTS = r"""
roots=
while read -r device folder type rest; do
    case $type in
        nfs*|cifs|smb*|9p|virtiofs|fuse*|ceph|afs|glusterfs) continue ;;
    esac
    case $folder in
        /|/usr|/usr/local|/opt|/boot|/boot/efi|/home|/root|/srv|/var|/var/lib|/var/opt)
            case " $roots " in
                *" $folder "*) ;;
                *) roots="$roots $folder" ;;
            esac ;;
    esac
done </proc/self/mounts
[ "$roots" ] || roots=/
walk() {
    find $roots -xdev "$@" -o \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /var/tmp \
        -o -path /var/cache -o -path /var/log -o -path /var/lib/dpkg -o -path /var/lib/apt -o -path /var/lib/rpm \
        -o -path /var/lib/pacman -o -path /lib/apk -o -path /var/lib/docker -o -path /var/lib/containers \
        -o -path /usr/lib/sysimage -o -path /var/lib/dnf -o -name __pycache__ \) -prune
}
"""
PROBE = (
    ROOTS
    + r"""
listed() {
    walk ! -type d \( -type f -perm 0644 -uid 0 -gid 0 -printf '%s\0%p\0' \
        -o -printf '%m %U %G %s %y\0%l\0%p\0' \) "$@"
}
hashed() {
    sums=$(listed \( -type f -newerct "@$since" -size -262144k \( -path '/usr/*' -o -path '/etc/*' -o -path '/boot/*' \
        -o -path '/opt/*' -o -path '/bin/*' -o -path '/sbin/*' -o -path '/lib*' \) \
        -exec sh -c 'exec md5sum -- "$@" >&3' sh {} + -o -true \) 3>&1 >&4)
} 4>&1
compare=
if have find && find /proc/self/mounts -printf '' 2>/dev/null; then
    if [ "$since" ] && have sed && have grep && have md5sum && have dpkg-query &&
        find / -prune -newerct "@$since" >/dev/null 2>&1
    then
        compare=yes
        section files hashed
    else
        section files listed
    fi
elif have find && have stat; then
    section files-stat walk ! -type d -exec stat -c "$mark %f %u %g %s %n" {} +
fi
if have getcap; then
    section capabilities getcap -r /usr/bin /usr/sbin /usr/local /usr/libexec /bin /sbin /opt
fi
"""
)

# What has changed since a moment of the guest's own clock is hashed in the guest, on the walk that lists it; of dpkg's
# sums only lines come back that hold one of those paths, or the end of one.  What lies where packages seldom put files,
# or is very large, could take minutes: left out.  The change time cannot be set by a program, unlike the time of last
# modification.
CHANGED_PROBE = r"""
changed() {
    [ "$sums" ] || return 0
    printf '%s\n' "$sums"
    printf '%s\n' "$sums" | sed -e '/^\\/d' -e 's/^.\{34\}//' -e 's#^/usr/#/#' -e 's#^/##' |
        grep -hF -f - /var/lib/dpkg/info/*.md5sums | sed 's/^/=/'
}
if [ "$compare" ]; then
    section changed changed
    [ ! "$sums" ] || section conffiles dpkg-query -W -f '${Conffiles}\n'
    sums=
fi
"""

SYSTEM = (
    b"/usr/",
    b"/bin/",
    b"/sbin/",
    b"/lib/",
    b"/lib32/",
    b"/lib64/",
    b"/libx32/",
    b"/opt/",
    b"/etc/",
    b"/boot/",
    b"/srv/",
    b"/var/lib/",
    b"/var/spool/",
    b"/var/opt/",
    b"/var/www/",
)
PROGRAMS = re.compile(
    r"(?<!^/var)/(s?bin|lib|lib32|lib64|libx32|libexec)/|^/(opt|usr/local)/|^/etc/(cron|init\.d|profile\.d)"
)

# What the system itself writes there, at a boot or after each installation; a '*' stands for anything within a name.
GENERATED = (
    "/etc/.pwd.lock",
    "/etc/{passwd,group,shadow,gshadow,subuid,subgid}-",
    "/etc/ld.so.cache",
    "/etc/machine-id",
    "/etc/mtab",
    "/etc/adjtime",
    "/etc/resolv.conf",
    "/etc/ssl/certs/*",
    "/usr/lib/locale/*",
    "/usr/lib/modules/*/modules.*",
    "/usr/lib/udev/hwdb.bin",
    "/usr/share/*/icon-theme.cache",
    "/usr/share/applications/mimeinfo.cache",
    "/usr/share/fonts/*",
    "/usr/share/glib-2.0/schemas/gschemas.compiled",
    "/usr/share/info/dir*",
    "/usr/share/mime/*",
    "/var/lib/cloud/*",
    "/var/lib/dbus/machine-id",
    "/var/lib/dhcp/*",
    "/var/lib/initramfs-tools/*",
    "/var/lib/logrotate/*",
    "/var/lib/pam/*",
    "/var/lib/private/*",
    "/var/lib/systemd/*",
    "/var/lib/ucf/*",
    "/var/lib/update-notifier/*",
    "/boot/initrd.img-*",
    "/boot/grub/*",
)


@dataclass(frozen=True, slots=True)
class File:
    """What lies at one path; ``link`` is where a symbolic link points."""

    mode: int
    user: int
    group: int
    size: int
    link: bytes


@dataclass(frozen=True, slots=True)
class Walk:
    """All files that were walked over, by their paths, and the item of the package that owns each, by the real path."""

    files: Mapping[bytes, File]
    owners: Mapping[bytes, str]


def parse(answer: Answer, owners: Mapping[bytes, str], mark: str) -> Walk | None:
    """Return the files of the guest, or None when it cannot list them."""
    if "files" in answer:
        files = dict(_printed(answer.raw("files")))
        _usable(answer, "files")
    elif "files-stat" in answer:
        files = dict(_stated(answer.raw("files-stat"), mark))
        _usable(answer, "files-stat")
    else:
        return None
    real = _Real({path: file.link for path, file in files.items() if file.link})
    return Walk(files, {real.path(path): owner for path, owner in owners.items()})


def facts(walk: Walk) -> Iterator[Fact]:
    """Yield what nobody owns in the system's folders, what runs with another user's rights, and the alternatives."""
    for path, file in walk.files.items():
        owner = walk.owners.get(path)
        if stat.S_ISREG(file.mode) and file.mode & (stat.S_ISUID | stat.S_ISGID):
            name = visible(path)
            yield Fact(kind=Kind.SETUID, name=name, detail=f"{_mode(file)} {_user(file)}", owner=owner or "")
        if owner is None and not stat.S_ISDIR(file.mode) and path.startswith(SYSTEM):
            yield from _unowned(path, file)


def capabilities(answer: Answer, walk: Walk | None) -> Iterator[Fact]:
    """Yield the capabilities of program files; older versions of getcap write ' = ' between path and capabilities."""
    for line in answer.raw("capabilities").split(b"\n"):
        path, space, value = line.rpartition(b" ")
        if not space or not path.startswith(b"/"):
            continue
        path = path.removesuffix(b" =")
        owner = walk.owners.get(path, "") if walk else ""
        detail = value.decode("ascii", "replace").replace("+", "=")
        yield Fact(kind=Kind.CAPABILITY, name=visible(path), detail=detail, owner=owner)


def modified(answer: Answer, walk: Walk) -> Iterator[Fact]:
    """Yield the files that differ from what their packages brought, of those that changed."""
    wanted: dict[bytes, set[str]] = {}
    real = _Real({path: file.link for path, file in walk.files.items() if file.link})
    now: dict[bytes, str] = {}
    for line in answer.raw("changed").split(b"\n"):
        if line.startswith(b"="):
            wanted.setdefault(real.path(b"/" + line[35:]), set()).add(line[1:33].decode("ascii", "replace"))
        elif len(line) > 34 and not line.startswith(b"\\"):
            now[line[34:]] = line[:32].decode("ascii", "replace")
    for line in answer.raw("conffiles").split(b"\n"):
        words = line.split(b" ")
        if len(words) >= 3 and words[1].startswith(b"/") and words[-1] != b"obsolete":
            wanted.setdefault(real.path(words[1]), set()).add(words[2].decode("ascii", "replace"))
    for path, digest in now.items():
        if path in wanted and digest not in wanted[path]:
            yield Fact(kind=Kind.MODIFIED, name=visible(path), detail=f"md5 {digest}", owner=walk.owners.get(path, ""))


def in_program_path(name: str) -> bool:
    """Say whether a file lies where programs and libraries are looked for."""
    return PROGRAMS.search(name) is not None


class _Real:
    """Follows links in the folders of a path, as the walk found them."""

    def __init__(self, links: Mapping[bytes, bytes]) -> None:
        self._links = links
        self._folders: dict[bytes, bytes] = {b"": b"", b"/": b""}

    def path(self, path: bytes) -> bytes:
        folder, _, name = path.rpartition(b"/")
        return self._folder(folder, 0) + b"/" + name

    def _folder(self, folder: bytes, depth: int) -> bytes:
        found = self._folders.get(folder)
        if found is not None or depth > 40:  # as many as Linux follows
            return folder if found is None else found
        parent, _, name = folder.rpartition(b"/")
        real = self._folder(parent, depth + 1) + b"/" + name
        link = self._links.get(real)
        if link is not None:
            target = link if link.startswith(b"/") else real.rpartition(b"/")[0] + b"/" + link
            real = self._folder(_normal(target), depth + 1)
        self._folders[folder] = real
        return real


def _normal(path: bytes) -> bytes:
    parts: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/" + b"/".join(parts)


def _usable(answer: Answer, section: str) -> None:
    """Refuse a walk that a signal ended; status 1 means that a file went away meanwhile."""
    if answer.statuses.get(section, 0) > 1:
        raise GuestError(f"The guest's files could not be listed: find ended with status {answer.statuses[section]}.")


def _printed(content: bytes) -> Iterator[tuple[bytes, File]]:
    fields = iter(content.split(b"\0"))
    types = {b"d": stat.S_IFDIR, b"l": stat.S_IFLNK, b"f": stat.S_IFREG, b"p": stat.S_IFIFO, b"s": stat.S_IFSOCK}
    types |= {b"c": stat.S_IFCHR, b"b": stat.S_IFBLK}
    for status in fields:
        if not status:  # after the last one
            return
        try:
            if b" " not in status:
                yield next(fields), File(stat.S_IFREG | 0o644, 0, 0, int(status), b"")
                continue
            mode, user, group, size, type_ = status.split(b" ")
            link, path = next(fields), next(fields)
            yield path, File(int(mode, 8) & 0o7777 | types.get(type_, 0), int(user), int(group), int(size), link)
        except ValueError as error:
            raise GuestError(f"find wrote something in the guest that is not understood: {status[:80]!r}.") from error
        except StopIteration:
            raise GuestError("What find wrote in the guest was cut off.") from None


def _stated(content: bytes, mark: str) -> Iterator[tuple[bytes, File]]:
    for line in (b"\n" + content).split(b"\n" + mark.encode() + b" ")[1:]:
        try:
            mode, user, group, size, path = line.split(b" ", 4)
            yield path.removesuffix(b"\n"), File(int(mode, 16) & 0xFFFF, int(user), int(group), int(size), b"")
        except ValueError as error:
            raise GuestError(f"stat wrote something in the guest that is not understood: {line[:80]!r}.") from error


def _unowned(path: bytes, file: File) -> Iterator[Fact]:
    name = visible(path)
    if stat.S_ISLNK(file.mode):
        if path.startswith(b"/etc/alternatives/"):
            yield Fact(kind=Kind.ALTERNATIVE, name=visible(path[18:]), detail=visible(file.link))
            return
        if file.link.startswith(b"/etc/alternatives/"):
            return
    if _GENERATED.fullmatch(name):
        return
    detail = f"{_mode(file)} {_user(file)}"
    if stat.S_ISLNK(file.mode):
        detail = f"link to {visible(file.link)}" if file.link else "link"
    elif stat.S_ISREG(file.mode) and in_program_path(name):
        detail += f" {file.size} bytes"
    yield Fact(kind=Kind.FILE, name=name, detail=detail)


def _mode(file: File) -> str:
    return stat.filemode(file.mode)


def _user(file: File) -> str:
    return f"{file.user}:{file.group}"


def _pattern(glob: str) -> str:
    """Return a regular expression; a '*' at the end stands for all that is below, and any one for a part of a path."""
    words = re.sub(
        r"\{([^}]*)\}",
        lambda found: f"(?:{found[1].replace(',', '|')})",
        re.escape(glob).replace(r"\{", "{").replace(r"\}", "}"),
    )
    return words.replace(r"\*", ".*")


_GENERATED = re.compile("|".join(map(_pattern, GENERATED)))
