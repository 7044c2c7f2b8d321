"""What others read: each document is checked by the validator of its own format."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from vmimagemanager.guest.inventory import Fact, Inventory, Kind, Package, System
from vmimagemanager.report import sbom, trapfiles
from vmimagemanager.report.inventory import document, lines
from vmimagemanager.trap import Baseline, Policy, Rule, Verdict, compare
from vmimagemanager.trap.explain import Need

SYSTEM = System(id="debian", version="12", name="Debian GNU/Linux 12", kernel="6.1", machine="x86_64")


def package(name: str, *depends: str, manager: str = "dpkg", version: str = "1:1.6-2+b1", place: str = "") -> Package:
    return Package(
        manager=manager,
        name=name,
        architecture="" if place else "amd64",
        version=version,
        automatic=bool(depends),
        place=place,
        depends=tuple((one,) for one in depends),
    )


PACKAGES = (
    package("base"),
    package("jq", "libjq1"),
    package("libjq1"),
    package("g++", manager="rpm"),
    package("g++", manager="rpm", version="2"),
    package("odd|<name>", manager="npm", place="/opt/a b/node_modules"),
    package("@scope/pkg", manager="npm", place="/opt/node_modules"),
    package("six", manager="python", place="/usr/local/lib/python3.11/dist-packages", version=""),
    package("rg", manager="cargo", place="/root/.cargo"),
    package("linux", manager="pacman"),
)
FACTS = frozenset(
    {
        Fact(kind=Kind.SETUID, name="/usr/bin/at", detail="-rwsr-sr-x 0:1", owner="dpkg:at"),
        Fact(kind=Kind.FILE, name=r"/usr/local/bin/\xff\n<&>]]>", detail="x"),
        Fact(kind=Kind.UNIT, name="atd.service", detail="enabled"),
    }
)
BEFORE = Inventory(frozenset(PACKAGES[:1]), system=SYSTEM)
AFTER = Inventory(frozenset(PACKAGES), FACTS, SYSTEM, clock=1_700_000_000)


@pytest.fixture
def verdict() -> Verdict:
    policy = Policy.parse(
        b'format = 1\n[[exception]]\nmatch="setuid:*"\nreason="r"\nowner="o"\nexpires=2999-01-01\n', source=Path("p")
    )
    needs = [Need(managers=("dpkg",), names=("jq",))]
    return compare(BEFORE, AFTER, Baseline(accepted=frozenset({"dpkg:jq"})), policy=policy, needs=needs)


def test_the_cyclonedx_document_is_valid_and_always_the_same(verdict: Verdict) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    validator = JsonStrictValidator(SchemaVersion.V1_6)
    for shown in (json.dumps(sbom.cyclonedx(AFTER, name="web")), trapfiles.cyclonedx(verdict, name="web").decode()):
        assert validator.validate_str(shown) is None
    whole = sbom.cyclonedx(AFTER, name="web")
    assert whole == sbom.cyclonedx(AFTER, name="web")
    assert len({component["bom-ref"] for component in whole["components"]}) == len(PACKAGES)
    needs = {entry["ref"]: entry["dependsOn"] for entry in whole["dependencies"]}
    assert needs["dpkg:jq@1:1.6-2+b1"] == ["dpkg:libjq1@1:1.6-2+b1"]
    assert len(json.loads(trapfiles.cyclonedx(verdict, name="web"))["components"]) == len(PACKAGES) - 1


def test_the_spdx_document_is_valid_and_always_the_same(verdict: Verdict, tmp_path: Path) -> None:
    from spdx_tools.spdx.parser.parse_anything import parse_file
    from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

    path = tmp_path / "web.spdx.json"
    for shown in (json.dumps(sbom.spdx(AFTER, name="web")).encode(), trapfiles.spdx(verdict, name="web")):
        path.write_bytes(shown)
        parsed = parse_file(str(path))
        assert validate_full_spdx_document(parsed) == []
    assert sbom.spdx(AFTER, name="web") == sbom.spdx(AFTER, name="web")


@pytest.mark.parametrize(
    ("number", "url"),
    [
        (1, "pkg:deb/debian/jq@1:1.6-2%2Bb1?arch=amd64&distro=debian-12"),
        (3, "pkg:rpm/debian/g%2B%2B@1.6-2%2Bb1?arch=amd64&distro=debian-12&epoch=1"),
        (6, "pkg:npm/%40scope/pkg@1:1.6-2%2Bb1"),
        (7, "pkg:pypi/six"),
        (9, "pkg:alpm/debian/linux@1:1.6-2%2Bb1?arch=amd64&distro=debian-12"),
    ],
)
def test_a_package_has_an_url_that_others_know(number: int, url: str) -> None:
    from packageurl import PackageURL

    made = sbom.purl(PACKAGES[number], SYSTEM)
    assert PackageURL.from_string(made) == PackageURL.from_string(url)


def test_junit_has_a_case_for_each_rule_and_each_finding_and_no_version_in_a_name(verdict: Verdict) -> None:
    from junitparser import JUnitXml

    [suite] = JUnitXml.fromstring(trapfiles.junit(verdict, name="web"))
    cases = {(case.classname, case.name): case for case in suite}
    assert len(cases) == len(Rule) + len(verdict.findings)
    assert sum(bool(case.is_failure) for case in suite) == len(
        {one.rule for one in verdict.findings if one.counts}
    ) + sum(one.counts for one in verdict.findings)
    assert cases["trap.setuid", "setuid:/usr/bin/at"].is_skipped
    assert not any("1.6" in name for _, name in cases)
    quiet = JUnitXml.fromstring(trapfiles.junit(compare(BEFORE, BEFORE, Baseline()), name="web"))
    assert [len(suite) for suite in quiet] == [len(Rule)]


def test_sarif_is_valid_and_points_at_the_file_to_change(verdict: Verdict) -> None:
    from sarif_pydantic import Sarif

    places = {"debian/a b/control": "debian/a%20b/control", "/srv/deps.toml": "file:///srv/deps.toml"}
    for where, uri in places.items():
        shown = trapfiles.sarif(verdict, where=where)
        Sarif.model_validate_json(shown)
        [run] = json.loads(shown)["runs"]
        assert len(run["results"]) == len(verdict.findings)
        found = {result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for result in run["results"]}
        assert found == {uri}
        for result in run["results"]:
            assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        marks = [result["partialFingerprints"]["vmimagemanager/v1"] for result in run["results"]]
        assert len(set(marks)) == len(marks)


def test_markdown_is_one_table_and_never_too_long(verdict: Verdict) -> None:
    shown = trapfiles.markdown(verdict, name="web").decode()
    rows = [line for line in shown.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(verdict.findings)
    assert "odd%7C" in shown or "odd\\|" in shown
    many = [replace(PACKAGES[1], name=f"package-number-{number}") for number in range(3000)]
    long = compare(BEFORE, Inventory(BEFORE.packages | frozenset(many)), Baseline())
    text = trapfiles.markdown(long, name="web").decode()
    assert len(text) <= trapfiles.MARKDOWN_MOST
    assert "more are not shown" in text


def test_fingerprints_stay_the_same_whatever_the_version(verdict: Verdict) -> None:
    newer = Inventory(frozenset(replace(one, version=f"{one.version}9") for one in AFTER.packages), FACTS, SYSTEM)
    later = compare(BEFORE, newer, Baseline())
    new = {one.fingerprint for one in verdict.findings if one.rule is Rule.NEW}
    assert new == {one.fingerprint for one in later.findings if one.rule is Rule.NEW}


def test_the_lines_and_the_document_of_an_inventory_are_sorted() -> None:
    shown = lines(AFTER)
    assert "setuid:/usr/bin/at -rwsr-sr-x 0:1 (dpkg:at)" in shown
    assert "npm:odd|<name>:/opt/a%20b/node_modules 1:1.6-2+b1" in shown
    shuffled = list(PACKAGES)
    random.Random(1).shuffle(shuffled)
    assert lines(replace(AFTER, packages=frozenset(shuffled))) == shown
    assert json.loads(json.dumps(document(AFTER)))["system"]["id"] == "debian"
