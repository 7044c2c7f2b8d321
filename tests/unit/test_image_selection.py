"""Choosing images by their attributes."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmimagemanager.errors import UsageError
from vmimagemanager.images import Image
from vmimagemanager.images.selection import KEYS, Selection
from vmimagemanager.units import Size

IMAGE = Image(
    name="debian-12",
    generation=10,
    created=datetime(2026, 11, 1, 12, tzinfo=UTC),
    description="Debian 12, small",
    disk=Path("/nowhere"),
    disk_size=Size(2 << 30),
    agent=True,
    digests={},
    packages={"bash": "5.2", "gcc-12": "12.2", "libgcc-s1": "12.2"},
    os="debian",
    release="12.10",
    stored_from="web@clean",
)


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "  ",
        "os=debian",
        "os=Debian arch=x86_64 packages~gcc",
        "packages=gcc-12 packages!=gcc-13",
        "release>=12.9 release<13",
        "generation>9 generation<=10",
        "size=2G size>500M",
        "created>2026-10-31 created<2026-11-01T13:00",
        'description~"12, SMALL" description!~large',
        "stored-from='web@clean'",
        "agent=yes pinned=no",
        "os!=ubuntu source!=x",
    ],
)
def test_what_holds(expression: str) -> None:
    assert Selection.parse(expression).holds(IMAGE)


@pytest.mark.parametrize(
    "expression",
    ["os=debia", "os!=debian", "packages~clang", "packages!~gcc", "release>12.10", "size<2G", "os=debian agent=no"],
)
def test_what_does_not_hold(expression: str) -> None:
    assert not Selection.parse(expression).holds(IMAGE)


def test_what_is_not_known_is_neither_more_nor_less() -> None:
    unknown = replace(IMAGE, release="")
    assert not Selection.parse("release<13").holds(unknown)
    assert not Selection.parse("release>1").holds(unknown)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("os", "at character 1, expected KEY"),
        ("os=debian release 12", "at character 11, expected KEY"),
        ("os=debian sise=2G", "at character 11, there is no attribute 'sise', did you mean 'size'"),
        ("os>debian", "at character 3, 'os' has no order"),
        ("size>big", "at character 6, 'big' cannot be compared with 'size'"),
        ('description="open', "at character 1"),
        ("os==debian", None),
    ],
)
def test_what_is_wrong_is_said_with_its_place(expression: str, message: str | None) -> None:
    if message is None:  # the second '=' belongs to the value
        assert not Selection.parse(expression).holds(IMAGE)
        return
    with pytest.raises(UsageError) as caught:
        Selection.parse(expression)
    assert message in caught.value.message


@given(st.text(max_size=40) | st.builds("{}{}{}".format, st.sampled_from(KEYS), st.sampled_from("<>=~!"), st.text()))
def test_any_text_is_an_expression_or_a_usage_error(text: str) -> None:
    with suppress(UsageError):
        Selection.parse(text).holds(IMAGE)
