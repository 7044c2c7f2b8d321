"""The policy's exceptions, and what an earlier run says about the findings of today."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest

from vmimagemanager.errors import ConfigError
from vmimagemanager.guest.inventory import Fact, Inventory, Kind, Package
from vmimagemanager.report.trap import document, lines
from vmimagemanager.trap import Baseline, History, Label, Policy, Rule, Verdict, compare

TODAY = date(2026, 6, 1)
EXCEPTION = """
[[exception]]
match = "dpkg:exim4*"
reason = "comes with at"
owner = "zoe"
expires = 2026-06-01
"""


def package(name: str, *depends: str, automatic: bool = True) -> Package:
    return Package(
        manager="dpkg",
        name=name,
        architecture="amd64",
        version="1",
        automatic=automatic,
        depends=tuple((one,) for one in depends),
    )


BEFORE = Inventory(frozenset({package("base")}))
AFTER = Inventory(
    frozenset(
        {
            package("base"),
            package("at", "exim4", automatic=False),
            package("exim4", "exim4-base"),
            package("exim4-base"),
        }
    )
)


def policy(text: str) -> Policy:
    return Policy.parse(f"format = 1\n{text}".encode(), source=Path("trap.toml"))


def judged(text: str, today: date = TODAY, after: Inventory = AFTER) -> Verdict:
    return compare(BEFORE, after, Baseline(), policy=policy(text), today=today)


def counting(verdict: Verdict) -> list[str]:
    return [finding.item for finding in verdict.findings if finding.counts]


def test_an_exception_holds_to_the_end_of_its_day_and_is_then_itself_reported() -> None:
    verdict = judged(EXCEPTION)
    assert counting(verdict) == ["dpkg:at"]
    assert {finding.excepted for finding in verdict.findings if finding.excepted} == {"comes with at (zoe)"}
    assert [package.item for package in verdict.unexpected] == ["dpkg:at"]
    expired = judged(EXCEPTION, date(2026, 6, 2))
    assert counting(expired) == ["dpkg:at", "dpkg:exim4", "dpkg:exim4-base"]
    assert [(one.rule, one.item) for one in expired.findings if one.rule is Rule.EXPIRED] == [
        (Rule.EXPIRED, "exception:dpkg:exim4*")
    ]


def test_an_exception_that_matches_nothing_is_reported() -> None:
    verdict = judged(EXCEPTION.replace("exim4*", "postfix"))
    assert [one.item for one in verdict.findings if one.rule is Rule.UNUSED] == ["exception:dpkg:postfix"]


def test_an_exception_with_via_holds_only_for_what_that_brought() -> None:
    via = 'via = "dpkg:exim4"\n'
    assert counting(judged(EXCEPTION + via)) == ["dpkg:at", "dpkg:exim4"]
    alone = Inventory(BEFORE.packages | {package("exim4-base", automatic=False)})
    assert counting(judged(EXCEPTION + via, after=alone)) == ["dpkg:exim4-base"]


def test_severities_and_ignored_items_are_the_policys() -> None:
    assert counting(judged("[severity]\nnew = 'warning'\n")) == []
    assert counting(judged("ignore = ['dpkg:exim4*']")) == ["dpkg:at"]
    assert not any(one.rule is Rule.NEW for one in judged("[severity]\nnew = 'ignore'\n").findings)
    unit = Inventory(BEFORE.packages, frozenset({Fact(kind=Kind.UNIT, name="a.service")}))
    assert counting(judged("[severity]\nunit = 'error'\n", after=unit)) == ["unit:a.service"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "severities = 1",
            "'severities' is not a known key: expected one of format, versions, ignore, severity, exception",
        ),
        ("[severity]\nnews = 'error'", "'severity.news' is not a known key"),
        (
            "[severity]\nnew = 'fatal'",
            "'severity.new' is 'fatal': expected one of 'error', 'warning', 'info', 'ignore'",
        ),
        ("versions = 'latest'", "'versions' is 'latest'"),
        ("ignore = ['x']", "'ignore[1]' is 'x': expected a pattern of items"),
        (EXCEPTION.replace("expires", "expiry"), "'exception[1].expiry' is not a known key"),
        (EXCEPTION.replace("expires = 2026-06-01", ""), "'exception[1]' has no 'expires'"),
        (EXCEPTION.replace("2026-06-01", "'soon'"), "'exception[1].expires' is 'soon': expected a date"),
        (EXCEPTION.replace("2026-06-01", "2026-06-01T00:00:00Z"), "expected a date without quotes"),
        (EXCEPTION.replace('owner = "zoe"', ""), "'exception[1]' has no 'owner'"),
        (EXCEPTION.replace('"comes with at"', '" "'), "'exception[1].reason' is ' '"),
        ("exception = 1", "'exception' is 1: expected tables"),
        ("<<<<", "is not TOML"),
    ],
)
def test_a_policy_that_is_not_understood_is_refused_with_the_key(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        policy(text)
    assert said in caught.value.message
    assert "trap.toml" in caught.value.message


def test_an_exception_of_what_is_no_error_needs_no_end() -> None:
    harmless = EXCEPTION.replace("expires = 2026-06-01", 'rule = "unit"').replace("dpkg:exim4*", "unit:*")
    assert policy(harmless).exceptions[0].expires is None
    with pytest.raises(ConfigError, match="expires"):
        policy("[severity]\nunit = 'error'\n" + harmless)


def test_a_missing_policy_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Policy.read(tmp_path / "trap.toml")


# -- against an earlier run --------------------------------------------------------------------------------------------


def earlier(verdict: Verdict, folder: Path, *, inputs: str = "i", archive: dict[str, str] | None = None) -> History:
    shown = document(verdict, inputs=inputs, today="2026-05-01")
    path = folder / "earlier.json"
    path.write_text(json.dumps({**shown, "archive": archive or {}}))
    return History.read(path)


def test_findings_are_new_today_outstanding_since_or_fixed(tmp_path: Path) -> None:
    then = compare(BEFORE, Inventory(BEFORE.packages | {package("at"), package("gone-since")}), Baseline())
    history = earlier(then, tmp_path)
    now = compare(BEFORE, AFTER, Baseline())
    labelled, fixed = history.labelled(now.findings, inputs="i", archive={}, today="2026-06-01")
    told = {one.item: (one.label, one.since) for one in labelled if one.counts}
    assert told["dpkg:at"] == (Label.OUTSTANDING, "2026-05-01")
    assert told["dpkg:exim4"] == (Label.NEW, "2026-06-01")
    assert [seen.item for seen in fixed] == ["dpkg:gone-since"]
    assert "  dpkg:gone-since (new)" in lines(now, fixed=fixed)


@pytest.mark.parametrize(
    ("inputs", "archive", "cause"),
    [
        ("other", {}, "us"),
        ("i", {"x_InRelease": "today"}, "archive"),
        ("other", {"x_InRelease": "today"}, "us or the archive"),
        ("i", {}, ""),
    ],
)
def test_what_is_new_came_by_us_or_by_the_archive(
    inputs: str, archive: dict[str, str], cause: str, tmp_path: Path
) -> None:
    history = earlier(compare(BEFORE, BEFORE, Baseline()), tmp_path)
    now = compare(BEFORE, AFTER, Baseline())
    labelled, _ = history.labelled(now.findings, inputs=inputs, archive=archive, today="2026-06-01")
    assert {one.cause for one in labelled if one.counts} == {cause}


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"findings": 1, "archive": {}, "inputs": ""}', '{"findings": [1]}', "[" * 100_000]
)
def test_an_earlier_run_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ConfigError, match=r"x\.json"):
        History.read(tmp_path / "x.json")
