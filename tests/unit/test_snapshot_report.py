"""The tree of snapshots, as it is shown."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from vmimagemanager.config import Engine
from vmimagemanager.report import snapshots as report
from vmimagemanager.snapshots import Manifest, Snapshot
from vmimagemanager.snapshots.platform import Platform
from vmimagemanager.units import Size


def snapshot(name: str, parent: str = "", *, age: timedelta = timedelta(0)) -> Snapshot:
    manifest = Manifest(
        name=name,
        engine=Engine.LIVE,
        created=datetime.now(UTC) - age,
        owner="alice",
        description="",
        running=True,
        layer="0" * 16,
        token="secret",
        boot_id="",
        ram=Size(512 << 20),
        why_not=(),
        platform=Platform(machine="pc-q35-7.2", libvirt="9.0.0", qemu="7.2.0"),
        seals={},
    )
    return Snapshot(manifest=manifest, parent=parent, own=Size(3 << 20), shared=Size(400 << 20))


def drawn(*tree: Snapshot) -> list[str]:
    return [row[0] for row in report.rows("web", tree)]


def test_a_tree_is_drawn_with_its_branches() -> None:
    assert drawn(
        snapshot("a"),
        snapshot("b", "a"),
        snapshot("c", "b"),
        snapshot("d", "c"),
        snapshot("e", "b"),
        snapshot("f", "a"),
        snapshot("g", "f"),
        snapshot("h"),
        snapshot("i", "h"),
    ) == [
        "web@a",
        "├─ web@b",
        "│  ├─ web@c",
        "│  │  └─ web@d",
        "│  └─ web@e",
        "└─ web@f",
        "   └─ web@g",
        "web@h",
        "└─ web@i",
    ]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "now"), (59, "now"), (60, "1 minute"), (7199, "1 hour"), (7200, "2 hours"), (86400 * 3, "3 days")],
)
def test_an_age_is_told_in_the_largest_unit_that_it_fills(seconds: int, shown: str) -> None:
    assert report.age(timedelta(seconds=seconds)) == shown


def test_a_row_tells_sizes_and_age_and_a_document_keeps_the_token_to_itself() -> None:
    one = snapshot("clean", age=timedelta(hours=3))
    (row,) = report.rows("web", [one])
    assert dict(zip(report.HEADER, row, strict=True)) == {
        "SNAPSHOT": "web@clean",
        "ENGINE": "live",
        "STATE": "running",
        "RAM": "512M",
        "OWN": "3.0 MiB",
        "SHARED": "400.0 MiB",
        "AGE": "3 hours",
        "BY": "alice",
        "DESCRIPTION": "",
    }
    document = report.document("web", one)
    assert (document["own"], document["shared"], document["parent"]) == (3 << 20, 400 << 20, None)
    assert "secret" not in str(document)
