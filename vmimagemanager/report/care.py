"""What fsck and gc found, as lines for people and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vmimagemanager.units import Size

if TYPE_CHECKING:
    from vmimagemanager.boxes.caretaker import Leftover
    from vmimagemanager.boxes.fsck import Examination


def fsck_lines(examination: Examination) -> list[str]:
    lines = [f"put right: {leftover.what}" for leftover in examination.put_right]
    lines += [f"not examined, in use: {name}" for name in examination.in_use]
    for finding in examination.findings:
        lines += [f"{finding.where}: {finding.what}", f"  try: {finding.hint}"]
    return [*lines, f"{_count(len(examination.findings), 'finding')}"]


def fsck_document(examination: Examination) -> dict[str, Any]:
    return {
        "findings": [{"where": one.where, "what": one.what, "hint": one.hint} for one in examination.findings],
        "put_right": [_document(leftover) for leftover in examination.put_right],
        "in_use": list(examination.in_use),
    }


def gc_lines(leftovers: Sequence[Leftover], *, removed: bool) -> list[str]:
    if not leftovers:
        return ["There is nothing to remove."]
    total = Size(sum(leftover.size.bytes for leftover in leftovers)).human()
    end = f"{total} are free again" if removed else f"{total} would be free again: vmimagemanager gc --remove"
    return [*(f"{leftover.what} ({leftover.size.human()})" for leftover in leftovers), end]


def gc_document(leftovers: Sequence[Leftover], *, removed: bool) -> dict[str, Any]:
    return {"removed": removed, "leftovers": [_document(leftover) for leftover in leftovers]}


def _document(leftover: Leftover) -> dict[str, Any]:
    return {"what": leftover.what, "bytes": leftover.size.bytes}


def _count(number: int, noun: str) -> str:
    return {0: f"No {noun}s.", 1: f"1 {noun}."}.get(number, f"{number} {noun}s.")
