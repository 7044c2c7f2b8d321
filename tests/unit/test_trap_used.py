"""What was used and not declared: judged from files, owners and relations alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmimagemanager.guest.inventory import Fact, Inventory, Kind, Package
from vmimagemanager.trap import Baseline, Finding, Policy, Rule, Severity, compare
from vmimagemanager.trap.explain import Need
from vmimagemanager.trap.used import Usage


def package(name: str, *depends: str, essential: bool = False) -> Package:
    return Package(
        manager="dpkg",
        name=name,
        architecture="amd64",
        version="1",
        essential=essential,
        depends=tuple((one,) for one in depends),
    )


BASE = Inventory(
    frozenset(
        [
            package("libc6"),
            package("coreutils", "libc6", essential=True),
            package("make", "libc6", "libgc"),
            package("libgc"),
            package("jq", "libjq1"),
            package("libjq1"),
            package("sshd", "libssl"),
            package("libssl"),
            package("cron", "sendmail"),
            package("sendmail"),
        ]
    ),
    frozenset([Fact(kind=Kind.FILE, name="/usr/local/bin/tool"), Fact(kind=Kind.FILE, name="/usr/share/x/data")]),
    owners={
        b"/usr/bin/make": "dpkg:make",
        b"/usr/lib/libgc.so": "dpkg:libgc",
        b"/usr/bin/jq": "dpkg:jq",
        b"/usr/share/jq/x": "dpkg:jq",
        b"/usr/lib/libjq.so": "dpkg:libjq1",
        b"/usr/lib/libssl.so": "dpkg:libssl",
        b"/usr/sbin/sshd": "dpkg:sshd",
        b"/usr/sbin/cron": "dpkg:cron",
        b"/usr/sbin/sendmail": "dpkg:sendmail",
        b"/usr/bin/ls": "dpkg:coreutils",
        b"/usr/bin/shared": "",
    },
)
NEEDS = [Need(managers=("dpkg",), names=("make",))]
IDLE = frozenset({b"/usr/sbin/sshd"})


def used(*paths: str, baseline: tuple[str, ...] = (), policy: Policy | None = None, **more: object) -> list[Finding]:
    who = {path.partition(" ")[0].encode(): frozenset(path.encode().split(b" ")[1:]) for path in paths}
    usage = Usage(files=who, idle=IDLE, **more)  # type: ignore[arg-type] # Usage's own fields
    verdict = compare(BASE, BASE, Baseline(accepted=frozenset(baseline)), policy=policy, needs=NEEDS, usage=usage)
    return [finding for finding in verdict.findings if finding.rule is Rule.USED]


def test_what_is_declared_essential_or_used_anyway_is_no_finding_nor_what_these_need() -> None:
    assert used("/usr/bin/make", "/usr/lib/libgc.so", "/usr/bin/ls", "/usr/sbin/sshd", "/usr/lib/libssl.so") == []


def test_what_only_another_one_needs_is_told_with_it() -> None:
    [finding] = used("/usr/bin/jq /usr/bin/make", "/usr/share/jq/x", "/usr/lib/libjq.so")
    assert (finding.item, finding.severity, finding.counts) == ("used:dpkg:jq", Severity.ERROR, True)
    assert finding.detail == "/usr/bin/jq by /usr/bin/make, and 1 more"
    assert finding.explanation is not None
    assert finding.explanation.brings == ("dpkg:libjq1",)


def test_a_library_that_is_used_alone_is_told_by_itself() -> None:
    assert [finding.item for finding in used("/usr/lib/libjq.so")] == ["used:dpkg:libjq1"]


def test_a_program_that_nobody_owns_is_told_but_no_data_and_nothing_that_several_own() -> None:
    found = used("/usr/local/bin/tool", "/usr/share/x/data", "/usr/bin/shared", "/root/source.c")
    assert [finding.item for finding in found] == ["used:file:/usr/local/bin/tool"]


def test_the_baseline_accepts_and_without_tracing_nothing_of_that_is_stale() -> None:
    [finding] = used("/usr/bin/jq", baseline=("used:dpkg:jq",))
    assert finding.accepted
    assert compare(BASE, BASE, Baseline(accepted=frozenset({"used:dpkg:jq"}))).stale == ()


def test_a_proof_names_what_is_needed_and_clears_what_is_not() -> None:
    needed, cleared = {"dpkg:cron": "without it the command ends with status 1"}, frozenset({"dpkg:jq", "dpkg:libjq1"})
    found = used("/usr/bin/jq", "/usr/lib/libjq.so", needed=needed, cleared=cleared)
    assert [(finding.item, finding.severity, finding.detail) for finding in found] == [
        ("used:dpkg:cron", Severity.ERROR, "without it the command ends with status 1"),
        ("used:dpkg:jq", Severity.INFO, "/usr/bin/jq, not needed, as was proven"),
    ]


def test_a_root_stays_an_error_when_what_it_brings_is_needed() -> None:
    found = used("/usr/bin/jq", "/usr/lib/libjq.so", needed={"dpkg:libjq1": "why"}, cleared=frozenset({"dpkg:jq"}))
    assert [(finding.item, finding.severity) for finding in found] == [("used:dpkg:jq", Severity.ERROR)]
    assert found[0].detail == "/usr/bin/jq, why"


def test_the_policy_rules_what_is_used_as_anything_else() -> None:
    policy = Policy.parse(b"format = 1\n[severity]\nused = 'warning'\n", source=Path("policy.toml"))
    assert [finding.severity for finding in used("/usr/bin/jq", policy=policy)] == [Severity.WARNING]


@pytest.mark.parametrize("kind", [Kind.FILE, Kind.UNIT, Kind.USER, Kind.ALTERNATIVE])
def test_nothing_left_means_that_whatever_differs_is_an_error(kind: Kind) -> None:
    fact = Fact(kind=kind, name="/etc/one" if kind is Kind.FILE else "one")
    before, after = Inventory(BASE.packages), Inventory(BASE.packages, frozenset({fact}))
    for first, second in ((before, after), (after, before)):
        verdict = compare(first, second, Baseline(), policy=Policy().for_nothing_left())
        assert verdict.clean
        assert verdict.trapped
    assert not compare(before, before, Baseline(), policy=Policy().for_nothing_left()).trapped


def test_what_the_policy_ignores_may_be_left() -> None:
    policy = Policy(severities={**Policy().severities, Rule.FILE: Severity.IGNORE}).for_nothing_left()
    after = Inventory(BASE.packages, frozenset({Fact(kind=Kind.FILE, name="/etc/one")}))
    assert not compare(Inventory(BASE.packages), after, Baseline(), policy=policy).trapped
