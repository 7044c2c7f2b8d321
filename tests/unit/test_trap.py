"""The trap: what two inventories say about each other under a baseline, and how it is told."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmimagemanager.errors import ConfigError
from vmimagemanager.guest.inventory import Fact, Inventory, Kind, Package
from vmimagemanager.report.trap import document, lines
from vmimagemanager.trap import Baseline, Change, Policy, Rule, Verdict, compare

PACKAGES = st.builds(
    Package,
    manager=st.sampled_from(["dpkg", "rpm"]),
    name=st.sampled_from(["hello", "jq", "libc6", "kernel"]),
    architecture=st.sampled_from(["amd64", "i386"]),
    version=st.sampled_from(["1", "2", "3"]),
    automatic=st.sampled_from([True, False, None]),
).map(lambda found: make(found.name, found.version, found.architecture, found.manager, automatic=found.automatic))
INVENTORIES = st.frozensets(PACKAGES, max_size=12).map(Inventory)
ITEMS = ["dpkg:hello", "dpkg:jq", "rpm:jq", "dpkg:libc6:i386", "rpm:elsewhere"]
BASELINES = st.frozensets(st.sampled_from(ITEMS)).map(lambda items: Baseline(accepted=items))


def make(
    name: str, version: str = "1", architecture: str = "amd64", manager: str = "dpkg", *, automatic: bool | None = False
) -> Package:
    """Return a package of an amd64 guest."""
    return Package(
        manager=manager,
        name=name,
        version=version,
        architecture=architecture,
        automatic=automatic,
        foreign=architecture not in ("amd64", "all", "noarch"),
    )


def guest(*packages: Package) -> Inventory:
    return Inventory(frozenset(packages))


@given(INVENTORIES, BASELINES)
def test_a_guest_in_which_nothing_happened_traps_nothing(same: Inventory, baseline: Baseline) -> None:
    verdict = compare(same, same, baseline)
    assert not verdict.trapped
    assert (verdict.unexpected, verdict.accepted, verdict.gone, verdict.changed) == ((), (), (), ())
    assert frozenset(verdict.stale) == baseline.accepted


@given(INVENTORIES, INVENTORIES, BASELINES)
def test_every_item_is_told_once_and_in_the_right_place(
    before: Inventory, after: Inventory, baseline: Baseline
) -> None:
    verdict = compare(before, after, baseline)
    unexpected = {package.item for package in verdict.unexpected}
    accepted = {package.item for package in verdict.accepted}
    assert unexpected | accepted == after.items - before.items
    assert not unexpected & accepted
    assert accepted <= baseline.accepted
    assert not unexpected & baseline.accepted
    assert {package.item for package in verdict.gone} == before.items - after.items
    assert {change.package.item for change in verdict.changed} <= before.items & after.items
    assert frozenset(verdict.stale) == baseline.accepted - accepted
    assert verdict.trapped == (unexpected != set())


@given(INVENTORIES, INVENTORIES)
def test_the_way_back_is_the_mirror_image(before: Inventory, after: Inventory) -> None:
    there, back = compare(before, after, Baseline()), compare(after, before, Baseline())
    assert there.unexpected == back.gone
    assert there.gone == back.unexpected
    assert [(change.before, change.after) for change in there.changed] == [
        (change.after, change.before) for change in back.changed
    ]


@given(INVENTORIES, INVENTORIES, BASELINES)
def test_what_was_accepted_is_never_trapped_again(before: Inventory, after: Inventory, baseline: Baseline) -> None:
    accepting = baseline.accepting(compare(before, after, baseline))
    assert not compare(before, after, accepting).trapped
    assert baseline.accepted <= accepting.accepted
    assert accepting.accepting(compare(before, after, accepting)) == accepting


@given(BASELINES)
def test_a_baseline_survives_its_file(baseline: Baseline) -> None:
    assert Baseline.parse(baseline.text().encode(), source=Path("deps.toml")) == baseline


def test_a_foreign_architecture_is_another_package() -> None:
    before, after = guest(make("libc6")), guest(make("libc6"), make("libc6", architecture="i386"))
    baseline = Baseline(accepted=frozenset({"dpkg:libc6"}))
    assert [package.item for package in compare(before, after, baseline).unexpected] == ["dpkg:libc6:i386"]


def test_a_package_that_became_independent_of_the_architecture_is_a_change() -> None:
    verdict = compare(guest(make("fonts", "1")), guest(make("fonts", "2", "all")), Baseline())
    assert verdict.changed == (Change(package=make("fonts", "2", "all"), before=("1",), after=("2",)),)
    assert not verdict.trapped


def test_a_second_version_beside_the_first_is_a_change() -> None:
    before = guest(make("kernel", "1", "noarch", "rpm"))
    verdict = compare(before, Inventory(before.packages | {make("kernel", "2", "noarch", "rpm")}), Baseline())
    [change] = verdict.changed
    assert (change.before, change.after) == (("1",), ("1", "2"))


def test_a_mark_that_changed_is_no_finding() -> None:
    verdict = compare(guest(make("jq", automatic=True)), guest(make("jq", automatic=False)), Baseline())
    assert verdict == compare(guest(), guest(), Baseline())


def test_a_baseline_file_is_sorted_one_item_a_line_and_says_who_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "deps.toml"
    Baseline(accepted=frozenset({"rpm:jq", "dpkg:libc6:i386", "dpkg:hello"})).write(path)
    text = path.read_text()
    assert text == (
        "# What may be new.  Written by 'vmimagemanager trap NAME --baseline FILE --accept -- CMD'.\n\n"
        'format = 2\n\n[packages]\naccepted = [\n    "dpkg:hello",\n    "dpkg:libc6:i386",\n    "rpm:jq",\n]\n'
    )
    assert tomllib.loads(text)["format"] == 2
    assert Baseline.read(path).accepted == {"rpm:jq", "dpkg:libc6:i386", "dpkg:hello"}


def test_a_missing_baseline_is_an_error_that_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"deps\.toml' does not exist") as caught:
        Baseline.read(tmp_path / "deps.toml")
    assert "vmimagemanager trap NAME --baseline FILE --accept -- CMD" in caught.value.hint
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        Baseline.read(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'format' is missing: expected 'format = 2'"),
        ("format = 3", "'format' is 3, and this program knows formats up to 2"),
        ('format = "1"', "'format' is '1': expected the number 2"),
        (
            "format = 1\n[package]",
            "'package' is not a known key: expected one of format, base, packages, facts; the",
        ),
        ("format = 1\npackages = 1", "'packages' is 1: expected a table"),
        (
            "format = 1\n[packages]\naccept = []",
            "'packages.accept' is not a known key: expected one of accepted, versions; the",
        ),
        ("format = 2\nbase = 'x'", "'base' is 'x': expected the 20 letters"),
        (
            "format = 2\n[facts]\naccepted = ['planet:mars']",
            "'facts.accepted[1]' is 'planet:mars': expected 'KIND:NAME'",
        ),
        ("format = 2\n[packages.versions]\n'dpkg:a' = 1", "'packages.versions.\"dpkg:a\"' is 1: expected one line"),
        ('format = 1\n[packages]\naccepted = "dpkg:a"', "'packages.accepted' is 'dpkg:a': expected a list of"),
        (
            'format = 1\n[packages]\naccepted = ["dpkg:a", "jq"]',
            "'packages.accepted[2]' is 'jq': expected 'MANAGER",
        ),
        ("format = 1\n[packages]\naccepted = [1]", "'packages.accepted[1]' is 1: expected 'MANAGER:PACKAGE'"),
        ('format = 1\n[packages]\naccepted = ["dpkg:a b"]', "'packages.accepted[1]' is 'dpkg:a b': expected"),
        ("<<<<<<< HEAD", "is not TOML: Invalid statement (at line 1, column 1)"),
    ],
)
def test_a_damaged_baseline_is_refused_with_file_key_and_what_was_expected(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Baseline.parse(text.encode(), source=Path("deps.toml"))
    assert said in caught.value.message
    assert "'deps.toml'" in caught.value.message
    assert "--accept" in caught.value.hint or "newer version" in caught.value.hint


def test_a_baseline_that_is_no_text_is_refused() -> None:
    with pytest.raises(ConfigError, match="not UTF-8"):
        Baseline.parse(b"\xff", source=Path("deps.toml"))


@pytest.fixture
def verdict() -> Verdict:
    before = guest(make("adduser"), make("perl", "5.36"), make("vim"))
    after = guest(
        make("adduser"),
        make("perl", "5.38"),
        replace(make("jq", "1.6-2.1"), depends=(("libjq1",),)),
        make("libjq1", "1.6-2.1", automatic=True),
        make("zlib", "1-1", "noarch", "rpm", automatic=None),
        make("hello", "2.10-3"),
    )
    return compare(before, after, Baseline(accepted=frozenset({"dpkg:hello", "dpkg:at"})))


def test_the_text_names_everything_and_the_command_that_accepts(verdict: Verdict) -> None:
    assert lines(verdict, accept="vmimagemanager trap web --baseline deps.toml --accept -- make install") == [
        "Trapped: 3 findings that the baseline does not accept.",
        "  dpkg:jq 1.6-2.1, new, installed on request",
        "  dpkg:libjq1 1.6-2.1, new, needed: dpkg:jq → dpkg:libjq1",
        "  rpm:zlib 1-1, new, installed on request",
        "To accept them: vmimagemanager trap web --baseline deps.toml --accept -- make install",
        "Accepted by the baseline: 1 package.",
        "  dpkg:hello 2.10-3",
        "No longer installed: 1 package.",
        "  dpkg:vim 1",
        "In another version: 1 package.",
        "  dpkg:perl 5.36 → 5.38",
        "In the baseline, but not new this time:",
        "  dpkg:at",
    ]


def test_the_text_of_an_empty_verdict_says_that_nothing_was_trapped() -> None:
    assert lines(compare(guest(), guest(), Baseline())) == [
        "Nothing was trapped: nothing is new that the baseline does not accept."
    ]


def test_the_json_document_is_versioned_and_says_the_same(verdict: Verdict) -> None:
    shown = json.loads(json.dumps(document(verdict)))
    assert (shown["format"], shown["kind"], shown["trapped"]) == (1, "trap", True)
    assert [package["item"] for package in shown["unexpected"]] == ["dpkg:jq", "dpkg:libjq1", "rpm:zlib"]
    assert shown["unexpected"][1] == {
        "item": "dpkg:libjq1",
        "manager": "dpkg",
        "name": "libjq1",
        "architecture": "amd64",
        "version": "1.6-2.1",
        "automatic": True,
    }
    assert shown["accepted"][0]["item"] == "dpkg:hello"
    assert shown["gone"][0]["name"] == "vim"
    assert (shown["changed"][0]["before"], shown["changed"][0]["after"]) == (["5.36"], ["5.38"])
    assert shown["stale"] == ["dpkg:at"]
    counting = [finding for finding in shown["findings"] if finding["counts"]]
    assert [finding["item"] for finding in counting] == ["dpkg:jq", "dpkg:libjq1", "rpm:zlib"]
    assert counting[1]["chain"] == ["dpkg:jq", "dpkg:libjq1"]


# -- bases, versions, facts --------------------------------------------------------------------------------------------


def fact(kind: Kind, name: str, detail: str = "", owner: str = "") -> Fact:
    return Fact(kind=kind, name=name, detail=detail, owner=owner)


def with_facts(*facts: Fact, packages: Inventory | None = None) -> Inventory:
    return Inventory((packages or guest(make("base"))).packages, frozenset(facts))


def counting(verdict: Verdict) -> list[str]:
    return [finding.item for finding in verdict.findings if finding.counts]


def test_a_baseline_of_another_base_is_refused_and_not_compared() -> None:
    before = guest(make("base", "1"))
    baseline = Baseline().accepting(compare(before, guest(make("base", "1"), make("jq")), Baseline()))
    baseline.require(before, source=Path("deps.toml"))
    for other in (guest(make("base", "2")), guest(make("base", "1"), make("more"))):
        with pytest.raises(ConfigError, match=r"'deps\.toml' was written for another base") as caught:
            baseline.require(other, source=Path("deps.toml"))
        assert "--rebase" in caught.value.hint
    Baseline(accepted=baseline.accepted).require(guest(), source=Path("deps.toml"))


def test_a_rebase_keeps_what_is_new_and_nothing_else() -> None:
    before, after = guest(make("base")), guest(make("base"), make("jq", "2"), make("hello"))
    verdict = compare(before, after, Baseline(accepted=frozenset({"dpkg:jq", "dpkg:old"})))
    made = Baseline.of(verdict)
    assert made.accepted == {"dpkg:jq", "dpkg:hello"}
    assert made.versions == {"dpkg:jq": "2", "dpkg:hello": "1"}
    assert Baseline.parse(made.text().encode(), source=Path("x")) == made


@pytest.mark.parametrize(
    ("versions", "trapped", "told"), [("ignore", False, 0), ("record", False, 1), ("exact", True, 1)]
)
def test_versions_are_ignored_recorded_or_exact(versions: str, trapped: bool, told: int) -> None:
    policy = Policy.parse(f"format = 1\nversions = '{versions}'".encode(), source=Path("trap.toml"))
    baseline = Baseline(accepted=frozenset({"dpkg:jq"}), versions={"dpkg:jq": "1"})
    verdict = compare(guest(), guest(make("jq", "2")), baseline, policy=policy)
    assert verdict.trapped == trapped
    assert [finding.detail for finding in verdict.findings if finding.rule is Rule.VERSION] == [
        "1 in the baseline, 2 now"
    ] * told


@pytest.mark.parametrize("kind", [Kind.SETUID, Kind.CAPABILITY, Kind.USER, Kind.SOCKET, Kind.REPOSITORY, Kind.KEY])
def test_a_new_fact_is_trapped_until_it_is_accepted(kind: Kind) -> None:
    before, after = with_facts(), with_facts(fact(kind, "x", "detail"))
    verdict = compare(before, after, Baseline())
    assert counting(verdict) == [f"{kind}:x"]
    accepting = Baseline().accepting(verdict)
    assert Baseline.parse(accepting.text().encode(), source=Path("x")) == accepting
    assert not compare(before, after, accepting).trapped
    assert compare(before, before, accepting).stale == (f"{kind}:x",)


def test_a_fact_that_is_other_than_before_tells_both() -> None:
    before, after = with_facts(fact(Kind.USER, "zoe", "1:1")), with_facts(fact(Kind.USER, "zoe", "0:0"))
    [finding] = compare(before, after, Baseline()).findings
    assert (finding.rule, finding.detail) == (Rule.USER, "1:1 → 0:0")


def test_what_could_not_be_looked_at_is_neither_new_nor_gone() -> None:
    known = Inventory(guest(make("base")).packages, frozenset({fact(Kind.UNIT, "a.service")}))
    blind = Inventory(known.packages, frozenset(), unknown={Kind.UNIT: "no systemd"})
    for before, after in ((known, blind), (blind, known)):
        assert compare(before, after, Baseline()).findings == ()


def test_unowned_files_are_told_by_folder_and_programs_are_worse_than_data() -> None:
    after = with_facts(
        fact(Kind.FILE, "/usr/local/bin/tool", "-rwxr-xr-x 0:0 1 bytes"),
        fact(Kind.FILE, "/usr/share/data/a", "x"),
        fact(Kind.FILE, "/usr/share/data/b", "x"),
        fact(Kind.FILE, "/etc/tool.conf", "x"),
    )
    found = {
        finding.item: (finding.rule, finding.detail) for finding in compare(with_facts(), after, Baseline()).findings
    }
    assert found == {
        "file:/usr/local/bin/tool": (Rule.PROGRAM, "-rwxr-xr-x 0:0 1 bytes"),
        "file:/usr/share/data/": (Rule.FILE, "2 files"),
        "file:/etc/tool.conf": (Rule.FILE, "x"),
    }


def test_a_modified_file_is_found_although_only_the_second_look_looked_for_it() -> None:
    before = Inventory(guest(make("base")).packages, unknown={Kind.MODIFIED: "not asked for"})
    assert counting(compare(before, with_facts(fact(Kind.MODIFIED, "/usr/bin/x")), Baseline())) == [
        "modified:/usr/bin/x"
    ]


def python(name: str, version: str, place: str, owner: str = "") -> Package:
    return Package(manager="python", name=name, version=version, architecture="", place=place, owner=owner)


def test_a_python_package_over_the_systems_own_is_shadowing_and_one_in_an_environment_is_not() -> None:
    owned = python("requests", "2.28.1", "/usr/lib/python3/dist-packages", "dpkg:python3-requests")
    before = guest(make("python3-requests"), owned)
    over = python("requests", "2.31.0", "/usr/local/lib/python3.11/dist-packages")
    beside = python("requests", "2.31.0", "/opt/venv/lib/python3.11/site-packages")
    shadowed = [
        one for one in compare(before, guest(*before.packages, over), Baseline()).findings if one.rule is Rule.SHADOWED
    ]
    assert [(one.item, one.detail) for one in shadowed] == [
        (f"shadowed:{over.item}", "2.31.0 beside 2.28.1 of dpkg:python3-requests in /usr/lib/python3/dist-packages")
    ]
    assert counting(compare(before, guest(*before.packages, beside), Baseline())) == [beside.item]


def test_a_package_of_a_language_that_the_system_installed_is_not_told_twice() -> None:
    owned = python("six", "1", "/usr/lib/python3/dist-packages", "dpkg:python3-six")
    verdict = compare(guest(make("base")), guest(make("base"), make("python3-six"), owned), Baseline())
    assert counting(verdict) == ["dpkg:python3-six"]
