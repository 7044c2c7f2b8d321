"""The inventory of a real guest: complete, quiet, the same over both channels, and whatever state the guest is in."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from tests.vm.conftest import Testbed
from tests.vm.frozen import deb
from tests.vm.test_trap import program
from vmimagemanager import Box, Manager
from vmimagemanager.boxes.reach import agent
from vmimagemanager.errors import GuestError
from vmimagemanager.guest import inventory
from vmimagemanager.guest.inventory import Kind
from vmimagemanager.report.inventory import lines
from vmimagemanager.trap import Baseline, compare

ODD = r"""
set -e
useradd --system --no-create-home intruder
install -m 4755 /bin/true "/usr/local/bin/root
me"
: >"$(printf '/usr/local/bin/\377')"
mkdir -p /opt/venv/lib/python3.11/site-packages/Left_Pad-1.0.dist-info /opt/app/node_modules/left-pad
printf 'Metadata-Version: 2.1\nName: Left.Pad\nVersion: 1.0\n' \
    >/opt/venv/lib/python3.11/site-packages/Left_Pad-1.0.dist-info/METADATA
printf '{"name": "left-pad", "version": "1.3.0"}\n' >/opt/app/node_modules/left-pad/package.json
printf '[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n' >/etc/systemd/system/odd.service
echo 'deb http://me:secret@repository.example/ stable main' >/etc/apt/sources.list.d/odd.list
perl -MSocket -e 'socket(S, PF_INET, SOCK_STREAM, 0); bind S, sockaddr_in(4711, INADDR_ANY); listen S, 1; sleep 600' \
    >/dev/null 2>&1 </dev/null &
echo '# changed' >>/usr/share/perl5/Debconf/Log.pm || echo '# changed' >>/etc/debconf.conf
sync
"""


def test_two_inventories_of_an_untouched_guest_differ_in_nothing_over_either_channel(
    box: Box, manager: Manager
) -> None:
    first = box.inventory()
    domain = manager.site.domain(box.name)
    assert domain is not None

    def by_agent(script: str) -> bytes:
        return agent(domain).run(["/bin/sh", "-s"], stdin=script.encode(), limit=timedelta(minutes=5)).stdout

    second = inventory.take(by_agent)
    assert lines(second) == lines(first)
    assert second == first
    assert len(first.packages) > 80
    assert {Kind.FILE, Kind.SETUID, Kind.UNIT, Kind.USER, Kind.SOCKET, Kind.REPOSITORY} & set(first.unknown) == set()
    assert {fact.name for fact in first.facts if fact.kind is Kind.SETUID and fact.owner} >= {"/usr/bin/passwd"}


def test_whatever_comes_into_a_guest_is_found_even_when_its_disk_is_full(box: Box, testbed_box: Testbed) -> None:
    before = box.inventory()
    box.script(ODD)
    box.script("fallocate -l $(($(stat -f -c '%f * %S' /) - (64 << 20))) /root/fill; cat /dev/zero >/root/rest; exit 0")
    assert box.run(["sh", "-c", "head -c 1M /dev/zero >/root/no"], check=False).status != 0
    after = inventory.take(box.as_root, since=before.clock)  # as the trap does
    news = after - before
    assert sorted(package.item for package in news.packages) == [
        "npm:left-pad:/opt/app/node_modules",
        "python:left-pad:/opt/venv/lib/python3.11/site-packages",
    ]
    found = {fact.item: fact.detail for fact in news.facts if fact.kind is not Kind.MODULE}
    assert {
        "user:intruder",
        r"setuid:/usr/local/bin/root\nme",
        r"file:/usr/local/bin/\xff",
        "unit:odd.service",
        "repository:deb http://***@repository.example/ stable main",
        "socket:tcp/any/4711",
    } <= set(found)
    assert any(fact.kind is Kind.MODIFIED for fact in after.facts)
    assert len(found) <= 20, sorted(found)

    box.disconnect()
    status, out, told = program(testbed_box, "inventory", box.name, "--json")
    assert status == 0, told
    document = json.loads(out)
    assert document["kind"] == "inventory"
    assert {fact["item"] for fact in document["facts"]} >= set(found)


BUSY = r"""
dpkg --install /root/odd.deb
printf 'LANG=de_DE.UTF-8\nLC_ALL=C.UTF-8\nLANGUAGE=de\nDPKG_ADMINDIR=/nowhere\nGREP_OPTIONS=-v\n' >/etc/environment
perl -MFcntl -e 'for my $name (qw(lock lock-frontend)) { open my $lock, ">>", "/var/lib/dpkg/$name" or die;
    my $whole = pack("ssx4qqix4", F_WRLCK, 0, 0, 0, 0);
    fcntl($lock, F_SETLK, $whole) or die; push @held, $lock }
    open my $sign, ">", "/run/held"; sleep 600' >/dev/null 2>&1 </dev/null &
for second in 1 2 3 4 5 6 7 8 9 10; do [ -e /run/held ] || sleep 1; done
"""


def test_a_held_lock_another_language_and_a_name_of_every_character_make_no_difference(
    box: Box, tmp_path: Path
) -> None:
    before = box.inventory()
    package = tmp_path / "odd.deb"
    package.write_bytes(deb(ODD_PACKAGE, []))
    box.put(package, "/root/odd.deb")
    box.script(BUSY)
    box.disconnect()  # so that the environment is read
    box.run(["dpkg", "--purge", "0a+b.c-1"])  # believes its environment, by which nothing is installed
    refused = box.run(["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "dpkg", "--purge", "0a+b.c-1"], check=False)
    assert refused.status != 0
    assert b"lock" in refused.stderr
    assert "LC_ALL=C.UTF-8" in box.run(["env"]).text
    after = inventory.take(box.as_root, since=before.clock)
    verdict = compare(before, after, Baseline())
    assert [finding.item for finding in verdict.findings if finding.counts] == ["dpkg:0a+b.c-1"]
    assert (verdict.gone, verdict.changed) == ((), ())
    assert set(after.unknown) == set(before.unknown) - {Kind.MODIFIED}
    path = tmp_path / "deps.toml"
    Baseline.of(verdict).write(path)
    assert not compare(before, after, Baseline.read(path)).trapped


ODD_PACKAGE = """\
Package: 0a+b.c-1
Version: 1:2~rc1+dfsg-1.1
Architecture: all
Maintainer: Nobody <nobody@example.org>
Description: has a name of every character
"""


def test_a_user_without_sudo_and_one_whose_sudo_asks_are_told_what_helps(box: Box) -> None:
    before = box.show().settings
    box.script(
        "useradd --create-home tester; usermod -p '*' tester; cp -r /root/.ssh ~tester/; chown -R tester: ~tester/.ssh"
    )
    for asks in (False, True):
        if asks:
            box.script(r"printf '#!/bin/sh\necho sudo: a password is required >&2; exit 1\n' >/usr/bin/sudo")
            box.run(["chmod", "755", "/usr/bin/sudo"])
        try:
            box.update(replace(before, user="tester"))
            box.disconnect()
            with pytest.raises(GuestError, match="cannot be listed: the probe ended with status") as caught:
                box.inventory()
        finally:
            box.update(before)
            box.disconnect()
        assert "sudo without a password" in caught.value.hint
        assert ("a password is required" in caught.value.detail) == asks
