"""Names of boxes, snapshots and images, and the addresses made of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmimagemanager.errors import UsageError
from vmimagemanager.names import Address, box_name, image_name, is_name, printable, quoted, snapshot_name

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True).filter(lambda name: ".." not in name)
CHECKS: list[Callable[[str], str]] = [box_name, snapshot_name, image_name]
BAD = [
    "",
    ".",
    "..",
    "a..b",
    "/",
    "a/b",
    "../a",
    "-a",
    "_a",
    ".a",
    "a b",
    "a\n",
    "a\0",
    "a'b",
    'a"b',
    "é",
    "a" * 64,
    "a@b",
]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", ["web", "a", "0", "debian-12", "web.example", "A_b-c.d", "a" * 63])
def test_a_good_name_is_returned_as_it_is(check: Callable[[str], str], name: str) -> None:
    assert check(name) == name


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", BAD)
def test_a_bad_name_is_refused(check: Callable[[str], str], name: str) -> None:
    with pytest.raises(UsageError, match="expected a letter or digit") as caught:
        check(name)
    assert caught.value.hint


@given(st.text(st.characters(exclude_categories=[])))
def test_whatever_is_quoted_can_be_printed_on_one_line(text: str) -> None:
    assert quoted(text).isprintable()
    assert len(quoted(text)) < 1000
    quoted(text).encode()


@given(st.text())
def test_what_passes_as_a_name_is_safe_in_a_path(text: str) -> None:
    if is_name(text):
        assert text.isascii()
        assert not set(text) & set("/\\ \n\0'\"@$`")
        assert text not in (".", "..")
        assert not text.startswith(("-", "."))


@given(st.text(st.characters(exclude_characters="\0"), min_size=1))
def test_a_path_is_printed_whole_on_one_line(text: str) -> None:
    assert printable(Path(text)).isprintable()
    assert len(printable(Path(text))) >= len(str(Path(text)))


def test_the_error_escapes_control_characters_of_the_name() -> None:
    with pytest.raises(UsageError) as caught:
        box_name("a\x1b[2J\nb")
    assert str(caught.value).startswith("'a\\x1b[2J\\nb' is not a box name: ")


def test_the_error_cuts_a_long_name() -> None:
    with pytest.raises(UsageError) as caught:
        image_name("a" * 10_000)
    assert len(str(caught.value)) < 300
    assert " is not an image name: " in str(caught.value)


@given(NAMES, NAMES)
def test_an_address_survives_writing_and_reading(box: str, snapshot: str) -> None:
    address = Address(box, snapshot)
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize("text", ["", "@", "web", "web@", "@clean", "a@b@c", "web@../x", "we b@x", "web@\n"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"expected"):
        Address.parse(text)
