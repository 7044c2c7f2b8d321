"""Debian packages made on the spot from what real ones once said of themselves, as a repository for a guest's apt.

Each is a few kilobytes, without a program in it: apt and dpkg look at the fields, and the tests at files, units, users
and rights.  deb(5): an ar archive of a version, a tar of control files and a tar of files.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from pathlib import Path

FROZEN = Path(__file__).with_name("frozen-debian-12")
OURS = ("Suite", "Files", "Postinst")
CONTENTS = {
    "/usr/lib/python3/dist-packages/requests-2.28.1.egg-info/PKG-INFO": "Name: requests\nVersion: 2.28.1\n",
    "/lib/systemd/system/atd.service": "[Service]\nExecStart=/usr/sbin/atd -f\n[Install]\nWantedBy=multi-user.target\n",
    "/lib/systemd/system/exim4-base.service": "[Service]\nType=oneshot\nExecStart=/bin/true\n",
    "/lib/systemd/system/exim4-base.timer": "[Timer]\nOnCalendar=daily\n[Install]\nWantedBy=timers.target\n",
}
NUMBERS = {"root": 0, "daemon": 1, "mail": 8}  # as Debian has them


def stanzas() -> list[dict[str, str]]:
    """Return the fields of each frozen package."""
    text = re.sub(r"(?m)^#.*\n", "", FROZEN.read_text())
    return [dict(re.findall(r"(?m)^([A-Z][A-Za-z-]*):((?:.*)(?:\n .*)*)", stanza)) for stanza in text.split("\n\n")]


def repository(folder: Path) -> None:
    """Make a folder for each suite, with the packages and what apt wants to know of them."""
    suites: dict[str, list[str]] = {}
    for fields in stanzas():
        suite = fields["Suite"].strip()
        name = f"{fields['Package'].strip()}_{fields['Version'].strip().replace(':', '%3a')}.deb"
        control = _control(fields)
        content = deb(control, _files(fields.get("Files", "")), _script(fields.get("Postinst", "")))
        (folder / suite).mkdir(exist_ok=True)
        (folder / suite / name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        about = f"{control}Filename: ./{name}\nSize: {len(content)}\nSHA256: {digest}\n"
        suites.setdefault(suite, []).append(about)
    for suite, packages in suites.items():
        index = "\n".join(packages).encode()
        (folder / suite / "Packages").write_bytes(index)
        automatic = "NotAutomatic: yes\nButAutomaticUpgrades: yes\n" if "backports" in suite else ""
        (folder / suite / "Release").write_text(
            f"Origin: Debian\nSuite: {suite}\nCodename: {suite}\nDate: Sat, 28 Nov 2026 00:00:00 UTC\n{automatic}"
            f"SHA256:\n {hashlib.sha256(index).hexdigest()} {len(index)} Packages\n"
        )


def deb(control: str, files: list[tuple[int, str, str, str]], postinst: str = "") -> bytes:
    """Return a package with files (mode, user, group, path) and a script that runs when it is configured."""
    told = [(0o644, "root", "root", "/control", control)]
    if files:
        sums = [f"{hashlib.md5(_content(path)).hexdigest()}  {path[1:]}\n" for *_, path in files]
        told.append((0o644, "root", "root", "/md5sums", "".join(sums)))
    if postinst:
        told.append((0o755, "root", "root", "/postinst", postinst))
    members = {
        "debian-binary": b"2.0\n",
        "control.tar": _tar([(*one[:4], one[4].encode()) for one in told]),
        "data.tar": _tar([(*one, _content(one[3])) for one in files]),
    }
    archive = b"!<arch>\n"
    for name, content in members.items():
        archive += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
        archive += content + b"\n" * (len(content) % 2)
    return archive


def _control(fields: dict[str, str]) -> str:
    kept = [f"{key}:{value}\n" for key, value in fields.items() if key not in OURS]
    return "".join([*kept, "Maintainer: Nobody <nobody@example.org>\nDescription: frozen for a test\n"])


def _files(lines: str) -> list[tuple[int, str, str, str]]:
    found = []
    for line in lines.split("\n")[1:]:
        mode, owner, path = line.split()
        user, _, group = owner.partition(":")
        found.append((int(mode, 8), user, group, path))
    return found


def _script(lines: str) -> str:
    return "#!/bin/sh\nset -e\n" + "\n".join(line[1:] for line in lines.split("\n")[1:]) + "\n" if lines else ""


def _content(path: str) -> bytes:
    return CONTENTS.get(path, "#!/bin/sh\n" if "bin/" in path else "").encode()


def _tar(entries: list[tuple[int, str, str, str, bytes]]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as archive:
        folders = {"/", *(str(parent) for *_, path, _ in entries for parent in Path(path).parents)}
        for folder in sorted(folders):
            info = tarfile.TarInfo("." + folder.rstrip("/") + "/")
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(info)
        for mode, user, group, path, content in entries:
            info = tarfile.TarInfo("." + path)
            info.mode, info.size = mode, len(content)
            info.uname, info.gname = user, group
            info.uid, info.gid = NUMBERS[user], NUMBERS[group]
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()
