"""A verdict of the trap, as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from vmimagemanager.guest.inventory import Package
from vmimagemanager.trap import Change, Verdict

FORMAT = 1
_REASONS = {True: ", installed automatically", False: ", installed on request", None: ""}


def lines(verdict: Verdict, *, accept: str = "") -> list[str]:
    """Return a verdict in whole sentences; ``accept`` is the command that accepts what is unexpected."""
    shown = []
    if verdict.trapped:
        verb = "is new and not" if len(verdict.unexpected) == 1 else "are new and not"
        shown += [f"Trapped: {_count(verdict.unexpected)} {verb} in the baseline."]
        shown += _listed(verdict.unexpected)
        if accept:
            shown.append(f"To accept {'it' if len(verdict.unexpected) == 1 else 'them'}: {accept}")
    else:
        shown.append("Nothing was trapped: no package is new that the baseline does not accept.")
    if verdict.accepted:
        shown += [f"Accepted by the baseline: {_count(verdict.accepted)}.", *_listed(verdict.accepted)]
    if verdict.gone:
        shown += [f"No longer installed: {_count(verdict.gone)}.", *_listed(verdict.gone, reasons=False)]
    if verdict.changed:
        shown += [f"In another version: {_count(verdict.changed)}.", *map(_change, verdict.changed)]
    if verdict.stale:
        shown += ["In the baseline, but not new this time:", *(f"  {item}" for item in verdict.stale)]
    return shown


def document(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict for JSON; ``item`` is how a baseline names a package, and stays the same in every version."""
    return {
        "format": FORMAT,
        "kind": "trap",
        "trapped": verdict.trapped,
        "unexpected": [_package(package) for package in verdict.unexpected],
        "accepted": [_package(package) for package in verdict.accepted],
        "gone": [_package(package) for package in verdict.gone],
        "changed": [
            {
                "item": change.package.item,
                "manager": change.package.manager,
                "name": change.package.name,
                "architecture": change.package.architecture,
                "before": list(change.before),
                "after": list(change.after),
            }
            for change in verdict.changed
        ],
        "stale": list(verdict.stale),
    }


def _package(package: Package) -> dict[str, Any]:
    return {
        "item": package.item,
        "manager": package.manager,
        "name": package.name,
        "architecture": package.architecture,
        "version": package.version,
        "automatic": package.automatic,
    }


def _count(entries: Sequence[object]) -> str:
    return "1 package" if len(entries) == 1 else f"{len(entries)} packages"


def _listed(packages: Iterable[Package], *, reasons: bool = True) -> list[str]:
    return [
        f"  {package.name} {package.version} {package.architecture} ({package.manager})"
        + (_REASONS[package.automatic] if reasons else "")
        for package in packages
    ]


def _change(change: Change) -> str:
    package = change.package
    versions = f"{' and '.join(change.before)} → {' and '.join(change.after)}"
    return f"  {package.name} {versions} {package.architecture} ({package.manager})"
