"""Files that were used, by the times of their last access.

Most file systems are mounted so that these are kept seldom or never.  A mount can be told to keep them always, and told
otherwise again, while it is used; that changes no file, and nothing of ours runs in the guest meanwhile.  It is told as
a bind mount is (mount(8)): flags of the mount change, and none of the file system.  Who used a file is not known, nor
what was only looked for and not opened.
"""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Mapping

from vmimagemanager.errors import GuestError
from vmimagemanager.guest.inventory import Run, framed
from vmimagemanager.guest.inventory.answer import Answer, read
from vmimagemanager.guest.inventory.files import ROOTS

PROGRAMS = r"""
programs() {
    readlink /proc/[0-9]*/exe || :
}
section programs programs
"""

_BEGIN = (
    ROOTS
    + r"""
keep() {
    while read -r device folder type options rest; do
        case " $roots " in
            *" $folder "*) ;;
            *) continue ;;
        esac
        flags=remount,bind times=strictatime
        IFS=,
        for option in $options; do
            case $option in
                ro|nosuid|nodev|noexec|nodiratime) flags=$flags,$option ;;
                noatime|relatime) times=$option ;;
            esac
        done
        unset IFS
        printf '%s %s %s\n' "$folder" "$flags" "$times"
        [ "$times" = strictatime ] || mount -o "$flags,strictatime" "$folder" || return
    done </proc/self/mounts
}
if have find && find / -prune -newerat @0 >/dev/null 2>&1; then
    section mounts keep
    section begun date +%s.%N
fi
"""
    + PROGRAMS
)

_END = (
    ROOTS
    + r"""
section used walk -type f \( -newerat "@$since" -printf '%p\0' -o -true \)
section mounts put_back
"""
)

_OTHERWISE = "A guest with perl or Python can be watched by fanotify: --trace fanotify"


class AccessTimes:
    """Keeps access times in a guest from `begin` to `end`."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._begun = ""
        self._mounts: list[tuple[str, str, str]] = []

    def begin(self) -> frozenset[bytes]:
        """Let the guest keep access times; return the programs that run already."""
        found = self._ask(_BEGIN)
        if "mounts" not in found:
            raise GuestError("The guest's find does not know access times: it is not GNU's.", hint=_OTHERWISE)
        self._mounts = [
            (folder, flags, times) for folder, flags, times in (line.split(" ") for line in found.lines("mounts"))
        ]
        if found.statuses["mounts"]:
            self._put_back()
            raise GuestError("The guest's file systems cannot be told to keep access times.", hint=_OTHERWISE)
        for folder, flags, _ in self._mounts:
            if folder in ("/", "/usr") and ",ro" in flags:
                self._put_back()
                raise GuestError(f"'{folder}' is mounted read-only in the guest: no access times.", hint=_OTHERWISE)
        self._begun = found.text("begun").strip()
        return frozenset(found.raw("programs").split(b"\n")) - {b""}

    def end(self) -> Mapping[bytes, frozenset[bytes]]:
        """Return the files that were used since `begin`, and put the mounts back."""
        found = self._ask(self._putting_back() + _END, since=self._begun)
        if found.statuses.get("used", 1) > 1 or "used" not in found:
            raise GuestError("The guest's files could not be listed by their access times.")
        self._mounts = []
        return dict.fromkeys(filter(None, found.raw("used").split(b"\0")), frozenset[bytes]())

    def _put_back(self) -> None:
        self._ask(self._putting_back() + "section mounts put_back\n")
        self._mounts = []

    def _putting_back(self) -> str:
        words = [
            f"mount -o {flags},{times} {shlex.quote(folder)}\n"
            for folder, flags, times in self._mounts
            if times != "strictatime"
        ]
        return "put_back() {\n:\n" + "".join(words) + "}\n"

    def _ask(self, body: str, *, since: str = "") -> Answer:
        mark = secrets.token_hex(16)
        return read(self._run(framed(mark, body, since=since)), mark)
