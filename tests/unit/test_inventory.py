"""The inventory of a guest: the probe on this host, and what its answer is read as."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vmimagemanager import process
from vmimagemanager.errors import GuestError
from vmimagemanager.guest import inventory
from vmimagemanager.guest.inventory import Fact, Inventory, Kind, Package, Scope, apk, dpkg, files, pacman, rpm
from vmimagemanager.guest.inventory.answer import read as sections_of
from vmimagemanager.guest.inventory.answer import visible
from vmimagemanager.report.inventory import lines
from vmimagemanager.trap import Baseline, compare
from vmimagemanager.trap.explain import Need, Reason, explain

MARK = "0123456789abcdef"
PACKAGES_PROBE = inventory.script(MARK, Scope.PACKAGES)
PROBE = inventory.script(MARK)
STILL_PROBE = inventory.script(MARK, running=False)

DPKG = {
    "dpkg": "install ok installed\thello\tamd64\t2.10-3\thello\t\tdpkg (>= 1.15)\t"
    "libc6 (>= 2.34), a:any | b [amd64]\tc\t\n"
    "install ok installed\tdpkg\tamd64\t1.21\tdpkg\tyes\t\t\t\t\n"
    "install ok installed\tlibc6\tamd64\t2.36-9\tglibc\tyes\t\t\t\t\n"
    "install ok installed\tlibc6\ti386\t2.36-9\tglibc\t\t\t\t\t\n"
    "install ok installed\ttzdata\tall\t2024a-0\ttzdata\t\t\t\t\ttzdata-bookworm, zone (= 1)\n"
    "hold ok installed\tkept\tamd64\t1:2~rc1\tkept\t\t\t\t\t\n"
    "deinstall ok config-files\tremoved\tamd64\t1\tremoved\t\t\t\t\t\n"
    "unknown ok not-installed\tnever\tamd64\t\tnever\t\t\t\t\t\n"
    "install ok half-configured\tfailing\tamd64\t1\tfailing\t\t\t\t\t\n"
    "install reinstreq unpacked\tbroken\tamd64\t1\tbroken\t\t\t\t\t\n"
    "install ok triggers-awaited\twaiting\tamd64\t1\twaiting\t\t\t\t\t\n",
    "dpkg-automatic": "Package: libc6\nArchitecture: amd64\nAuto-Installed: 1\n\n"
    "Package: tzdata\nArchitecture: amd64\nAuto-Installed: 1\n\n"
    "Package: hello\nArchitecture: amd64\nAuto-Installed: 0\n\n",
}
# Written by rpm 4.18 in a Debian 12 root, for packages made there with rpmbuild; the key was added by hand.
RPM = {
    "rpm": "glibc\t0\t2.34-83.el9\tx86_64\tglibc-2.34-83.el9.src.rpm\t(none)\tlibc.so.6()(64bit)\f\n"
    "hello\t0\t2.12.1-1.fc39\tx86_64\thello.src.rpm\t/bin/sh\flibc.so.6()(64bit)\frpmlib(X)\f(b or c)\f\thello\f\n"
    "bash\t0\t5.1-1\tx86_64\tbash.src.rpm\t(none)\tbash\f\n"
    "bind-libs\t32\t9.16.23-14.el9_3\tx86_64\t\t(none)\t(none)\n"
    "kernel-core\t0\t5.14.0-427.el9\tx86_64\t\t(none)\t(none)\n"
    "kernel-core\t0\t5.14.0-362.el9\tx86_64\t\t(none)\t(none)\n"
    "tzdata\t0\t2024a-1.el9\tnoarch\t\t(none)\t(none)\n"
    "glibc\t0\t2.34-83.el9\ti686\t\t(none)\t(none)\n"
    "gpg-pubkey\t0\t8483c65d-5ccc5b19\t(none)\t(none)\t(none)\t(none)\n",
    "rpm-recommends": "hello\t0\t2.12.1-1.fc39\tx86_64\tzsh\f\n",
    "rpm-architecture": "x86_64\n",
    "rpm-files": "bash\t/bin/sh\fbash\t/usr/bin/bash\fhello\t/usr/bin/hello\f",
}
# In the form of Alpine's installed database (apk-tools 2.14), with packages of our own.
APK = {
    "apk": "C:Q1AAAAAAAAAAAAAAAAAAAAAAAAAAA=\nP:hello\nV:2.12-r0\nA:x86_64\no:hello\nm:A <a@example.org>\n"
    "D:hello-libs=2.12-r0 so:libhello.so.1 /bin/sh !goodbye\np:cmd:hello=2.12-r0\nF:usr\nF:usr/bin\nR:hello\n"
    "a:0:0:755\nZ:Q1BBBB=\nR:a:b\n\n"
    "C:Q1C=\nP:hello-libs\nV:2.12-r0\nA:x86_64\no:hello\np:so:libhello.so.1=1.0\nF:usr/lib\nR:libhello.so.1\n\n"
    "C:Q1D=\nP:hello-doc\nV:2.12-r0\nA:x86_64\no:hello\ni:docs hello=2.12-r0\n\n"
    "C:Q1E=\nP:docs\nV:1-r0\nA:noarch\n\n",
    "apk-world": "hello>2\ndocs\n",
    "apk-architecture": "x86_64\n",
}
# In the form of pacman 6's local database.
PACMAN = {
    "pacman": "%NAME%\nhello\n\n%VERSION%\n2.12-1\n\n%BASE%\nhello\n\n%DESC%\n%ARCH%\n\n%ARCH%\nx86_64\n\n"
    "%DEPENDS%\nlibhello>=2\nsh\n\n%PROVIDES%\ngreeter=1\n\n%FILES%\nusr/\nusr/bin/\nusr/bin/hello\n\n"
    "%NAME%\nlibhello\n\n%VERSION%\n1:2-1\n\n%ARCH%\nany\n\n%REASON%\n1\n\n%FILES%\nusr/lib/libhello.so\n\n",
    "pacman-architecture": "x86_64\n",
}


def lists(files: Mapping[str, str]) -> dict[str, str]:
    """Return the sections of dpkg's lists of files."""
    return {"dpkg-files": "\n".join(f"==> /var/lib/dpkg/info/{name}.list <==\n{text}" for name, text in files.items())}


WHOLE = {
    **lists({"hello": "/.\n/bin\n/bin/hello\n/usr\n", "libc6:amd64": "/.\n/lib\n/lib/libc.so.6\n/etc/at.allow\n"}),
    "users": "root:x:0:0:root:/root:/bin/bash\nat:x:5:5::/var/spool:/usr/sbin/nologin\n",
    "groups": "root:x:0:\nadm:x:4:zoe,anna\n",
    "repositories": "/etc/apt/sources.list:# deb http://no/ a b\n"
    "/etc/apt/sources.list:deb http://***@x/ bookworm main # y\n"
    "/etc/apt/sources.list.d/a.sources:Types: deb deb-src\n/etc/apt/sources.list.d/a.sources:URIs: http://y/\n"
    "/etc/apt/sources.list.d/a.sources:Suites: stable\n/etc/apt/sources.list.d/a.sources:Components: main\n"
    "/etc/apt/sources.list.d/a.sources: contrib\n/etc/apt/sources.list.d/b.sources:Types: deb\n"
    "/etc/apt/sources.list.d/b.sources:Enabled: no\n/etc/apt/sources.list.d/b.sources:URIs: http://z/\n"
    "/etc/yum.repos.d/f.repo:[fedora]\n/etc/yum.repos.d/f.repo:metalink=https://m/?repo=f&arch=x\n"
    "/etc/yum.repos.d/f.repo:[off]\n/etc/yum.repos.d/f.repo:enabled=0\n",
    "keys": f"{'a' * 64}  /etc/apt/keyrings/a.gpg\n",
    "archive": "/var/lib/apt/lists/x_InRelease:Date: Sat, 10 Feb 2024 11:09:00 UTC\n",
    "modules": "ext4 1 2 - Live 0x0\n",
    "sockets": 'tcp LISTEN 0 128 0.0.0.0:22 0.0.0.0:* users:(("sshd",pid=1,fd=3),("systemd",pid=1,fd=9))\n'
    'tcp LISTEN 0 128 [::1]:25 [::]:*\nudp UNCONN 0 0 10.0.2.15%ens3:68 0.0.0.0:* users:(("dhclient",pid=7,fd=1))\n',
    "os-release": 'PRETTY_NAME="Debian GNU/Linux 12"\nID=debian\nVERSION_ID="12"\n',
    "kernel": "6.1.0-18-amd64\n",
    "machine": "x86_64\n",
    "clock": "1700000000\n",
    "capabilities": "/usr/bin/ping cap_net_raw=ep\n/usr/bin/old = cap_net_raw+ep\n",
}
LINKED = ("777 0 0 7 l", "usr/bin", "/bin"), ("777 0 0 7 l", "usr/lib", "/lib")
FILES = (
    *LINKED,
    ("755 0 0 9 f", "", "/usr/bin/hello"),
    ("644 0 0 9 f", "", "/usr/lib/libc.so.6"),
    ("6755 0 1 9 f", "", "/usr/bin/at"),
    ("755 0 0 9 d", "", "/usr/local/bin"),
    ("755 0 0 9 f", "", "/usr/local/bin/a\nb"),
    ("755 0 0 9 f", "", b"/usr/local/bin/\xff"),
    ("777 0 0 9 l", "/usr/bin/mawk", "/etc/alternatives/awk"),
    ("777 0 0 9 l", "/etc/alternatives/awk", "/usr/bin/awk"),
    ("644 0 0 9 f", "", "/etc/ld.so.cache"),
    ("644 0 0 9 f", "", "/etc/group-"),
    ("644 0 0 9 f", "", "/home/a/b"),
    ("644 0 0 9 f", "", "/usr/lib/systemd/system/ssh.service"),
    ("644 0 0 9 f", "", "/usr/lib/systemd/system/cron.service"),
    ("777 0 0 9 l", "/lib/systemd/system/ssh.service", "/etc/systemd/system/multi-user.target.wants/ssh.service"),
    ("777 0 0 9 l", "/lib/systemd/system/ssh.service", "/etc/systemd/system/sshd.service"),
    ("777 0 0 9 l", "/lib/systemd/system/getty@.service", "/etc/systemd/system/getty.target.wants/getty@tty1.service"),
    ("777 0 0 9 l", "/dev/null", "/etc/systemd/system/apt-daily.timer"),
    ("644 0 0 9 f", "", "/usr/lib/systemd/system/apt-daily.timer"),
)


def answer(sections: Mapping[str, str | bytes], end: str = ".\n", statuses: Mapping[str, int] | None = None) -> bytes:
    """Return what the probe writes for these sections."""
    mark, parts = b"\036" + MARK.encode(), []
    for name, text in sections.items():
        content = text if isinstance(text, bytes) else text.encode()
        parts.append(mark + f" {name}\n".encode() + content + mark + f"={(statuses or {}).get(name, 0)}\n".encode())
    return b"".join(parts) + mark + end.encode()


def walked(listed: tuple[tuple[str, str, str | bytes], ...] = FILES) -> bytes:
    """Return what GNU find prints for these files."""
    rows = [
        (status.encode(), link.encode(), path if isinstance(path, bytes) else path.encode())
        for status, link, path in listed
    ]
    return b"".join(b"\0".join(row) + b"\0" for row in rows)


def read(content: bytes) -> Inventory:
    return inventory.parse(content, MARK)


def whole(**more: str | bytes) -> Inventory:
    return read(
        answer({**DPKG, **WHOLE, "files": walked(), **{key.replace("_", "-"): text for key, text in more.items()}})
    )


def named(found: Inventory) -> dict[str, Package]:
    return {package.item: package for package in found.packages}


def facts(found: Inventory, kind: Kind) -> dict[str, str]:
    return {fact.name: fact.detail for fact in found.facts if fact.kind is kind}


def on_this_host(script: str) -> bytes:
    return process.run(["sh", "-s"], stdin=script.encode()).stdout


# -- the probe itself --------------------------------------------------------------------------------------------------


def test_the_probe_lists_this_hosts_packages_as_dpkg_does() -> None:
    found = inventory.take(on_this_host, Scope.PACKAGES)
    listed = process.run(["dpkg-query", "-W", "-f", "${db:Status-Abbrev} ${Package} ${Version}\n"]).stdout.decode()
    installed = {tuple(words[1:]) for line in listed.splitlines() if (words := line.split())[0] == "ii"}
    assert installed <= {(package.name, package.version) for package in found.packages}
    automatic = set(process.run(["apt-mark", "showauto"]).stdout.decode().split())
    assert {package.item.removeprefix("dpkg:") for package in found.packages if package.automatic} == automatic
    assert set(found.unknown) == set(Kind)


@pytest.mark.parametrize("shell", ["sh", "dash", "bash --posix", "busybox sh"])
def test_the_probe_runs_in_every_shell_that_a_guest_may_have(shell: str) -> None:
    argv = shell.split()
    finished = process.run([*argv, "-s"], stdin=PACKAGES_PROBE.encode())
    assert read(finished.stdout).packages
    assert finished.stderr == b""


def test_every_shell_can_read_the_whole_probe() -> None:
    for shell in ("sh", "dash", "bash"):
        if shutil.which(shell):
            assert process.run([shell, "-n"], stdin=PROBE.encode()).stderr == b""


def test_the_probe_is_not_misled_by_the_callers_environment() -> None:
    plain = read(process.run(["sh", "-s"], stdin=PACKAGES_PROBE.encode()).stdout)
    hostile = {"PATH": "/nowhere:/usr/bin:/bin", "DPKG_ADMINDIR": "/nowhere", "DPKG_ROOT": "/nowhere", "COLUMNS": "20"}
    hostile |= {"LC_ALL": "de_DE.UTF-8", "GZIP": "-9", "POSIXLY_CORRECT": "1"}
    assert read(process.run(["sh", "-s"], stdin=PACKAGES_PROBE.encode(), environment=hostile).stdout) == plain


def tree(folder: Path) -> None:
    """Make a small system: what a package owns is not known here, so that everything is unowned."""
    for path, mode in (("usr/bin/at", 0o4755), ("usr/local/bin/new\nline", 0o755), ("opt/a b/c", 0o644)):
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x")
        file.chmod(mode)
    (folder / "opt" / os.fsdecode(b"\xff\xfe")).write_text("")
    site = folder / "usr/local/lib/python3.11/dist-packages/Foo_Bar-1.0.dist-info"
    site.mkdir(parents=True)
    (site / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: Foo.Bar\nVersion: 1.0\nRequires-Dist: baz (>=1)\n\nName: no\n"
    )
    module = folder / "opt/node_modules/@scope/pkg"
    module.mkdir(parents=True)
    (module / "package.json").write_text('{\n  "name": "@scope/pkg",\n  "version": "1.2.3"\n}\n')
    (folder / "lib").symlink_to("usr/lib")


def relocated(script: str, folder: Path) -> str:
    """Let the probe walk a folder instead of the whole host."""
    script = script.replace("</proc/self/mounts", "</dev/null").replace("|| roots=/\n", f"|| roots={folder}\n")
    for place in (
        "/usr/lib/python[23]*",
        "/usr/lib64/python[23]*",
        "/usr/lib/node_modules",
        "/srv /home /root /var/www",
    ):
        script = script.replace(place, "")
    return script.replace(" /usr/local ", f" {folder}/usr/local ").replace(" /opt \n", f" {folder}/opt \n")


@pytest.mark.parametrize("find", ["find", "busybox find"])
def test_the_walk_finds_odd_names_and_rights_with_either_find(find: str, tmp_path: Path) -> None:
    tree(tmp_path)
    script = relocated(PROBE, tmp_path)
    if find != "find":
        programs = tmp_path / "programs"
        programs.mkdir()
        for name in ("find", "stat", "grep"):
            (programs / name).symlink_to(str(shutil.which("busybox")))
        script = script.replace("PATH=", f"PATH={programs}:", 1)
    sections = sections_of(process.run(["sh", "-s"], stdin=script.encode()).stdout, MARK)
    walk = files.parse(sections, {}, MARK)
    assert walk is not None
    assert ("files" in sections) == (find == "find")
    found = {path.removeprefix(bytes(tmp_path)): oct(file.mode & 0o7777) for path, file in walk.files.items()}
    assert found[b"/usr/bin/at"] == "0o4755"
    assert found[b"/usr/local/bin/new\nline"] == "0o755"
    assert b"/opt/\xff\xfe" in found
    assert b"/opt/a b/c" in found


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_changed_since_is_hashed_on_the_walk_that_lists_it(when: str, tmp_path: Path) -> None:
    tree(tmp_path)
    program = tmp_path / "usr/bin/at"
    sums = tmp_path / "at.md5sums"
    path = f"{tmp_path}/usr/bin/at".removeprefix("/")
    sums.write_text(f"{'a' * 32}  {path}\n{'b' * 32}  {path}.gz\n{'c' * 32}  usr/bin/other\n")
    changed = int(program.stat().st_ctime)
    script = inventory.script(MARK, since=changed + 60 if when == "after" else changed - 60)
    script = relocated(script, tmp_path).replace("'/usr/*'", f"'{tmp_path}/usr/*'")
    script = script.replace("/var/lib/dpkg/info/*.md5sums", str(sums))
    sections = sections_of(process.run(["sh", "-s"], stdin=script.encode()).stdout, MARK)
    assert b"/usr/bin/at" in sections.raw("files")
    if when == "after":
        assert sections.raw("changed") == b""
        assert "conffiles" not in sections
        return
    lines = sections.raw("changed").split(b"\n")
    digest = hashlib.md5(program.read_bytes(), usedforsecurity=False).hexdigest()
    assert f"{digest}  /{path}".encode() in lines
    assert f"={'a' * 32}  {path}".encode() in lines
    assert not any(b"other" in line for line in lines)
    assert any(line.startswith(b"\\") and b"new\\nline" in line for line in lines)
    walk = files.parse(sections, {}, MARK)
    assert walk is not None
    assert {fact.name: fact.detail for fact in files.modified(sections, walk)} == {f"/{path}": f"md5 {digest}"}


def test_of_a_guest_that_is_off_nothing_is_asked_that_the_kernel_under_it_would_answer(tmp_path: Path) -> None:
    tree(tmp_path)
    found = read(process.run(["sh", "-s"], stdin=relocated(STILL_PROBE, tmp_path).encode()).stdout)
    assert found.unknown[Kind.SOCKET] == found.unknown[Kind.MODULE] == "the guest is off"
    assert not {fact.kind for fact in found.facts} & {Kind.SOCKET, Kind.MODULE}
    assert (found.system.kernel, found.system.machine) == ("", "")
    assert facts(found, Kind.USER)["root"]


def test_a_guest_without_find_and_gzip_says_what_it_cannot_tell(tmp_path: Path) -> None:
    for name in ("cat", "tail", "grep", "sed", "dpkg-query", "uname", "date", "sha256sum"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    script = PROBE.replace("PATH=", f"PATH={tmp_path} OLD=", 1)
    finished = process.run(["/bin/sh", "-s"], stdin=script.encode(), environment={"PATH": str(tmp_path)})
    assert not finished.stdout.startswith(b"\x1f\x8b")
    found = read(finished.stdout)
    assert {Kind.FILE, Kind.SETUID, Kind.CAPABILITY, Kind.MODIFIED, Kind.UNIT} <= set(found.unknown)
    assert "find" in found.unknown[Kind.FILE]
    assert facts(found, Kind.USER)["root"]


def test_a_guest_of_busybox_alone_is_understood_as_any_other(tmp_path: Path) -> None:
    tree(tmp_path)
    programs = tmp_path / "programs"
    programs.mkdir()
    listed = process.run(["busybox", "--list"]).stdout.decode().split()
    for name in {*listed} - {"dpkg", "rpm"}:
        (programs / name).symlink_to(str(shutil.which("busybox")))
    (programs / "dpkg-query").symlink_to(str(shutil.which("dpkg-query")))
    script = relocated(PROBE, tmp_path).replace("PATH=", f"PATH={programs} OLD=", 1)
    finished = process.run([str(programs / "sh"), "-s"], stdin=script.encode(), environment={"PATH": str(programs)})
    found, usual = read(finished.stdout), read(on_this_host(relocated(PROBE, tmp_path)))
    assert found.packages == usual.packages
    assert {kind: names(found, kind) for kind in COMPARED} == {kind: names(usual, kind) for kind in COMPARED}
    assert {Kind.CAPABILITY, Kind.MODIFIED} <= set(found.unknown)
    assert not {Kind.FILE, Kind.SETUID, Kind.SOCKET, *COMPARED} & set(found.unknown)


COMPARED = (Kind.USER, Kind.GROUP, Kind.REPOSITORY, Kind.KEY)


def names(found: Inventory, kind: Kind) -> set[str]:
    return {fact.name for fact in found.facts if fact.kind is kind}


def test_twenty_thousand_packages_are_read_to_the_last(tmp_path: Path) -> None:
    rows = [
        f"install ok installed\tpackage-{number}\tamd64\t1.{number}\t\t\t\t"
        f"package-{number * 2 + 1}, package-{number * 2 + 2}\t\t\n"
        for number in range(20_000)
    ]
    before, after = read(answer(DPKG)), read(answer({**DPKG, "dpkg": DPKG["dpkg"] + "".join(rows)}))
    verdict = compare(before, after, Baseline(), needs=[Need(managers=("dpkg",), names=("package-0",))])
    assert (len(verdict.unexpected), verdict.gone, verdict.changed) == (20_000, (), ())
    baseline = tmp_path / "deps.toml"
    Baseline.of(verdict).write(baseline)
    assert not compare(before, after, Baseline.read(baseline)).trapped


@pytest.mark.parametrize(
    ("manager", "row"),
    [
        ("dpkg", "install ok installed\t0a+b.c-1\tall\t1:2~rc1+dfsg-1.1\t\t\t\t\t\t\n"),
        ("rpm", "Perl-A_b.C++~x^1%d\t0\t1^git-1~rc\tx86_64\t\t(none)\t(none)\n"),
    ],
)
def test_a_package_with_every_legal_character_can_be_accepted(manager: str, row: str, tmp_path: Path) -> None:
    rest = {"rpm-architecture": "x86_64\n"} if manager == "rpm" else {}
    found = read(answer({manager: row, **rest}))
    [package] = found.packages
    assert package.name == row.split("\t")[1 if manager == "dpkg" else 0]
    nothing = Inventory(frozenset(), unknown=found.unknown)
    baseline = tmp_path / "deps.toml"
    Baseline.of(compare(nothing, found, Baseline())).write(baseline)
    assert not compare(nothing, found, Baseline.read(baseline)).trapped


def test_passwords_of_repositories_do_not_leave_the_guest(tmp_path: Path) -> None:
    lines = "deb http://me:secret@host/ a b\n", "baseurl=https://h/?token=secret&arch=x\n", "password = secret\n"
    path = tmp_path / "sources.list"
    path.write_text("".join(lines))
    script = PROBE.replace("/etc/apt/sources.list ", f"{path} ").replace("section dpkg-files", ": ")
    script = script.replace("have find", "false")
    sections = sections_of(on_this_host(script), MARK)
    assert b"secret" not in sections.raw("repositories")
    assert b"http://***@host/" in sections.raw("repositories")
    assert b"arch=x" in sections.raw("repositories")


def test_a_failed_query_is_reported_by_the_probe_itself() -> None:
    script = PACKAGES_PROBE.replace("dpkg-query -W", "false").replace("rpm_database;", "false;")
    with pytest.raises(GuestError, match="the query 'dpkg' ended with status 1"):
        read(on_this_host(script))


def test_real_rpms_are_read_with_what_they_need(tmp_path: Path) -> None:
    spec = tmp_path / "hello.spec"
    spec.write_text(
        "Name: hello\nVersion: 1.0\nRelease: 2\nEpoch: 3\nSummary: s\nLicense: MIT\nBuildArch: noarch\n"
        "Requires: /bin/sh, libhello\nRecommends: greeter\n%description\nx\n%package -n libhello\nSummary: s\n"
        "Provides: hello-abi = 1\n%description -n libhello\nx\n%install\nmkdir -p %{buildroot}/opt\n"
        "touch '%{buildroot}/opt/a b'\n%files\n\"/opt/a b\"\n%files -n libhello\n"
    )
    database = tmp_path / "db"
    build = ["rpmbuild", "-bb", "--define", f"_topdir {tmp_path}", "--define", f"_dbpath {database}", str(spec)]
    subprocess.run(build, check=True, capture_output=True)
    packages = sorted(map(str, tmp_path.rglob("*.rpm")))
    argv = ["rpm", "--dbpath", str(database), "-i", "--nodeps", "--justdb", "--ignoreos", "--noscripts", *packages]
    subprocess.run(argv, check=True, capture_output=True)
    script = PACKAGES_PROBE.replace("/var/lib/rpm", str(database)).replace("have dpkg-query", "false")
    found = named(read(on_this_host(script)))
    assert sorted(found) == ["rpm:hello", "rpm:libhello"]
    assert found["rpm:hello"].version == "3:1.0-2"
    assert {("/bin/sh",), ("libhello",)} <= set(found["rpm:hello"].depends)
    assert found["rpm:hello"].recommends == (("greeter",),)
    assert "hello-abi" in found["rpm:libhello"].provides


def test_a_real_pacman_database_is_read(tmp_path: Path) -> None:
    content = tmp_path / "content"
    (content / "opt").mkdir(parents=True)
    (content / "opt/a b").write_text("x")
    (content / ".PKGINFO").write_text(
        "pkgname = hello\npkgbase = hello\npkgver = 2:1.0-1\npkgdesc = x\nurl = x\nbuilddate = 1\npackager = x\n"
        "size = 1\narch = any\nprovides = greeter=1\ndepend = libhello>=1\ndepend = sh\n"
    )
    package, root = tmp_path / "hello-2:1.0-1-any.pkg.tar", tmp_path / "root"
    subprocess.run(["tar", "-C", content, "-cf", package, ".PKGINFO", "opt"], check=True)
    for name in ("root", "db", "cache"):
        (tmp_path / name).mkdir()
    (tmp_path / "conf").write_text("[options]\nSigLevel = Never\nLocalFileSigLevel = Never\n")
    argv = [
        "fakeroot",
        "pacman",
        "-Udd",
        "--noconfirm",
        "--asdeps",
        "--root",
        str(root),
        "--config",
        str(tmp_path / "conf"),
    ]
    argv += ["--dbpath", str(tmp_path / "db"), "--cachedir", str(tmp_path / "cache"), "--logfile", "/dev/null"]
    subprocess.run([*argv, str(package)], check=True, capture_output=True)
    script = PACKAGES_PROBE.replace("/var/lib/pacman", str(tmp_path / "db")).replace("have dpkg-query", "false")
    content_of = on_this_host(script)
    [found] = read(content_of).packages
    assert (found.item, found.version, found.automatic) == ("pacman:hello", "2:1.0-1", True)
    assert (found.depends, found.provides) == ((("libhello",), ("sh",)), ("greeter",))
    assert pacman.owners(sections_of(content_of, MARK))[b"/opt/a b"] == "pacman:hello"


# -- packages ----------------------------------------------------------------------------------------------------------


def test_everything_that_is_in_the_guest_counts_even_half_configured() -> None:
    found = named(read(answer(DPKG)))
    assert sorted(found) == [
        "dpkg:broken",
        "dpkg:dpkg",
        "dpkg:failing",
        "dpkg:hello",
        "dpkg:kept",
        "dpkg:libc6",
        "dpkg:libc6:i386",
        "dpkg:tzdata",
        "dpkg:waiting",
    ]
    assert found["dpkg:kept"].version == "1:2~rc1"


def test_relations_are_read_as_names_and_alternatives() -> None:
    found = named(read(answer(DPKG)))
    assert found["dpkg:hello"].depends == (("dpkg",), ("libc6",), ("a", "b"))
    assert found["dpkg:hello"].recommends == (("c",),)
    assert found["dpkg:tzdata"].provides == ("tzdata-bookworm", "zone")
    assert (found["dpkg:libc6"].essential, found["dpkg:libc6"].source) == (True, "glibc")


def test_automatic_marks_are_found_for_packages_of_every_architecture() -> None:
    found = named(read(answer(DPKG)))
    assert {item for item, package in found.items() if package.automatic} == {"dpkg:libc6", "dpkg:tzdata"}


def test_without_apt_nothing_is_said_about_automatic_marks() -> None:
    sections = {name: text for name, text in DPKG.items() if name != "dpkg-automatic"}
    assert {package.automatic for package in read(answer(sections)).packages} == {None}


def test_rpms_packages_are_read_with_epoch_and_foreign_architecture() -> None:
    found = read(answer(RPM))
    assert sorted((package.item, package.version) for package in found.packages) == [
        ("rpm:bash", "5.1-1"),
        ("rpm:bind-libs", "32:9.16.23-14.el9_3"),
        ("rpm:glibc", "2.34-83.el9"),
        ("rpm:glibc:i686", "2.34-83.el9"),
        ("rpm:hello", "2.12.1-1.fc39"),
        ("rpm:kernel-core", "5.14.0-362.el9"),
        ("rpm:kernel-core", "5.14.0-427.el9"),
        ("rpm:tzdata", "2024a-1.el9"),
    ]


def test_what_rpms_need_is_found_in_provides_and_in_files() -> None:
    found = named(read(answer(RPM)))
    assert found["rpm:hello"].depends == (("/bin/sh",), ("libc.so.6()(64bit)",), ("b", "c"))
    assert found["rpm:hello"].recommends == (("zsh",),)
    assert found["rpm:bash"].provides == ("bash", "/bin/sh")


@pytest.mark.parametrize(("native", "package"), [("i386", "i686"), ("arm", "armv7hl"), ("x86_64", "x86_64_v2")])
def test_a_native_rpm_may_name_a_member_of_the_architectures_family(native: str, package: str) -> None:
    sections = {"rpm": f"hello\t0\t1-1\t{package}\t\t\t\n", "rpm-architecture": f"{native}\n"}
    assert read(answer(sections)).items == {"rpm:hello"}


def test_apks_packages_are_read_from_its_database() -> None:
    found = named(read(answer(APK)))
    assert sorted(found) == ["apk:docs", "apk:hello", "apk:hello-doc", "apk:hello-libs"]
    assert found["apk:hello"].depends == (("hello-libs",), ("so:libhello.so.1",), ("/bin/sh",))
    assert found["apk:hello-libs"].provides == ("so:libhello.so.1",)
    assert found["apk:hello"].recommends == (("hello-doc",),)
    assert [found[item].automatic for item in ("apk:hello", "apk:docs", "apk:hello-libs")] == [False, False, True]


def test_pacmans_packages_are_read_from_its_database() -> None:
    found = named(read(answer(PACMAN)))
    assert sorted((item, package.version) for item, package in found.items()) == [
        ("pacman:hello", "2.12-1"),
        ("pacman:libhello", "1:2-1"),
    ]
    assert found["pacman:hello"].depends == (("libhello",), ("sh",))
    assert found["pacman:hello"].provides == ("greeter",)
    assert [package.automatic for package in (found["pacman:hello"], found["pacman:libhello"])] == [False, True]


def test_the_owners_of_files_are_known_for_each_manager() -> None:
    sections = sections_of(answer({**DPKG, **WHOLE, **RPM, **APK, **PACMAN}), MARK)
    assert dpkg.owners(sections)[b"/lib/libc.so.6"] == "dpkg:libc6"
    assert rpm.owners(sections)[b"/usr/bin/hello"] == "rpm:hello"
    assert apk.owners(sections)[b"/usr/bin/a:b"] == "apk:hello"
    assert pacman.owners(sections)[b"/usr/lib/libhello.so"] == "pacman:libhello"


def test_the_owners_are_known_beside_a_package_without_files() -> None:
    files = {"empty": "", "hello": "/.\n/usr\n/usr/bin/hello\n", "other": "/usr/bin/other\n"}
    found = dpkg.owners(sections_of(answer({**DPKG, **lists(files)}), MARK))
    assert (found[b"/usr/bin/hello"], found[b"/usr/bin/other"]) == ("dpkg:hello", "dpkg:other")


def test_a_database_that_apk_itself_wrote_is_read_with_the_ways_in_it() -> None:
    # Of Alpine 3.14's minirootfs for armv7, less some packages, files and maintainers.
    database = Path(__file__).with_name("recorded").joinpath("alpine-3.14-installed").read_text()
    world = "apk-tools\nbusybox\nifupdown-ng\n"
    found = read(answer({"apk": database, "apk-world": world, "apk-architecture": "armv7\n"}))
    packages = named(found)
    assert len(packages) == 10
    assert packages["apk:apk-tools"].automatic is False
    assert packages["apk:ifupdown-ng"].depends == (("so:libc.musl-armv7.so.1",),)
    assert (packages["apk:libssl1.1"].version, packages["apk:libssl1.1"].source) == ("1.1.1k-r0", "openssl")
    told = ways(found)
    assert told["apk:libcrypto1.1"] == (Reason.TRANSITIVE, ("apk:apk-tools", "apk:libcrypto1.1"))
    assert told["apk:ssl_client"] == (Reason.RECOMMENDED, ("apk:busybox", "apk:ssl_client"))
    assert told["apk:ca-certificates-bundle"] == (
        Reason.RECOMMENDED,
        ("apk:busybox", "apk:ssl_client", "apk:libretls", "apk:ca-certificates-bundle"),
    )
    owners = apk.owners(sections_of(answer({"apk": database}), MARK))
    assert (owners[b"/sbin/apk"], owners[b"/bin/sh"]) == ("apk:apk-tools", "apk:busybox")


def ways(found: Inventory) -> dict[str, tuple[Reason, tuple[str, ...]]]:
    """Return why each package is there, if all of them were new."""
    told = explain(Inventory(frozenset()), found, sorted(found.packages, key=lambda one: one.item), None)
    return {package.item: (explanation.reason, explanation.chain) for package, explanation in told.items()}


def test_most_files_are_told_by_their_size_alone_and_a_list_that_is_cut_off_is_refused() -> None:
    plain, program = "9\0/usr/share/data\0", "755 0 0 7 f\0\0/usr/local/bin/tool\0"
    found = whole(files=plain + program)
    assert [fact.detail for fact in found.facts if fact.name == "/usr/share/data"] == ["-rw-r--r-- 0:0"]
    assert [fact.detail for fact in found.facts if fact.name == "/usr/local/bin/tool"] == ["-rwxr-xr-x 0:0 7 bytes"]
    with pytest.raises(GuestError, match="cut off"):
        whole(files=plain + "755 0 0 7 f\0")
    with pytest.raises(GuestError, match="not understood"):
        whole(files="nonsense\0/usr/share/data\0")


def test_what_several_packages_own_is_nobodys_alone() -> None:
    files = {"hello": "/.\n/usr\n/usr/share/one\n/usr/bin/hello\n", "other": "/.\n/usr\n/usr/share/one\n"}
    found = dpkg.owners(sections_of(answer({**DPKG, **lists(files)}), MARK))
    assert (found[b"/usr"], found[b"/usr/share/one"], found[b"/usr/bin/hello"]) == ("", "", "dpkg:hello")


def test_the_configuration_that_a_removed_package_has_left_has_no_owner() -> None:
    row = "deinstall ok config-files\tgone\tamd64\t1.0\tgone\tno\t\t\t\t\n"
    sections = {**DPKG, "dpkg": f"{DPKG['dpkg']}{row}", **lists({"gone": "/.\n/etc/gone.conf\n"})}
    assert b"/etc/gone.conf" not in dpkg.owners(sections_of(answer(sections), MARK))


def test_a_guest_may_have_several_package_managers() -> None:
    found = read(answer({**DPKG, **RPM, **APK, **PACMAN}))
    assert {"dpkg:hello", "rpm:hello", "apk:hello", "pacman:hello"} <= found.items


def test_a_guest_with_none_is_an_error_that_says_so() -> None:
    with pytest.raises(GuestError, match="no package database that is known: expected one of dpkg, rpm, apk, pacman"):
        read(answer({}))


# -- what can go wrong -------------------------------------------------------------------------------------------------


@given(st.data())
def test_an_answer_that_was_cut_off_anywhere_is_an_error(data: st.DataObject) -> None:
    content = answer({**DPKG, **RPM, "files": walked()})
    if data.draw(st.booleans()):
        content = gzip.compress(content)
        length = data.draw(st.integers(0, len(content) - 12))  # the last bytes are a sum, and the end was there
    else:
        length = data.draw(st.integers(0, len(content) - 1))
    with pytest.raises(GuestError, match=r"cut off|damaged"):
        read(content[:length])


@given(st.binary(max_size=200))
def test_any_bytes_are_an_inventory_or_one_clear_error(content: bytes) -> None:
    for bad in (content, answer({**DPKG, **WHOLE, "files": content}), answer({"pacman": content, "apk": content})):
        with suppress(GuestError):
            assert read(bad).packages


@given(st.binary(max_size=60).filter(lambda content: MARK.encode() not in content))
def test_no_file_name_can_end_a_section_or_begin_another(name: bytes) -> None:
    path = b"/usr/bin/" + name.replace(b"\0", b"") + b"\036 end\n\036=0\n"
    found = read(answer({**DPKG, **WHOLE, "files": walked((("755 0 0 1 f", "", path),))}))
    assert visible(path) in facts(found, Kind.FILE)


def test_nothing_that_a_guest_says_moves_a_terminal_or_ends_a_line() -> None:
    found = whole(
        users="evil\x1b[2J:x:0:0::/\u202eroot:/bin/sh\n",
        modules="mod\x07ule 1\n",
        dpkg=DPKG["dpkg"].replace("2.10-3", "2.10\x1b[31m\x85"),
    )
    assert all(line.isprintable() for line in lines(found))
    assert facts(found, Kind.USER) == {r"evil\x1b[2J": r"0:0 /\u202eroot /bin/sh"}
    assert named(found)["dpkg:hello"].version == r"2.10\x1b[31m\u0085"


@given(st.binary(), st.binary())
@example(b"\x85", "\x85".encode())
@example(b"\x1b", rb"\x1b")
def test_two_names_are_never_shown_alike(one: bytes, other: bytes) -> None:
    assert (visible(one) == visible(other)) == (one == other)
    assert visible(one).isprintable() or not visible(one).isascii()
    assert "\n" not in visible(one)


def test_a_query_that_failed_is_an_error_although_the_answer_is_complete() -> None:
    with pytest.raises(GuestError, match="the query 'dpkg' ended with status 2"):
        read(answer(DPKG, statuses={"dpkg": 2}))


def test_a_walk_that_was_killed_is_an_error_and_one_that_missed_a_file_is_not() -> None:
    sections: dict[str, str | bytes] = {**DPKG, **WHOLE, "files": walked()}
    assert read(answer(sections, statuses={"files": 1})).facts
    with pytest.raises(GuestError, match="find ended with status 137"):
        read(answer(sections, statuses={"files": 137}))


def test_a_database_that_lists_nothing_is_an_error() -> None:
    with pytest.raises(GuestError, match="lists nothing at all: rpm cannot read it"):
        read(answer({"rpm": "", "rpm-architecture": "x86_64\n"}))


@pytest.mark.parametrize("section", ["dpkg", "rpm"])
def test_a_line_that_is_not_understood_is_an_error_that_quotes_it(section: str) -> None:
    with pytest.raises(GuestError, match=r"not understood: 'what\?'"):
        read(answer({section: "what?\n"}))


@pytest.mark.parametrize("content", [answer(DPKG), gzip.compress(answer(DPKG))])
def test_what_login_scripts_write_around_the_answer_is_ignored(content: bytes) -> None:
    assert read(b"Welcome!\n" + content + b"Goodbye.\n") == read(answer(DPKG))


# -- facts -------------------------------------------------------------------------------------------------------------


def test_files_that_no_package_owns_are_found_through_the_links_of_a_merged_usr() -> None:
    found = {name: detail for name, detail in facts(whole(), Kind.FILE).items() if "/systemd/" not in name}
    assert sorted(found) == ["/usr/bin/at", r"/usr/local/bin/\xff", r"/usr/local/bin/a\nb"]
    assert found["/usr/bin/at"] == "-rwsr-sr-x 0:1 9 bytes"


def test_programs_with_other_rights_are_found_with_the_package_that_owns_them() -> None:
    found = whole(**lists({"hello": "/.\n/bin/at\n"}))
    [setuid] = [fact for fact in found.facts if fact.kind is Kind.SETUID]
    assert setuid == Fact(kind=Kind.SETUID, name="/usr/bin/at", detail="-rwsr-sr-x 0:1", owner="dpkg:hello")
    assert facts(found, Kind.CAPABILITY) == {"/usr/bin/ping": "cap_net_raw=ep", "/usr/bin/old": "cap_net_raw=ep"}


def test_state_in_var_lib_is_no_library_but_programs_below_it_are() -> None:
    assert not files.in_program_path("/var/lib/exim4/berkeleydbvers.txt")
    assert files.in_program_path("/var/lib/tool/bin/run")
    assert files.in_program_path("/usr/lib/tool")


def test_alternatives_are_facts_and_not_files() -> None:
    assert facts(whole(), Kind.ALTERNATIVE) == {"awk": "/usr/bin/mawk"}


def test_users_units_sockets_repositories_and_keys_are_read() -> None:
    found = whole()
    assert facts(found, Kind.USER)["at"] == "5:5 /var/spool /usr/sbin/nologin"
    assert facts(found, Kind.GROUP)["adm"] == "4 anna,zoe"
    assert facts(found, Kind.UNIT) == {
        "ssh.service": "enabled",
        "cron.service": "not enabled",
        "sshd.service": "alias of ssh.service",
        "getty@tty1.service": "enabled",
        "apt-daily.timer": "masked",
    }
    assert facts(found, Kind.SOCKET) == {
        "tcp/any/22": "sshd, systemd",
        "tcp/loopback/25": "",
        "udp/address/68": "dhclient",
    }
    assert facts(found, Kind.REPOSITORY) == {
        "deb http://***@x/ bookworm main": "",
        "deb http://y/ stable main contrib": "",
        "deb-src http://y/ stable main contrib": "",
        "fedora": "https://m/?repo=f&arch=x",
    }
    assert facts(found, Kind.KEY) == {"/etc/apt/keyrings/a.gpg": f"sha256 {'a' * 64}"}
    assert facts(found, Kind.MODULE) == {"ext4": ""}
    assert (found.system.id, found.system.version, found.system.machine) == ("debian", "12", "x86_64")
    assert found.archive == {"x_InRelease": "Sat, 10 Feb 2024 11:09:00 UTC"}
    assert found.clock == 1700000000


def test_sockets_are_read_from_the_kernel_where_ss_is_missing() -> None:
    sections = {name: text for name, text in {**DPKG, **WHOLE}.items() if name != "sockets"}
    header = "  sl  local_address rem_address   st tx_queue rx_queue\n"
    sections["sockets-proc"] = (
        f"{header}   0: 00000000:0016 00000000:0000 0A 0\n   1: 0100007F:0CEA 00000000:0000 0A 0\n"
        "   2: 0100007F:0CEA 0100007F:1234 01 0\n"
        f"{header}   0: 00000000000000000000000001000000:0277 00000000000000000000000000000000:0000 0A 0\n"
        "   sl  local_address rem_address   st tx_queue rx_queue ref pointer drops\n"
        "   9: 0F02000A:0044 00000000:0000 07 0\n"
    )
    found = facts(read(answer(sections)), Kind.SOCKET)
    assert set(found) == {"tcp/any/22", "tcp/loopback/3306", "tcp/loopback/631", "udp/address/68"}


def test_a_packaged_file_that_changed_is_told_apart_from_one_that_was_only_touched() -> None:
    sums = {"hello": "a" * 32, "libc.so.6": "b" * 32}
    changed = (
        f"{'0' * 32}  /usr/bin/hello\n{sums['libc.so.6']}  /usr/lib/libc.so.6\n{'c' * 32}  /etc/at.allow\n"
        f"{'d' * 32}  /usr/local/bin/x\n={sums['hello']}  bin/hello\n={sums['libc.so.6']}  lib/libc.so.6\n"
    )
    found = whole(changed=changed, conffiles=f"\n /etc/at.allow {'e' * 32}\n /etc/old {'e' * 32} obsolete\n")
    assert facts(found, Kind.MODIFIED) == {
        "/usr/bin/hello": f"md5 {'0' * 32}",
        "/etc/at.allow": f"md5 {'c' * 32}",
    }


LANGUAGES = """\
/usr/lib/python3/dist-packages/requests-2.28.1.egg-info/PKG-INFO:Name: requests
/usr/lib/python3/dist-packages/requests-2.28.1.egg-info/PKG-INFO:Version: 2.28.1
/usr/local/lib/python3.11/dist-packages/requests-2.31.0.dist-info/METADATA:Name: requests
/usr/local/lib/python3.11/dist-packages/requests-2.31.0.dist-info/METADATA:Version: 2.31.0
/usr/local/lib/python3.11/dist-packages/requests-2.31.0.dist-info/METADATA:Requires-Dist: charset-normalizer (<4,>=2)
/usr/local/lib/python3.11/dist-packages/requests-2.31.0.dist-info/METADATA:Requires-Dist: PySocks ; extra == 'socks'
/usr/lib/python3/dist-packages/six.egg-info:Name: six
/usr/lib/python3/dist-packages/six.egg-info:Version: 1.16.0
/opt/app/node_modules/@scope/pkg/package.json:  "version": "1.2.3",
/opt/app/node_modules/one/package.json:{"name":"one","version":"2.0.0"}
"""


def test_packages_of_languages_are_found_wherever_they_lie() -> None:
    gems = (*FILES, ("644 0 0 9 f", "", "/var/lib/gems/3.1.0/specifications/rake-13.0.6.gemspec"))
    found = named(
        whole(
            files=walked(gems),
            languages=LANGUAGES,
            cargo='/root/.cargo/.crates.toml:"rg 14.1.0 (registry+https://x)" = ["rg"]\n',
            **lists({"hello": "/.\n/usr/lib/python3/dist-packages/requests-2.28.1.egg-info/PKG-INFO\n"}),
        )
    )
    places = {item: package.version for item, package in found.items() if package.place}
    assert places == {
        "python:requests:/usr/lib/python3/dist-packages": "2.28.1",
        "python:requests:/usr/local/lib/python3.11/dist-packages": "2.31.0",
        "python:six:/usr/lib/python3/dist-packages": "1.16.0",
        "npm:@scope/pkg:/opt/app/node_modules": "1.2.3",
        "npm:one:/opt/app/node_modules": "2.0.0",
        "gem:rake:/var/lib/gems/3.1.0": "13.0.6",
        "cargo:rg:/root/.cargo": "14.1.0",
    }
    assert found["python:requests:/usr/lib/python3/dist-packages"].owner == "dpkg:hello"
    assert found["python:requests:/usr/local/lib/python3.11/dist-packages"].depends == (("charset-normalizer",),)


def test_two_inventories_of_one_answer_differ_in_nothing() -> None:
    one, other = whole(languages=LANGUAGES), whole(languages=LANGUAGES, clock="1700000030\n")
    assert one == other
    assert one - other == Inventory(frozenset())
