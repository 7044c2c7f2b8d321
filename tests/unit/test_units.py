"""Sizes and durations as people write them."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmimagemanager.units import Size, format_duration, parse_duration

SIZES = st.integers(min_value=0, max_value=1 << 60).map(Size)
DURATIONS = st.integers(min_value=0, max_value=100 * 365 * 86_400_000).map(
    lambda number: timedelta(milliseconds=number)
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("1024", 1024),
        ("1B", 1),
        ("1k", 1 << 10),
        ("512M", 512 << 20),
        ("2G", 2 << 30),
        ("2GiB", 2 << 30),
        ("2gb", 2 << 30),
        (" 3 T ", 3 << 40),
    ],
)
def test_a_size_is_read_with_units_that_are_powers_of_1024(text: str, expected: int) -> None:
    assert Size.parse(text) == Size(expected)


@pytest.mark.parametrize("text", ["", "M", "-1M", "1.5G", "1 2", "1X", "1MM", "0x10", "1e3", "512M\n1", "many"])
def test_what_is_not_a_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="such as 512M or 2G"):
        Size.parse(text)


@given(SIZES)
def test_a_size_that_is_printed_is_read_as_the_same_size(size: Size) -> None:
    assert Size.parse(str(size)) == size


@given(SIZES)
def test_mebibytes_are_rounded_up_and_never_by_a_whole_one(size: Size) -> None:
    assert 0 <= (size.mebibytes << 20) - size.bytes < 1 << 20


@pytest.mark.parametrize(
    ("number", "expected"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 30, "1.0 GiB"), (5 << 50, "5120.0 TiB")],
)
def test_a_size_for_people_is_rounded(number: int, expected: str) -> None:
    assert Size(number).human() == expected


@given(SIZES, SIZES)
def test_sizes_are_ordered_as_their_bytes(one: Size, other: Size) -> None:
    assert (one < other) == (one.bytes < other.bytes)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("5m", 300),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("2d", 172_800),
        ("500ms", 0.5),
        ("0.5S", 0.5),
        ("0s", 0),
    ],
)
def test_a_duration_is_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "5", "m", "-5s", "5x", "1h,30m", "5 minutes", "1e3s", ".5s", "5m!"])
def test_what_is_not_a_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="such as 90s"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["9999999999999d", "9" * 400 + "s", "999999999d 999999999d"])
def test_a_duration_beyond_all_clocks_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="too long a duration"):
        parse_duration(text)


@given(DURATIONS)
def test_a_duration_that_is_printed_is_read_as_the_same_duration(duration: timedelta) -> None:
    assert parse_duration(format_duration(duration)) == duration


@given(st.text())
def test_any_text_is_a_size_and_a_duration_or_a_value_error(text: str) -> None:
    for read in (Size.parse, parse_duration):
        try:
            read(text)
        except ValueError as error:
            assert str(error)  # noqa: PT017 - another kind of error fails the test


def test_a_duration_of_nothing_has_a_unit() -> None:
    assert format_duration(timedelta()) == "0s"
    assert format_duration(timedelta(milliseconds=500)) == "500ms"
    assert format_duration(timedelta(hours=1, minutes=30)) == "1h30m"
