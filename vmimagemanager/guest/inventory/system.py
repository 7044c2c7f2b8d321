"""What else a package may bring, and a hand may change: sockets, users, repositories, keys, kernel modules."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator

from vmimagemanager.errors import GuestError
from vmimagemanager.guest.inventory import rpm
from vmimagemanager.guest.inventory.answer import Answer, visible
from vmimagemanager.guest.inventory.packages import Fact, Kind, System

# Passwords and tokens in the files of repositories do not leave the guest.
PROBE = r"""
repositories() {
    set --
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources \
        /etc/yum.repos.d/*.repo /etc/zypp/repos.d/*.repo /etc/apk/repositories /etc/pacman.conf
    do
        [ ! -f "$file" ] || set -- "$@" "$file"
    done
    [ $# = 0 ] || grep -aH '' "$@" | sed -e 's#//[^/@ ]*@#//***@#g' \
        -e 's/\([Pp]assword *[=:]\).*/\1***/' -e 's/\([Uu]sername *[=:]\).*/\1***/' \
        -e 's/\([?&][^=&]*[Tt]oken=\)[^&]*/\1***/g' -e 's/\([?&][^=&]*[Kk]ey=\)[^&]*/\1***/g' \
        -e 's/\([?&][^=&]*[Ss]ecret=\)[^&]*/\1***/g'
}
keys() {
    set --
    for file in /etc/apt/trusted.gpg /etc/apt/trusted.gpg.d/* /etc/apt/keyrings/* /usr/share/keyrings/* \
        /etc/pki/rpm-gpg/* /etc/apk/keys/* /root/.ssh/authorized_keys /home/*/.ssh/authorized_keys
    do
        [ ! -f "$file" ] || set -- "$@" "$file"
    done
    [ $# = 0 ] || sha256sum "$@"
}
archive() {
    set --
    for file in /var/lib/apt/lists/*InRelease /var/lib/apt/lists/*_Release /var/cache/dnf/*/repodata/repomd.xml; do
        [ ! -f "$file" ] || set -- "$@" "$file"
    done
    [ $# = 0 ] || grep -aHE '^Date: |<revision>' "$@"
}
section users show /etc/passwd
section groups show /etc/group
section repositories repositories
if have sha256sum; then section keys keys; fi
section archive archive
alive() {
    if [ -e /proc/modules ]; then section modules show /proc/modules; fi
    if have ss; then
        PROC_ROOT=/proc/  # without it ss would load modules into the kernel
        export PROC_ROOT
        section sockets ss -Hlntup
    else
        section sockets-proc cat /proc/net/tcp /proc/net/tcp6 /proc/net/udp /proc/net/udp6
    fi
    section kernel show /proc/sys/kernel/osrelease
    if [ -e /proc/sys/kernel/arch ]; then section machine show /proc/sys/kernel/arch; else section machine uname -m; fi
}
if [ "$running" ]; then alive; else section off :; fi
for file in /etc/os-release /usr/lib/os-release; do
    if [ -e "$file" ]; then section os-release show "$file"; break; fi
done
section clock date +%s
"""

_PROCESS = re.compile(r'\("((?:[^"\\]|\\.)*)",pid=')
_PATH_LINE = re.compile(r"(/[^:]+):(.*)")
_LISTENING = {"tcp": "0A", "udp": "07"}  # linux/include/net/tcp_states.h; a UDP socket that nothing is connected to


def system(answer: Answer) -> System:
    """Return what the guest says it is."""
    fields: dict[str, str] = {}
    for line in answer.lines("os-release"):
        key, equals, value = line.partition("=")
        if equals:
            fields[key] = _unquoted(value)
    return System(
        id=fields.get("ID", ""),
        version=fields.get("VERSION_ID", ""),
        name=fields.get("PRETTY_NAME", ""),
        kernel=answer.text("kernel").strip(),
        machine=answer.text("machine").strip(),
    )


def clock(answer: Answer) -> int:
    """Return the seconds since 1970 by the guest's own clock, or 0 when it says nothing that a date can hold."""
    text = answer.text("clock").strip()
    return int(text) if re.fullmatch(r"[0-9]{1,11}", text) else 0


def archive(answer: Answer) -> dict[str, str]:
    """Return the date or the revision of each repository's release file that the guest has."""
    found = {}
    for path, line in _path_lines(answer.lines("archive")):
        revision = re.search(r"<revision>([^<]*)<", line)
        found[path.rpartition("/lists/")[2]] = revision[1] if revision else line.removeprefix("Date: ")
    return found


def facts(answer: Answer) -> Iterator[Fact]:
    """Yield all facts; a line that is not understood is an error, as nothing may be overlooked in silence."""
    for read in (_users, _groups, _repositories, _keys, _modules, _sockets, _sockets_of_proc):
        yield from read(answer)


def unknown(answer: Answer) -> dict[Kind, str]:
    """Return what could not be looked at, and why."""
    reasons = {}
    if "keys" not in answer:
        reasons[Kind.KEY] = "the guest has no sha256sum"
    if "off" in answer:
        return reasons | dict.fromkeys((Kind.SOCKET, Kind.MODULE), "the guest is off")
    if "sockets" in answer and answer.statuses["sockets"]:
        reasons[Kind.SOCKET] = "ss failed"
    if "modules" not in answer:
        reasons[Kind.MODULE] = "the guest's kernel has no modules"
    return reasons


def _users(answer: Answer) -> Iterator[Fact]:
    for name, _, user, group, _, home, shell in _records(answer, "users", 7):
        yield Fact(kind=Kind.USER, name=name, detail=f"{user}:{group} {home} {shell}")


def _groups(answer: Answer) -> Iterator[Fact]:
    for name, _, group, members in _records(answer, "groups", 4):
        names = ",".join(sorted(filter(None, members.split(","))))
        yield Fact(kind=Kind.GROUP, name=name, detail=f"{group} {names}".strip())


def _records(answer: Answer, section: str, count: int) -> Iterator[list[str]]:
    for line in answer.lines(section):
        fields = line.split(":")
        if len(fields) == count:
            yield fields
        elif line.strip() and not line.startswith(("#", "+", "-")):  # NIS, in nsswitch's mode compat
            raise GuestError(f"The guest's {section} hold a line that is not understood: {line[:80]!r}.")


def _repositories(answer: Answer) -> Iterator[Fact]:
    files: dict[str, list[str]] = {}
    for path, line in _path_lines(answer.lines("repositories")):
        files.setdefault(path, []).append(line)
    for path, lines in files.items():
        read = _READERS.get(path.rpartition(".")[2] if "." in path.rpartition("/")[2] else "", _one_a_line)
        for name, detail in read(lines):
            yield Fact(kind=Kind.REPOSITORY, name=name, detail=detail)


def _one_a_line(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        words = line.partition("#")[0].split()
        if words:
            yield " ".join(words), ""


def _stanzas(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Read deb822 (sources.list(5)): each repository of a stanza is one by itself."""
    for stanza in "\n".join(line for line in lines if not line.startswith("#")).split("\n\n"):
        fields: dict[str, str] = {}
        key = ""
        for line in stanza.split("\n"):
            if line[:1].isspace():
                fields[key] = f"{fields.get(key, '')} {line.strip()}"
            else:
                key, _, value = line.partition(":")
                key = key.lower()
                fields[key] = value.strip()
        if fields.get("enabled", "yes").lower() in ("no", "false", "0"):
            continue
        for kind in fields.get("types", "").split():
            for uri in fields.get("uris", "").split():
                for suite in fields.get("suites", "").split():
                    yield " ".join([kind, uri, suite, *fields.get("components", "").split()]), ""


def _sections(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Read .repo files and pacman.conf(5): sections in brackets."""
    name, values = "", dict[str, str]()
    for line in [*lines, "[]"]:
        text = line.strip()
        if text.startswith("[") and text.endswith("]"):
            if name and name != "options" and values.get("enabled", "1") not in ("0", "false", "no"):
                wanted = ("baseurl", "mirrorlist", "metalink", "server", "include")
                yield name, " ".join(values[key] for key in wanted if key in values)
            name, values = text[1:-1], {}
        elif "=" in text and not text.startswith(("#", ";")):
            key, _, value = text.partition("=")
            key = key.strip().lower()
            values[key] = f"{values[key]} {value.strip()}" if key in values else value.strip()


_Reader = Callable[[Iterable[str]], Iterator[tuple[str, str]]]
_READERS: dict[str, _Reader] = {"sources": _stanzas, "repo": _sections, "conf": _sections}


def _keys(answer: Answer) -> Iterator[Fact]:
    for line in answer.raw("keys").split(b"\n"):
        digest, path = line[:64].lstrip(b"\\"), line[66:]
        if path:
            yield Fact(kind=Kind.KEY, name=visible(path), detail=f"sha256 {digest.decode('ascii', 'replace')}")
    for name, version in rpm.keys(answer):
        yield Fact(kind=Kind.KEY, name=f"{name}-{version}")


def _modules(answer: Answer) -> Iterator[Fact]:
    for line in answer.lines("modules"):
        if line:
            yield Fact(kind=Kind.MODULE, name=line.split(" ", 1)[0])


def _sockets(answer: Answer) -> Iterator[Fact]:
    found: dict[str, set[str]] = {}
    for line in answer.lines("sockets"):
        words = line.split(None, 6)
        if len(words) < 6 or words[0] == "Netid":
            continue
        address, _, port = words[4].rpartition(":")
        processes = set(_PROCESS.findall(words[6])) if len(words) > 6 else set()
        found.setdefault(f"{words[0]}/{_class(address)}/{port}", set()).update(processes)
    for name, processes in found.items():
        yield Fact(kind=Kind.SOCKET, name=name, detail=", ".join(sorted(processes)))


def _class(address: str) -> str:
    plain = address.strip("[]").partition("%")[0]
    if plain in ("0.0.0.0", "::", "*"):  # noqa: S104 - what others listen on
        return "any"
    return "loopback" if plain.startswith(("127.", "::ffff:127.")) or plain == "::1" else "address"


def _sockets_of_proc(answer: Answer) -> Iterator[Fact]:
    """Read proc(5)'s net/tcp and the like, one after the other; addresses are in the processor's byte order."""
    protocol = ""
    names = set()
    for line in answer.lines("sockets-proc"):
        words = line.split()
        if words[:1] == ["sl"]:
            protocol = "udp" if "drops" in words else "tcp"
        elif len(words) > 3 and words[3] == _LISTENING.get(protocol):
            address, _, port = words[1].partition(":")
            try:
                names.add(f"{protocol}/{_hex_class(address)}/{int(port, 16)}")
            except ValueError as error:
                raise GuestError(f"The guest's sockets hold a line that is not understood: {line[:80]!r}.") from error
    for name in names:
        yield Fact(kind=Kind.SOCKET, name=name)


def _hex_class(address: str) -> str:
    if not address.strip("0"):
        return "any"
    loopback = address in ("00000000000000000000000001000000", "00000000000000000000000000000001")
    return "loopback" if loopback or (len(address) == 8 and "7F" in (address[6:], address[:2])) else "address"


def _path_lines(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        match = _PATH_LINE.fullmatch(line)
        if match:
            yield match[1], match[2]


def _unquoted(value: str) -> str:
    try:
        return "".join(shlex.split(value))
    except ValueError:
        return value
