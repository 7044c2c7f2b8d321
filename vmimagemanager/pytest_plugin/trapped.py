"""The marker ``vmim_trap``: the body of a test runs inside the dependency trap, its fixtures do not.

A trap that is sprung fails the test.  Where the body fails, too, that is the failure, and the findings are told below
it.  A trap that cannot be set is an error of the test's setup, one that cannot look into the guest again an error of
its teardown.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vmimagemanager.errors import VmimError
from vmimagemanager.pytest_plugin.failure import failed

if TYPE_CHECKING:
    from vmimagemanager.box import Box
    from vmimagemanager.trap.block import Trap

NAME = "vmim_trap"
MARKER = (
    f"{NAME}(baseline=FILE, policy=FILE, declared=[FILE...], since=SNAPSHOT, trace=HOW, expect_clean=True): trap what "
    "the body of this test brings into the guest of its fixture 'box' and the baseline does not accept"
)
_KEYWORDS = ("baseline", "policy", "declared", "since", "trace", "expect_clean")

box_in_use: pytest.StashKey[Box] = pytest.StashKey()


@dataclass(frozen=True, slots=True)
class _Set:
    """A trap that was set, with what springs it."""

    trap: Trap
    block: AbstractContextManager[Trap]


_set_trap = pytest.StashKey[_Set]()
_blind = pytest.StashKey[VmimError]()
_below = pytest.StashKey[str]()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a marker that nobody can act upon before any test runs."""
    for item in items:
        marker = item.get_closest_marker(NAME)
        if marker is not None:
            _arguments(item, marker)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None]:
    """Set the trap when all fixtures are set up."""
    yield
    marker = item.get_closest_marker(NAME)
    if marker is None:
        return
    if box_in_use not in item.stash:
        pytest.fail(
            f"The trap of '{NAME}' needs the box of this plugin's fixture 'box', not another one.", pytrace=False
        )
    try:
        block = item.stash[box_in_use].trap(**_arguments(item, marker))
        item.stash[_set_trap] = _Set(block.__enter__(), block)
    except VmimError as error:
        raise failed(error) from None


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Look into the trap when the body has ended; one that was skipped did nothing to be judged."""
    if _set_trap not in item.stash:
        return (yield)
    try:
        result = yield
    except (Exception, pytest.fail.Exception):
        found = _found(item)
        if found:
            item.stash[_below] = found
        raise
    found = _found(item)
    if found:
        raise pytest.fail.Exception(found, pytrace=False)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None]:
    """Tell, after everything has been torn down, that the guest could not be asked once more."""
    try:
        yield
    except BaseException:
        if _blind in item.stash:
            item.stash[_below] = item.stash[_blind].message
        raise
    if _blind in item.stash:
        raise failed(item.stash[_blind])


def tell(item: pytest.Item, report: pytest.TestReport) -> None:
    """Tell below another failure what the trap has found."""
    if report.failed and _below in item.stash:
        report.sections.append(("Dependency trap", item.stash[_below]))
        del item.stash[_below]


def _found(item: pytest.Item) -> str:
    """Return what has sprung the trap, in whole sentences, or an empty text."""
    from vmimagemanager.report.trap import lines

    held = item.stash[_set_trap]
    try:
        held.block.__exit__(None, None, None)
    except VmimError as error:
        item.stash[_blind] = error
        return ""
    trapped = held.trap.verdict.trapped
    item.user_properties.append((NAME, "sprung" if trapped else "silent"))
    return "\n".join(lines(held.trap.verdict)) if trapped else ""


def _arguments(item: pytest.Item, marker: pytest.Mark) -> dict[str, Any]:
    """Return what `Box.trap` takes; raise UsageError that names the test.  Files are looked for in pytest's rootdir."""
    given: Mapping[str, Any] = marker.kwargs
    declared = given.get("declared", ())
    clean = given.get("expect_clean", False)
    single = (value for key, value in given.items() if key not in ("declared", "expect_clean"))
    reason = ""
    if marker.args or not given.keys() <= set(_KEYWORDS):
        reason = f"it takes the keywords {', '.join(_KEYWORDS[:-1])} and {_KEYWORDS[-1]} only"
    elif not isinstance(clean, bool):
        reason = "expect_clean is True or False"
    elif ("baseline" in given) is clean:
        reason = "it needs a baseline, the file that says what is accepted, or expect_clean=True"
    elif not all(isinstance(value, str | Path) for value in single):
        reason = "baseline and policy are paths of files, since is the name of a snapshot, and trace that of a way"
    elif not isinstance(declared, list | tuple) or not all(isinstance(path, str | Path) for path in declared):
        reason = "declared is a list of paths"
    elif "box" not in getattr(item, "fixturenames", ()):
        reason = "the test does not use the fixture 'box', in which the trap is set"
    if reason:
        raise pytest.UsageError(f"{item.nodeid}: the marker '{NAME}' cannot be understood: {reason}.")
    root = item.config.rootpath
    return {
        "baseline": root / given["baseline"] if "baseline" in given else None,
        "policy": root / given["policy"] if "policy" in given else None,
        "declared": [root / path for path in declared],
        "since": given.get("since"),
        "trace": given.get("trace"),
        "expect_clean": clean,
    }
