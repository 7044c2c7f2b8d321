"""Versioned TOML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmimagemanager import records
from vmimagemanager.errors import StateError

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
VALUES = st.recursive(
    st.one_of(TEXT, st.integers(-(1 << 63), (1 << 63) - 1), st.booleans(), st.floats(allow_nan=False)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=8,
)
RECORDS = st.dictionaries(TEXT.filter(lambda key: key != "format"), VALUES, max_size=5)


@given(RECORDS)
def test_any_record_is_read_as_it_was_written(record: dict[str, Any]) -> None:
    assert records.parse(records.dump(record), source="here") == record


def test_a_record_survives_its_file_without_its_format(tmp_path: Path) -> None:
    records.write(tmp_path / "box.toml", {"name": "web", "cpu": {"count": 2}}, version=3)

    assert records.read(tmp_path / "box.toml", version=3) == {"name": "web", "cpu": {"count": 2}}
    assert (tmp_path / "box.toml").read_text().startswith("format = 3\n")


def test_keys_without_a_value_are_left_out_at_every_depth() -> None:
    record = {"a": None, "b": {"c": None, "d": 1}, "e": [{"f": None, "g": 2}], "h": ({"i": None},)}

    assert records.parse(records.dump(record), source="") == {"b": {"d": 1}, "e": [{"g": 2}], "h": [{}]}


def test_an_older_format_is_read_and_a_newer_one_refused(tmp_path: Path) -> None:
    records.write(tmp_path / "r.toml", {"a": 1}, version=2)

    assert records.read(tmp_path / "r.toml", version=5) == {"a": 1}
    with pytest.raises(StateError, match="has format 2, and this program knows formats up to 1") as caught:
        records.read(tmp_path / "r.toml", version=1)
    assert "newer version" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "does not say its format"),
        (b"name = 'web'", "does not say its format"),
        (b"format = '1'", "does not say its format"),
        (b"format = true", "does not say its format"),
        (b"format = 0", "does not say its format"),
        (b"format = 1.0", "does not say its format"),
        (b"format = 1\nname = [", "is not TOML"),
        (b"format = 1\nformat = 1", "is not TOML"),
        (b"\xff\xfe", "not UTF-8"),
        (b"\0" * 100, "is not TOML"),
    ],
)
def test_a_damaged_record_is_refused_by_path(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "r.toml").write_bytes(content)

    with pytest.raises(StateError, match=complaint) as caught:
        records.read(tmp_path / "r.toml", version=1)

    assert str(tmp_path / "r.toml") in caught.value.message


def test_a_missing_record_is_refused_by_path(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="No such file"):
        records.read(tmp_path / "r.toml", version=1)


def test_a_record_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    records.write(tmp_path / "r.toml", {"a": 1}, version=1)

    with pytest.raises(TypeError):
        records.write(tmp_path / "r.toml", {"a": object()}, version=1)

    assert records.read(tmp_path / "r.toml", version=1) == {"a": 1}


def test_a_secret_record_is_for_its_owner_only(tmp_path: Path) -> None:
    records.write(tmp_path / "r.toml", {}, version=1, mode=0o600)

    assert (tmp_path / "r.toml").stat().st_mode & 0o777 == 0o600
