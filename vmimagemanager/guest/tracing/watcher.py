"""Files that are used, and by whom, as fanotify(7) tells it to a process of ours in the guest.

The process is a few lines of perl, or of Python where there is no perl, that nobody has to install; it keeps what it
hears in its memory.  A pipe with a name in /run hands that over when the process is asked to end.  Whoever opens a file
is told by the program that he runs.  A program is opened by who starts it, so of a process it is known which program it
became, even when it has long ended.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from importlib import resources

from vmimagemanager.errors import GuestError
from vmimagemanager.guest.inventory import Run, framed
from vmimagemanager.guest.inventory.answer import Answer, read
from vmimagemanager.guest.inventory.files import ROOTS
from vmimagemanager.guest.tracing.accesstimes import PROGRAMS

_BEGIN = (
    ROOTS
    + PROGRAMS
    + r"""
umask 077
if have perl; then
    section watch perl -e "$perl" "$pipe" $roots
elif have python3; then
    section watch python3 -c "$python" "$pipe" $roots
fi
"""
)

_END = r"""
heard() {
    read -r state <"/proc/$process/stat" || return
    case $state in
        *") Z "*) return 1 ;;
    esac
    kill -TERM "$process" && timeout 30 cat "$pipe"
}
section used heard
rm -f "$pipe"
"""


_OTHERWISE = "Access times need nothing of that: --trace atime"


class Watcher:
    """Listens in a guest from `begin` to `end`."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._pipe = ""
        self._process = 0

    def begin(self) -> frozenset[bytes]:
        """Start to listen; return the programs that run already."""
        self._pipe = f"/run/vmimagemanager-{secrets.token_hex(16)}"
        programs = f"perl='{_program('watch.perl')}'\npython='{_program('watch.python')}'\n"
        found = self._ask(f"pipe={self._pipe}\n{programs}{_BEGIN}")
        if "watch" not in found:
            raise GuestError(
                "Nothing can listen in the guest for files that are used: it has neither perl nor Python.",
                hint=_OTHERWISE,
            )
        word, _, rest = found.text("watch").strip().partition(" ")
        if word != "listening":
            why = rest if word == "failed" else f"the listener ended with status {found.statuses['watch']}"
            raise GuestError(f"The guest's kernel does not tell which files are used: {why}.", hint=_OTHERWISE)
        self._process = int(rest)
        return frozenset(found.raw("programs").split(b"\n")) - {b""}

    def end(self) -> Mapping[bytes, frozenset[bytes]]:
        """Return the files that were opened since `begin`, each with the programs that did it."""
        found = self._ask(f"pipe={self._pipe} process={self._process}\n{_END}")
        content = found.raw("used")
        if not content.endswith(b"\0\0"):
            raise GuestError("What listened in the guest for files that are used was ended before it could tell.")
        used: dict[bytes, set[bytes]] = {}
        fields = content[:-2].split(b"\0")
        for path, who in zip(fields[::2], fields[1::2], strict=False):
            used.setdefault(path, set()).update({who} - {b""})
        return {path: frozenset(who) for path, who in used.items()}

    def _ask(self, body: str) -> Answer:
        mark = secrets.token_hex(16)
        return read(self._run(framed(mark, body)), mark)


def _program(name: str) -> str:
    """Return a program of this folder, which holds no apostrophe: it stands between two in the shell."""
    return resources.files(__package__).joinpath(name).read_text()
