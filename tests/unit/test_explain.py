"""Why a package is there: chains, clauses, what nobody declared, and what an update brought."""

from __future__ import annotations

import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmimagemanager.errors import ConfigError
from vmimagemanager.guest.inventory import Inventory, Package
from vmimagemanager.guest.inventory.dpkg import clauses
from vmimagemanager.trap import Baseline, Explanation, Reason, Rule, compare
from vmimagemanager.trap.declared import read
from vmimagemanager.trap.explain import Need, explain, orphans


def package(
    name: str,
    depends: str = "",
    *,
    recommends: str = "",
    provides: str = "",
    automatic: bool = True,
    version: str = "1",
) -> Package:
    return Package(
        manager="dpkg",
        name=name,
        architecture="amd64",
        version=version,
        automatic=automatic,
        depends=clauses(depends),
        recommends=clauses(recommends),
        provides=tuple(provides.split()),
    )


def guest(*packages: Package) -> Inventory:
    return Inventory(frozenset(packages))


def why(before: Inventory, after: Inventory, *declared: str) -> dict[str, Explanation]:
    """Return the explanation of each new package, by its name; with nothing declared by what was asked for."""
    needs = [Need(managers=("dpkg",), names=tuple(name.split("|"))) for name in declared]
    found = explain(before, after, (after - before).packages, needs or None)
    return {one.name: told for one, told in found.items()}


BASE = guest(package("libc6", automatic=False))
JQ = (
    package("jq", "libjq1, libc6", automatic=False),
    package("libjq1", "libonig5, libc6"),
    package("libonig5", "libc6"),
)


def test_a_chain_is_the_shortest_way_from_what_is_declared() -> None:
    told = why(BASE, guest(*BASE.packages, *JQ), "jq")
    assert told["jq"] == Explanation(reason=Reason.DECLARED, chain=("dpkg:jq",))
    assert told["libonig5"].reason is Reason.TRANSITIVE
    assert told["libonig5"].chain == ("dpkg:jq", "dpkg:libjq1", "dpkg:libonig5")
    assert told["libonig5"].clause == ("libonig5",)


def test_what_is_undeclared_is_collapsed_to_what_brought_it() -> None:
    after = guest(*BASE.packages, *JQ, package("make", "libc6", automatic=False))
    told = why(BASE, after, "make")
    assert told["jq"] == Explanation(
        reason=Reason.UNDECLARED, chain=("dpkg:jq",), brings=("dpkg:libjq1", "dpkg:libonig5")
    )
    needs = [Need(managers=("dpkg",), names=("make",))]
    verdict = compare(BASE, after, Baseline(accepted=after.items), needs=needs)
    assert [finding.item for finding in verdict.findings if finding.counts] == ["dpkg:jq"]
    assert [finding.rule for finding in verdict.findings if finding.counts] == [Rule.UNDECLARED]


def test_a_circle_of_undeclared_packages_has_one_root_the_one_that_was_asked_for() -> None:
    circle = package("a", "b"), package("b", "c", automatic=False), package("c", "a")
    told = why(BASE, guest(*BASE.packages, *circle), "make")
    assert {name for name, one in told.items() if one.is_root} == {"b"}
    assert told["b"].brings == ("dpkg:a", "dpkg:c")


def test_recommends_leak_is_told_as_such() -> None:
    after = guest(
        *BASE.packages,
        package("at", "libc6", recommends="default-mta | mail-transport-agent", automatic=False),
        package("exim4-daemon-light", "exim4-base", provides="mail-transport-agent default-mta"),
        package("exim4-base", "libc6"),
    )
    told = why(BASE, after, "at")
    assert {name: one.reason for name, one in told.items()} == {
        "at": Reason.DECLARED,
        "exim4-daemon-light": Reason.RECOMMENDED,
        "exim4-base": Reason.RECOMMENDED,
    }
    assert told["exim4-base"].chain == ("dpkg:at", "dpkg:exim4-daemon-light", "dpkg:exim4-base")
    assert told["exim4-daemon-light"].clause == ("default-mta", "mail-transport-agent")


def test_every_installed_alternative_is_explained() -> None:
    agent = package("gpg-agent", "pinentry-curses | pinentry", automatic=False)
    after = guest(agent, package("pinentry-curses", provides="pinentry"), package("pinentry-tty", provides="pinentry"))
    told = why(guest(), after, "gpg-agent")
    assert {told[name].reason for name in ("pinentry-curses", "pinentry-tty")} == {Reason.TRANSITIVE}


def test_an_update_that_adds_a_dependency_is_explained_and_trapped_all_the_same() -> None:
    before = guest(*BASE.packages, package("jdupes", "libc6", automatic=False, version="1.21.3"))
    after = guest(
        *BASE.packages,
        package("jdupes", "libc6, libjodycode3", automatic=False, version="1.27.3"),
        package("libjodycode3", "libc6"),
    )
    assert why(before, after)["libjodycode3"] == Explanation(
        reason=Reason.UPDATE, chain=("dpkg:jdupes", "dpkg:libjodycode3"), clause=("libjodycode3",)
    )
    verdict = compare(before, after, Baseline())
    assert [finding.item for finding in verdict.findings if finding.counts] == ["dpkg:libjodycode3"]


def test_without_declarations_what_was_asked_for_explains_the_rest() -> None:
    told = why(BASE, guest(*BASE.packages, *JQ))
    assert told["jq"].reason is Reason.REQUESTED
    assert told["libonig5"].reason is Reason.TRANSITIVE


def test_a_dropped_dependency_leaves_an_orphan() -> None:
    resources = package("python3-pkg-resources")
    before = guest(package("borgbackup", "python3-pkg-resources", automatic=False, version="1.2"), resources)
    after = guest(package("borgbackup", automatic=False, version="1.4"), resources)
    assert not orphans(before)
    found = [finding for finding in compare(before, after, Baseline()).findings if finding.rule is Rule.ORPHANED]
    assert [finding.item for finding in found] == ["dpkg:python3-pkg-resources"]


NAMES = st.sampled_from("abcdefgh")
GRAPHS = st.dictionaries(NAMES, st.tuples(st.lists(NAMES, max_size=3), st.lists(NAMES, max_size=2), st.booleans()))


@given(GRAPHS, st.lists(NAMES, max_size=3))
def test_every_new_package_is_explained_by_a_chain_that_exists(
    graph: dict[str, tuple[list[str], list[str], bool]], declared: list[str]
) -> None:
    after = guest(
        *(
            package(name, ", ".join(depends), recommends=", ".join(recommends), automatic=automatic)
            for name, (depends, recommends, automatic) in graph.items()
        )
    )
    told = why(guest(), after, *declared)
    assert set(told) == set(graph)
    for name, one in told.items():
        assert one.chain[-1] == f"dpkg:{name}"
        for parent, child in zip(one.chain, one.chain[1:], strict=False):
            depends, recommends, _ = graph[parent.removeprefix("dpkg:")]
            assert child.removeprefix("dpkg:") in depends + recommends
        if one.reason is Reason.DECLARED:
            assert name in declared
    roots = [one for one in told.values() if one.reason is Reason.UNDECLARED and one.is_root]
    brought = [item for one in roots for item in one.brings]
    undeclared = [name for name, one in told.items() if one.reason is Reason.UNDECLARED]
    assert len(brought) == len(set(brought))
    assert len(roots) + len(brought) == len(undeclared)


def test_five_thousand_packages_are_classified_quickly() -> None:
    everything = [
        package(
            f"p{number}", ", ".join(f"p{(number * 7 + step) % 5000}" for step in range(1, 9)), provides=f"v{number}"
        )
        for number in range(5000)
    ]
    before, after = guest(*everything[:500]), guest(*everything)
    needs = [Need(managers=("dpkg",), names=(f"p{number}",)) for number in range(600, 700)]
    start = time.process_time()
    verdict = compare(before, after, Baseline(), needs=needs)
    spent = time.process_time() - start
    assert len(verdict.unexpected) == 4500
    assert spent < 2.0  # it takes a twentieth of that; bench has the figure


# -- what is declared --------------------------------------------------------------------------------------------------


def declared(path: Path, text: str) -> dict[str, str]:
    path.write_text(text)
    return {"|".join(need.names): need.managers[0] for need in read(path)}


def test_debian_control_declares_what_is_needed_to_build(tmp_path: Path) -> None:
    text = """\
Source: hello
Build-Depends: debhelper-compat (= 13),
# a comment
 gcc:native, libfoo-dev [linux-any] <!nocheck> | libfoo2-dev,
Build-Depends-Indep: docbook
Maintainer: x

Package: hello
Depends: never
"""
    assert set(declared(tmp_path / "control", text)) == {
        "build-essential",
        "debhelper-compat",
        "gcc",
        "libfoo-dev|libfoo2-dev",
        "docbook",
    }


def test_python_and_npm_declare_in_their_own_files(tmp_path: Path) -> None:
    (tmp_path / "requirements-more.txt").write_text("six\n")
    requirements = (
        "# c\n-r requirements-more.txt\nFoo.Bar[x]>=1; python_version>'3' # y\n--index-url x\nbaz==1 \\\n --hash=x\n"
    )
    assert declared(tmp_path / "requirements.txt", requirements) == {
        "six": "python",
        "foo-bar": "python",
        "baz": "python",
    }
    project = (
        "[build-system]\nrequires=['setuptools>=77']\n[project]\ndependencies=['A']\n"
        "[project.optional-dependencies]\nt=['b']\n"
    )
    assert set(declared(tmp_path / "pyproject.toml", project)) == {"setuptools", "a", "b"}
    package_json = '{"dependencies": {"@s/p": "^1"}, "devDependencies": {"q": "*"}}'
    assert declared(tmp_path / "package.json", package_json) == {"@s/p": "npm", "q": "npm"}


def test_a_list_names_packages_of_the_system_or_of_a_language(tmp_path: Path) -> None:
    assert declared(tmp_path / "deps", "jq # why\n\nmawk | gawk\npython:six\n") == {
        "jq": "dpkg",
        "mawk|gawk": "dpkg",
        "six": "python",
    }


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("deps", b"two words\n"),
        ("deps", b"\xff"),
        ("package.json", b"[]"),
        ("package.json", b"{"),
        ("package.json", b'{"dependencies": "left-pad"}'),
        ("package.json", b'{"dependencies": {"": "1"}}'),
        ("package.json", b'{"dependencies": ' + b"[" * 100_000),
        ("pyproject.toml", b"project.dependencies = 'six'"),
        ("requirements.txt", b"-r ./requirements.txt"),
        ("pyproject.toml", b"<<<<"),
        ("pyproject.toml", b"project = 1"),
    ],
)
def test_what_cannot_be_understood_is_one_clear_error(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=name):
        read(tmp_path / name)
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path / "missing")


@given(st.text(max_size=80), st.sampled_from(["control", "requirements.txt", "pyproject.toml", "package.json", "deps"]))
def test_any_text_declares_something_or_is_one_clear_error(text: str, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        with suppress(ConfigError):
            assert all(need.names for need in read(path))
