"""The names that people give: boxes, snapshots, images, and the address ``web@clean``.

A name becomes part of paths, of domain names and of command lines, so that its rule is narrow and checked at the door.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vmimagemanager.errors import UsageError

RULE = "a letter or digit, then at most 62 letters, digits, '.', '_' or '-', without '..'"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_QUOTED_AT_MOST = 80


def quoted(text: str) -> str:
    """Return any text in quotes, safe to print on a terminal: control characters escaped, and cut when it is long."""
    return repr(text if len(text) <= _QUOTED_AT_MOST else text[:_QUOTED_AT_MOST] + "…")


def printable(path: Path) -> str:
    """Return a path, whole, with characters that a terminal or a line-based file would stumble over escaped."""
    return str(path) if str(path).isprintable() else repr(str(path))[1:-1]


def is_name(text: str) -> bool:
    """Say whether ``text`` follows the rule that all names share."""
    return _NAME.fullmatch(text) is not None and ".." not in text


def box_name(text: str) -> str:
    """Return ``text`` when it may name a box; raise UsageError that quotes it and says what is expected."""
    return _checked(text, "box", "vmimagemanager list")


def host_name(box: str) -> str:
    """Return what the guest of a box is called."""
    return box.lower().replace("_", "-")


def snapshot_name(text: str) -> str:
    """Return ``text`` when it may name a snapshot; raise UsageError that quotes it and says what is expected."""
    return _checked(text, "snapshot", "vmimagemanager snapshots BOX")


def image_name(text: str) -> str:
    """Return ``text`` when it may name an image; raise UsageError that quotes it and says what is expected."""
    return _checked(text, "image", "vmimagemanager image list")


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """Where a snapshot is: ``web@clean`` is the snapshot 'clean' of the box 'web'."""

    box: str
    snapshot: str

    def __post_init__(self) -> None:
        box_name(self.box)
        snapshot_name(self.snapshot)

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read an address as it is written on the command line; raise UsageError that says what is wrong with it."""
        box, at, snapshot = text.partition("@")
        if not (box and at and snapshot):
            raise UsageError(
                f"{quoted(text)} is not the address of a snapshot: expected BOX@SNAPSHOT, such as 'web@clean'.",
                hint="'vmimagemanager snapshots BOX' lists the snapshots of a box.",
            )
        return cls(box, snapshot)

    def __str__(self) -> str:
        return f"{self.box}@{self.snapshot}"


def _checked(text: str, kind: str, listing: str) -> str:
    if not is_name(text):
        article = "an" if kind == "image" else "a"
        raise UsageError(
            f"{quoted(text)} is not {article} {kind} name: expected {RULE}.",
            hint=f"'{listing}' shows the existing ones.",
        )
    return text
