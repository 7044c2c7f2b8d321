"""Proof by hiding, without guests: the search, what is compared, what is remembered, how files are taken away."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmimagemanager.config import Channel
from vmimagemanager.errors import DeadlineError
from vmimagemanager.guest.result import Result
from vmimagemanager.proof.outcome import Outcome
from vmimagemanager.proof.results import Results
from vmimagemanager.proof.search import needed
from vmimagemanager.proof.trial import attempt


class Shell:
    """This host in place of a clone, for scripts that touch nothing but a test's folder."""

    def __init__(self, *, hangs: bool = False) -> None:
        self.hangs = hangs

    def as_root(self, text: str) -> bytes:
        return subprocess.run(["sh", "-s"], input=text.encode(), check=True, capture_output=True).stdout

    def run(self, argv: Sequence[str], *, limit: timedelta | None = None, check: bool = True) -> Result:
        if self.hangs:
            raise DeadlineError("It does not end.")
        done = subprocess.run(argv, check=check, capture_output=True)
        return Result(
            command="", status=done.returncode, stdout=done.stdout, stderr=done.stderr, seconds=1, channel=Channel.SSH
        )


@given(
    st.integers(0, 40).flatmap(
        lambda count: st.tuples(st.just(count), st.sets(st.integers(0, max(0, count - 1)), max_size=4))
    ),
    st.integers(0, 10),
    st.integers(1, 3),
)
def test_the_search_finds_exactly_what_is_needed(case: tuple[int, set[int]], likely: int, width: int) -> None:
    count, guilty = case
    guilty = {one for one in guilty if one < count}

    def suffices(keeps: Sequence[tuple[int, ...]]) -> list[bool]:
        assert len(keeps) <= max(width, 2)
        return [guilty <= set(keep) for keep in keeps]

    found = needed(range(count), suffices, likely=likely, width=width)
    assert {one.item for one in found} == guilty
    for one in found:
        assert one.item not in one.without
        assert not guilty <= set(one.without)


def test_one_of_two_that_do_the_same_is_found() -> None:
    found = needed("abcdef", lambda keeps: [bool({"b", "e"} & set(keep)) for keep in keeps])
    assert [one.item for one in found] == ["b"]


@pytest.mark.parametrize("guilty", [{7, 290}, {150, 299}, {10, 11}])
def test_two_of_three_hundred_are_found_in_few_trials(guilty: set[int]) -> None:
    trials = 0

    def suffices(keeps: Sequence[tuple[int, ...]]) -> list[bool]:
        nonlocal trials
        trials += len(keeps)
        return [guilty <= set(keep) for keep in keeps]

    assert {one.item for one in needed(range(300), suffices, likely=6)} == guilty
    assert trials <= 23


def test_outcomes_are_told_apart_by_status_and_by_what_two_equal_runs_agree_in() -> None:
    reference = Outcome(status=0, files={"/a": "1", "/log": "x"})
    stable = frozenset({"/a"})
    assert not Outcome(status=0, files={"/a": "1", "/log": "y"}).otherwise(reference, stable)
    assert Outcome(status=2).otherwise(reference, stable) == "the command ends with status 2"
    assert Outcome(status=None).otherwise(reference, stable) == "the command does not end"
    assert Outcome(status=0, files={"/a": "2"}).otherwise(reference, stable) == "'/a' is another one"
    assert Outcome(status=0, files={"/log": "x"}).otherwise(reference, stable) == "'/a' is missing"
    assert Outcome(status=0, files={"/a": "1", "/b": "1"}).otherwise(reference, stable) == "'/b' is there, too"


def test_trials_are_remembered_by_what_was_hidden(tmp_path: Path) -> None:
    asked = (tmp_path / "proofs", "token", ["make"], (PurePosixPath("/out"),))
    results = Results(*asked)
    results.put(["dpkg:b", "dpkg:a"], Outcome(status=0, files={"/out/odd 'name'": "1"}))
    results.put(["dpkg:c"], Outcome(status=None))
    again = Results(*asked)
    assert again.get(["dpkg:a", "dpkg:b"]) == Outcome(status=0, files={"/out/odd 'name'": "1"})
    assert again.get(["dpkg:c"]) == Outcome(status=None)
    assert again.get(["dpkg:a"]) is None
    assert Results(tmp_path / "proofs", "another token", ["make"], (PurePosixPath("/out"),)).get(["dpkg:c"]) is None
    [file] = (tmp_path / "proofs").iterdir()
    file.write_text("nonsense")
    assert Results(*asked).get(["dpkg:c"]) is None


ODD = [b"plain", b"it's $HOME `id`", b"per%cent \\100", b"new\nline", b"-rf", b"\xff\xfe"]


def test_files_of_any_name_are_taken_away_and_no_others(tmp_path: Path) -> None:
    folder = bytes(tmp_path / "guest")
    Path(tmp_path / "guest").mkdir()
    for name in [*ODD, b"stays", b"it"]:
        Path(os.fsdecode(folder + b"/" + name)).touch()
    hidden = [folder + b"/" + name for name in ODD] + [folder, folder + b"/never"]
    outcome, result = attempt(Shell(), ["ls", str(tmp_path / "guest")], hidden=hidden)
    assert result is not None
    assert result.text == "it\nstays\n"
    assert outcome == Outcome(status=0)


def test_artefacts_are_known_by_their_content_and_links_by_where_they_lead(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "one two").write_text("1\n")
    (tmp_path / "out" / "link").symlink_to("one two")
    outcome, _ = attempt(Shell(), ["true"], artefacts=[PurePosixPath(tmp_path / "out"), PurePosixPath("/missing")])
    assert outcome.files == {
        f"{tmp_path}/out/one two": "4355a46b19d348dc2f57c046f8ef63d4538ebb936000f3c9ee954a27460dd865",
        f"{tmp_path}/out/link": "link to one two",
    }


def test_a_run_that_does_not_end_is_an_outcome() -> None:
    assert attempt(Shell(hangs=True), ["true"]) == (Outcome(status=None), None)
