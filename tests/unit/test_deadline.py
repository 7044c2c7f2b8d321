"""Waiting for named conditions."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta

import pytest

from vmimagemanager import deadline
from vmimagemanager.deadline import Deadline, Stopwatch
from vmimagemanager.errors import ConfigError, DeadlineError

SHORT = timedelta(milliseconds=80)


@pytest.fixture(autouse=True)
def unscaled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("VMIM_TIMEOUT_FACTOR", raising=False)
    deadline.set_emulation_factor(False)
    yield
    deadline.set_emulation_factor(False)


def test_waiting_returns_what_the_probe_found() -> None:
    answers = iter([None, False, "ready"])

    assert Deadline(timedelta(seconds=10)).wait_for("an answer", lambda: next(answers), every=0.001) == "ready"


@pytest.mark.parametrize("found", [0, "", []])
def test_a_found_value_that_is_empty_ends_the_waiting(found: object) -> None:
    assert Deadline(SHORT).wait_for("anything", lambda: found) is found


def test_waiting_ends_at_the_limit_and_names_what_it_waited_for() -> None:
    start = time.monotonic()

    with pytest.raises(DeadlineError, match="for the guest to answer, which did not happen") as caught:
        Deadline(SHORT).wait_for("the guest to answer", lambda: None, hint="vmimagemanager console web")

    assert time.monotonic() - start >= SHORT.total_seconds()
    assert caught.value.waited_for == "the guest to answer"
    assert caught.value.seconds >= SHORT.total_seconds()
    assert caught.value.hint == "vmimagemanager console web"


def test_a_limit_that_is_over_still_gives_one_chance() -> None:
    assert Deadline(timedelta()).wait_for("it", lambda: 1) == 1


def test_what_comes_about_during_the_last_sleep_is_seen() -> None:
    waiting = Deadline(SHORT)

    assert waiting.wait_for("the end", lambda: waiting.expired, every=60) is True


def test_the_detail_is_asked_for_only_when_the_time_is_up() -> None:
    asked: list[str] = []

    def detail() -> str:
        asked.append("asked")
        return "the last console lines"

    Deadline(SHORT).wait_for("it", lambda: True, detail=detail)
    assert asked == []
    with pytest.raises(DeadlineError) as caught:
        Deadline(timedelta()).wait_for("it", lambda: None, detail=detail)
    assert caught.value.detail == "the last console lines"
    assert asked == ["asked"]


def test_an_error_of_the_probe_is_not_swallowed() -> None:
    def probe() -> None:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        Deadline(SHORT).wait_for("it", probe)


def test_what_remains_shrinks_and_never_becomes_negative() -> None:
    waiting = Deadline(SHORT)
    assert 0 < waiting.remaining <= SHORT.total_seconds()
    assert not waiting.expired
    deadline.pause(0.1)
    assert waiting.remaining == 0.0
    assert waiting.expired


def test_limits_scale_with_the_variable_and_it_wins_over_emulation(monkeypatch: pytest.MonkeyPatch) -> None:
    deadline.set_emulation_factor(True)
    assert Deadline(SHORT).limit == SHORT * deadline.EMULATION_FACTOR
    monkeypatch.setenv("VMIM_TIMEOUT_FACTOR", "2.5")
    assert Deadline(SHORT).limit == SHORT * 2.5
    assert Deadline(SHORT, scaled=False).limit == SHORT


@pytest.mark.parametrize("text", ["", "fast", "0", "-1", "1000", "inf", "nan"])
def test_a_factor_that_makes_no_sense_is_refused_by_name(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMIM_TIMEOUT_FACTOR", text)

    with pytest.raises(ConfigError, match="VMIM_TIMEOUT_FACTOR"):
        Deadline(SHORT)


def test_a_stopwatch_adds_up_the_laps_of_one_phase() -> None:
    watch = Stopwatch()
    laps = [watch.lap("boot"), watch.lap("proof"), watch.lap("boot")]

    assert list(watch.phases) == ["boot", "proof"]
    assert watch.phases["boot"] == laps[0] + laps[2]
    assert watch.total >= sum(laps)
