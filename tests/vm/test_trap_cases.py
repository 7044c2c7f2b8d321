"""The dependency trap on what really happens on Debian 12, with the guest's own apt.

The packages are made from what the real ones say of themselves (``frozen-debian-12``).  One snapshot has the
repository and what is there before; each case begins from it.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.vm.frozen import repository
from vmimagemanager import Box
from vmimagemanager.guest import inventory
from vmimagemanager.guest.inventory import Inventory
from vmimagemanager.trap import Baseline, Finding, Reason, Rule, Severity, Verdict, compare
from vmimagemanager.trap.explain import Need

SUPPLIED = "supplied"
BEFORE = "python3 jdupes borgbackup debootstrap"
SOURCES = "".join(f"deb [trusted=yes] file:/root/archive/{suite} ./\n" for suite in ("bookworm", "bookworm-backports"))

LEAKED = (
    *("at", "bsd-mailx", "exim4-base", "exim4-config", "exim4-daemon-light", "libevent-2.1-7", "libgnutls-dane0"),
    *("libidn12", "liblockfile-bin", "liblockfile1", "libunbound8", "netbase", "psmisc"),
)
AGENT = ("gpg-agent", "gpgconf", "libassuan0", "libnpth0", "pinentry-curses")
PIP = "/usr/local/lib/python3.11/dist-packages"


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest as the snapshot has it, and what was in it then."""

    box: Box
    before: Inventory

    def install(self, *words: str, recommends: bool = False) -> None:
        """Let the guest's apt do what a build does."""
        options = [] if recommends else ["--no-install-recommends"]
        self.box.run(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-y", *options, *words])

    def look(self) -> Inventory:
        return inventory.take(self.box.as_root, since=self.before.clock)  # as the trap does

    def verdict(self, *declared: str, baseline: Baseline | None = None) -> Verdict:
        """Say what came in; with nothing declared, what was asked for by name explains the rest."""
        needs = [Need(managers=("dpkg",), names=(name,)) for name in declared]
        return compare(self.before, self.look(), baseline or Baseline(), needs=needs or None)


@pytest.fixture(scope="module")
def supplied(booted: Box, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Box, Inventory]]:
    folder = tmp_path_factory.mktemp("archive")
    repository(folder)
    booted.restore("clean")
    booted.put(folder, "/root/archive")
    booted.script(
        "rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/* /var/lib/apt/lists/*\n"
        f"echo '{SOURCES}' >/etc/apt/sources.list\napt-get -qq update\nDEBIAN_FRONTEND=noninteractive apt-get -qq -y "
        f"--no-install-recommends install {BEFORE}\n"
    )
    if SUPPLIED in [manifest.name for manifest in booted.snapshots()]:
        booted.remove_snapshot(SUPPLIED)
    booted.snapshot(SUPPLIED)
    yield booted, booted.inventory()
    booted.disconnect()
    booted.restore("clean")
    booted.remove_snapshot(SUPPLIED)


@pytest.fixture
def guest(supplied: tuple[Box, Inventory]) -> Guest:
    box, before = supplied
    box.restore(SUPPLIED)
    return Guest(box, before)


def told(verdict: Verdict) -> dict[str, list[str]]:
    """Return the items that are an error or a warning, by rule; whatever else is found breaks a test."""
    found: dict[str, list[str]] = {}
    for finding in verdict.findings:
        if finding.severity is not Severity.INFO:
            found.setdefault(finding.rule.value, []).append(finding.item)
    return found


def chains(verdict: Verdict) -> dict[str, tuple[Reason, Sequence[str]]]:
    """Return why each new package is there, and the way to it, without the manager."""
    return {
        finding.item.removeprefix("dpkg:"): (
            finding.explanation.reason,
            [item.removeprefix("dpkg:") for item in finding.explanation.chain],
        )
        for finding in verdict.findings
        if finding.rule is Rule.NEW and finding.explanation
    }


def details(verdict: Verdict, rule: Rule) -> dict[str, str]:
    return {finding.item: finding.detail for finding in verdict.findings if finding.rule is rule}


def of(verdict: Verdict, item: str, rule: Rule = Rule.NEW) -> Finding:
    [finding] = [finding for finding in verdict.findings if (finding.rule, finding.item) == (rule, item)]
    return finding


def test_an_update_that_needs_more_is_explained_and_trapped(guest: Guest) -> None:
    guest.install("install", "jdupes/bookworm-backports")
    verdict = guest.verdict()
    assert told(verdict) == {"new": ["dpkg:libjodycode3"]}
    assert chains(verdict) == {"libjodycode3": (Reason.UPDATE, ["jdupes", "libjodycode3"])}
    assert details(verdict, Rule.VERSION) == {"dpkg:jdupes": "1.21.3-1+deb12u1 → 1.27.3-5~bpo12+2"}
    assert chains(guest.verdict("jdupes"))["libjodycode3"][0] is Reason.TRANSITIVE


def test_a_package_two_steps_away_is_told_with_the_whole_way(guest: Guest) -> None:
    guest.install("install", "debootstrap/bookworm-backports")
    verdict = guest.verdict("debootstrap")
    assert told(verdict) == {"new": ["dpkg:distro-info", "dpkg:distro-info-data"]}
    assert chains(verdict) == {
        "distro-info": (Reason.TRANSITIVE, ["debootstrap", "distro-info"]),
        "distro-info-data": (Reason.TRANSITIVE, ["debootstrap", "distro-info", "distro-info-data"]),
    }


def test_what_a_recommendation_leaks_is_trapped_with_its_users_units_and_rights(guest: Guest) -> None:
    guest.install("install", "at", recommends=True)
    verdict = guest.verdict("at")
    assert told(verdict) == {
        "alternative": ["alternative:Mail", "alternative:mail", "alternative:mailx"],
        "group": ["group:Debian-exim"],
        "new": [f"dpkg:{name}" for name in LEAKED],
        "setuid": ["setuid:/usr/bin/at", "setuid:/usr/bin/dotlockfile", "setuid:/usr/sbin/exim4"],
        "unit": ["unit:atd.service", "unit:exim4-base.service", "unit:exim4-base.timer"],
        "user": ["user:Debian-exim"],
    }
    found = chains(verdict)
    assert {name for name, (reason, _) in found.items() if reason is Reason.RECOMMENDED} == {*LEAKED} - {"at"}
    assert found["exim4-daemon-light"] == (Reason.RECOMMENDED, ["at", "exim4-daemon-light"])
    assert found["libidn12"] == (Reason.RECOMMENDED, ["at", "exim4-daemon-light", "libidn12"])
    way = ["at", "exim4-daemon-light", "exim4-base", "bsd-mailx", "liblockfile1", "liblockfile-bin"]
    assert found["liblockfile-bin"] == (Reason.RECOMMENDED, way)
    told_by = of(verdict, "dpkg:exim4-daemon-light").explanation
    assert told_by is not None
    assert told_by.clause == ("default-mta", "mail-transport-agent")
    assert details(verdict, Rule.SETUID) == {
        "setuid:/usr/bin/at": "-rwsr-sr-x 1:1, of dpkg:at",
        "setuid:/usr/bin/dotlockfile": "-rwxr-sr-x 0:8, of dpkg:liblockfile-bin",
        "setuid:/usr/sbin/exim4": "-rwsr-xr-x 0:0, of dpkg:exim4-daemon-light",
    }


def test_without_recommendations_only_what_was_asked_for_comes_in(guest: Guest) -> None:
    guest.install("install", "at")
    verdict = guest.verdict("at")
    assert told(verdict) == {
        "new": ["dpkg:at"],
        "setuid": ["setuid:/usr/bin/at"],
        "unit": ["unit:atd.service"],
    }
    assert chains(verdict) == {"at": (Reason.DECLARED, ["at"])}
    assert details(verdict, Rule.UNIT) == {"unit:atd.service": "enabled, of dpkg:at"}


def test_whichever_alternative_is_there_is_explained(guest: Guest) -> None:
    guest.install("install", "gpg-agent")
    verdict = guest.verdict("gpg-agent")
    assert told(verdict) == {"alternative": ["alternative:pinentry"], "new": [f"dpkg:{name}" for name in AGENT]}
    assert chains(verdict)["pinentry-curses"] == (Reason.TRANSITIVE, ["gpg-agent", "pinentry-curses"])
    guest.box.restore(SUPPLIED)
    guest.install("install", "gpg-agent", "pinentry-tty")
    verdict = guest.verdict("gpg-agent")
    new = sorted({*AGENT, "pinentry-tty"} - {"pinentry-curses"})
    assert told(verdict) == {"alternative": ["alternative:pinentry"], "new": [f"dpkg:{name}" for name in new]}
    assert chains(verdict)["pinentry-tty"] == (Reason.TRANSITIVE, ["gpg-agent", "pinentry-tty"])
    assert details(verdict, Rule.ALTERNATIVE) == {"alternative:pinentry": "/usr/bin/pinentry-tty"}


def test_a_dependency_that_was_dropped_is_gone_on_a_fresh_guest_and_orphaned_by_an_update(guest: Guest) -> None:
    guest.install("install", "borgbackup/bookworm-backports")
    verdict = guest.verdict()
    assert told(verdict) == {"orphaned": ["dpkg:python3-pkg-resources"]}
    assert details(verdict, Rule.VERSION) == {"dpkg:borgbackup": "1.2.4-1 → 1.4.0-4~bpo12+1"}
    assert verdict.gone == ()
    guest.install("--purge", "purge", "borgbackup", "python3-pkg-resources", "python3-msgpack", "python3-packaging")
    fresh = guest.look()
    guest.install("install", "borgbackup/bookworm-backports")
    accepted = frozenset(f"dpkg:{name}" for name in ("borgbackup", "python3-msgpack", "python3-packaging"))
    old = Baseline(accepted=accepted | {"dpkg:python3-pkg-resources"}, versions={"dpkg:borgbackup": "1.2.4-1"})
    verdict = compare(fresh, guest.look(), old)
    assert not verdict.trapped
    assert verdict.stale == ("dpkg:python3-pkg-resources",)
    assert details(verdict, Rule.VERSION) == {"dpkg:borgbackup": "1.2.4-1 in the baseline, 1.4.0-4~bpo12+1 now"}


def test_a_package_of_pip_that_hides_the_systems_own_is_told(guest: Guest, tmp_path: Path) -> None:
    guest.install("install", "python3-requests")
    before = guest.look()
    target = tmp_path / "dist-packages"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(target)]
    subprocess.run([*pip, str(wheel(tmp_path))], check=True)
    guest.box.run(["mkdir", "-p", PIP])
    guest.box.put(target, PIP)
    assert guest.box.run(["dpkg", "--verify", "python3-requests"]).stdout == b""
    verdict = compare(before, guest.look(), Baseline())
    item = f"python:requests:{PIP}"
    assert told(verdict) == {"new": [item], "shadowed": [f"shadowed:{item}"]}
    assert of(verdict, f"shadowed:{item}", Rule.SHADOWED).detail == (
        "2.31.0 beside 2.28.1 of dpkg:python3-requests in /usr/lib/python3/dist-packages"
    )


def test_capabilities_and_rights_are_told_with_the_package_or_as_nobodys(guest: Guest) -> None:
    guest.install("install", "fping")
    guest.box.run(["install", "-m", "4755", "/bin/true", "/usr/local/bin/helper"])
    verdict = guest.verdict("fping")
    assert told(verdict) == {
        "capability": ["capability:/usr/bin/fping"],
        "new": ["dpkg:fping", "dpkg:netbase"],
        "program": ["file:/usr/local/bin/helper"],
        "setuid": ["setuid:/usr/local/bin/helper"],
    }
    assert details(verdict, Rule.CAPABILITY) == {"capability:/usr/bin/fping": "cap_net_raw=ep, of dpkg:fping"}
    assert details(verdict, Rule.SETUID) == {"setuid:/usr/local/bin/helper": "-rwsr-xr-x 0:0"}


def test_a_package_that_came_and_went_leaves_nothing(guest: Guest) -> None:
    assert guest.verdict().findings == ()
    guest.install("install", "jq")
    assert chains(guest.verdict("jq"))["libonig5"] == (Reason.TRANSITIVE, ["jq", "libjq1", "libonig5"])
    guest.install("--purge", "autoremove", "jq")
    assert guest.verdict().findings == ()


def wheel(folder: Path) -> Path:
    """Make a wheel with what requests 2.31.0 says of itself."""
    path = folder / "requests-2.31.0-py3-none-any.whl"
    about = "requests-2.31.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("requests/__init__.py", "")
        archive.writestr(
            f"{about}/METADATA",
            "Metadata-Version: 2.1\nName: requests\nVersion: 2.31.0\nRequires-Dist: charset-normalizer (<4,>=2)\n"
            "Requires-Dist: idna (<4,>=2.5)\nRequires-Dist: urllib3 (<3,>=1.21.1)\n"
            "Requires-Dist: certifi (>=2017.4.17)\n",
        )
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return path
