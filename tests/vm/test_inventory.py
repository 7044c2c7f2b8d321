"""The inventory of a real guest: complete, quiet, the same over both channels, and on a full disk."""

from __future__ import annotations

import json
from datetime import timedelta

from tests.vm.conftest import Testbed
from tests.vm.test_trap import program
from vmimagemanager import Box, Manager
from vmimagemanager.boxes.reach import agent
from vmimagemanager.guest import inventory
from vmimagemanager.guest.inventory import Kind
from vmimagemanager.report.inventory import lines

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
