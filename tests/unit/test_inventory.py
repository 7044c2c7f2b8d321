"""The inventory of a guest's packages: the probe on this host, and what its answer is read as."""

from __future__ import annotations

import shutil
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmimagemanager import process
from vmimagemanager.errors import GuestError
from vmimagemanager.guest import inventory
from vmimagemanager.guest.inventory import Inventory, Package

DPKG = {
    "dpkg": "install ok installed\thello\tamd64\t2.10-3\n"
    "install ok installed\tlibc6\tamd64\t2.36-9\n"
    "install ok installed\tlibc6\ti386\t2.36-9\n"
    "install ok installed\ttzdata\tall\t2024a-0\n"
    "hold ok installed\tkept\tamd64\t1:2~rc1\n"
    "deinstall ok config-files\tremoved\tamd64\t1\n"
    "unknown ok not-installed\tnever\tamd64\t\n"
    "install ok half-configured\tfailing\tamd64\t1\n"
    "install reinstreq unpacked\tbroken\tamd64\t1\n"
    "install ok triggers-awaited\twaiting\tamd64\t1\n",
    "dpkg-architecture": "amd64\n",
    "dpkg-automatic": "Package: libc6\nArchitecture: amd64\nAuto-Installed: 1\n\n"
    "Package: tzdata\nArchitecture: amd64\nAuto-Installed: 1\n\n"
    "Package: hello\nArchitecture: amd64\nAuto-Installed: 0\n\n",
}
# Written by rpm 4.18 in a Debian 12 root, for packages made there with rpmbuild; the key was added by hand.
RPM = {
    "rpm": "glibc\t0\t2.34-83.el9\tx86_64\nhello\t0\t2.12.1-1.fc39\tx86_64\nbind-libs\t32\t9.16.23-14.el9_3\tx86_64\n"
    "kernel-core\t0\t5.14.0-427.el9\tx86_64\nkernel-core\t0\t5.14.0-362.el9\tx86_64\ntzdata\t0\t2024a-1.el9\tnoarch\n"
    "glibc\t0\t2.34-83.el9\ti686\ngpg-pubkey\t0\t8483c65d-5ccc5b19\t(none)\n",
    "rpm-architecture": "x86_64\n",
}


def answer(sections: Mapping[str, str], end: str = "end\n") -> bytes:
    """Return what the probe writes for these sections."""
    return ("".join(f"\036{name}\n{text}" for name, text in sections.items()) + f"\036{end}").encode()


def named(found: Inventory) -> dict[str, Package]:
    return {package.item: package for package in found.packages}


def test_the_probe_lists_this_hosts_packages_as_dpkg_does() -> None:
    if not (shutil.which("dpkg-query") and shutil.which("apt-mark")):
        pytest.skip("this host has no dpkg or no apt")
    found = inventory.take(lambda script: process.run(["sh", "-s"], stdin=script.encode()).stdout)
    listed = process.run(["dpkg-query", "-W", "-f", "${db:Status-Abbrev} ${Package} ${Version}\n"]).stdout.decode()
    installed = {tuple(words[1:]) for line in listed.splitlines() if (words := line.split())[0] == "ii"}
    assert installed <= {(package.name, package.version) for package in found.packages}
    automatic = set(process.run(["apt-mark", "showauto"]).stdout.decode().split())
    assert {package.item.removeprefix("dpkg:") for package in found.packages if package.automatic} == automatic


@pytest.mark.parametrize("shell", ["sh", "dash", "bash --posix", "busybox sh"])
def test_the_probe_runs_in_every_shell_that_a_guest_may_have(shell: str) -> None:
    argv = shell.split()
    if not shutil.which(argv[0]):
        pytest.skip(f"this host has no {argv[0]}")
    finished = process.run([*argv, "-s"], stdin=inventory.PROBE.encode())
    assert finished.stdout.endswith(b"\036end\n")
    assert finished.stderr == b""


def test_the_probe_is_not_misled_by_the_callers_environment() -> None:
    plain = process.run(["sh", "-s"], stdin=inventory.PROBE.encode()).stdout
    hostile = {"PATH": "/nowhere:/usr/bin:/bin", "DPKG_ADMINDIR": "/nowhere", "DPKG_ROOT": "/nowhere", "COLUMNS": "20"}
    assert process.run(["sh", "-s"], stdin=inventory.PROBE.encode(), environment=hostile).stdout == plain


def test_everything_that_is_in_the_guest_counts_even_half_configured() -> None:
    found = named(inventory.parse(answer(DPKG)))
    assert sorted(found) == [
        "dpkg:broken",
        "dpkg:failing",
        "dpkg:hello",
        "dpkg:kept",
        "dpkg:libc6",
        "dpkg:libc6:i386",
        "dpkg:tzdata",
        "dpkg:waiting",
    ]
    assert found["dpkg:kept"].version == "1:2~rc1"


def test_automatic_marks_are_found_for_packages_of_every_architecture() -> None:
    found = named(inventory.parse(answer(DPKG)))
    assert {item for item, package in found.items() if package.automatic} == {"dpkg:libc6", "dpkg:tzdata"}


def test_without_apt_nothing_is_said_about_automatic_marks() -> None:
    sections = {name: text for name, text in DPKG.items() if name != "dpkg-automatic"}
    assert {package.automatic for package in inventory.parse(answer(sections)).packages} == {None}


def test_rpms_packages_are_read_with_epoch_and_foreign_architecture() -> None:
    found = inventory.parse(answer(RPM))
    assert sorted((package.item, package.version) for package in found.packages) == [
        ("rpm:bind-libs", "32:9.16.23-14.el9_3"),
        ("rpm:glibc", "2.34-83.el9"),
        ("rpm:glibc:i686", "2.34-83.el9"),
        ("rpm:hello", "2.12.1-1.fc39"),
        ("rpm:kernel-core", "5.14.0-362.el9"),
        ("rpm:kernel-core", "5.14.0-427.el9"),
        ("rpm:tzdata", "2024a-1.el9"),
    ]


@pytest.mark.parametrize(("native", "package"), [("i386", "i686"), ("arm", "armv7hl"), ("x86_64", "x86_64_v2")])
def test_a_native_rpm_may_name_a_member_of_the_architectures_family(native: str, package: str) -> None:
    sections = {"rpm": f"hello\t0\t1-1\t{package}\n", "rpm-architecture": f"{native}\n"}
    assert inventory.parse(answer(sections)).items == {"rpm:hello"}


def test_a_guest_may_have_both() -> None:
    found = inventory.parse(answer({**DPKG, **RPM}))
    assert {"dpkg:hello", "rpm:hello"} <= found.items


def test_a_guest_with_neither_is_an_error_that_says_so() -> None:
    with pytest.raises(GuestError, match="no package database that is known: expected one of dpkg or rpm"):
        inventory.parse(answer({}))


@given(st.data())
def test_an_answer_that_was_cut_off_anywhere_is_an_error(data: st.DataObject) -> None:
    whole = answer({**DPKG, **RPM})
    length = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(GuestError, match="cut off"):
        inventory.parse(whole[:length])


def test_a_query_that_failed_is_an_error_although_the_answer_is_complete() -> None:
    with pytest.raises(GuestError, match=r"the query 'dpkg' ended with status 2, the query 'rpm' ended with status 1"):
        inventory.parse(answer(DPKG, end="end dpkg:2 rpm:1\n"))


def test_a_failed_query_is_reported_by_the_probe_itself() -> None:
    script = inventory.PROBE.replace("dpkg-query -W", "false").replace("rpm -qa", "false")
    if not shutil.which("dpkg-query"):
        pytest.skip("this host has no dpkg")
    with pytest.raises(GuestError, match="the query 'dpkg' ended with status 1"):
        inventory.parse(process.run(["sh", "-s"], stdin=script.encode()).stdout)


def test_a_database_that_lists_nothing_is_an_error() -> None:
    with pytest.raises(GuestError, match="lists nothing at all: rpm cannot read it"):
        inventory.parse(answer({"rpm": "", "rpm-architecture": "x86_64\n"}))


@pytest.mark.parametrize("section", ["dpkg", "rpm"])
def test_a_line_that_is_not_understood_is_an_error_that_quotes_it(section: str) -> None:
    with pytest.raises(GuestError, match=r"not understood: 'what\?'"):
        inventory.parse(answer({section: "what?\n"}))


def test_what_login_scripts_write_around_the_answer_is_ignored() -> None:
    assert inventory.parse(b"Welcome!\n" + answer(DPKG) + b"Goodbye.\n") == inventory.parse(answer(DPKG))
