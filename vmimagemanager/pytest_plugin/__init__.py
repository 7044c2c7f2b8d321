"""The fixture ``box``: a leased test machine, put back to its snapshot for each test.

It is loaded by every pytest run of an environment that has this package, so that it imports nothing foreign until a
test uses the fixture.  ``vmimagemanager-pytest(7)`` describes options, ini keys and the markers.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from vmimagemanager import names
from vmimagemanager.errors import UsageError, VmimError
from vmimagemanager.pytest_plugin import trapped
from vmimagemanager.pytest_plugin.failure import failed
from vmimagemanager.pytest_plugin.trapped import (
    box_in_use,
    pytest_collection_modifyitems,
    pytest_runtest_call,
    pytest_runtest_setup,
    pytest_runtest_teardown,
)
from vmimagemanager.units import parse_duration

if TYPE_CHECKING:
    from vmimagemanager.box import Box
    from vmimagemanager.manager import Manager

__all__ = [
    "box",
    "pytest_addoption",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "pytest_runtest_call",
    "pytest_runtest_makereport",
    "pytest_runtest_setup",
    "pytest_runtest_teardown",
]

SNAPSHOT = "clean"
MARKER = "vmim(box=NAME, snapshot=NAME): the test machine and the snapshot that the fixture 'box' hands to this test"
_CONSOLE_LINES = 30
_CONSOLE_BYTES = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a test asks for; ``wait`` is None when the configuration decides how long to wait for the lease."""

    box: str
    snapshot: str
    wait: timedelta | None


_wanted_wait = pytest.StashKey[timedelta | None]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options, each with the prefix of this plugin, and the ini keys that they default to."""
    group = parser.getgroup("vmimagemanager", "test machines (vmimagemanager)")
    group.addoption("--vmim-box", metavar="NAME", help="the box of the fixture 'box' (default: ini key vmim_box)")
    group.addoption(
        "--vmim-snapshot",
        metavar="NAME",
        help=f"the snapshot that it is restored to for each test (default: ini key vmim_snapshot, else '{SNAPSHOT}')",
    )
    group.addoption(
        "--vmim-wait",
        metavar="DURATION",
        help="how long to wait while somebody else has the box, such as 90s or 5m (default: the key lease-wait of "
        "vmimagemanager's own configuration)",
    )
    parser.addini("vmim_box", "the box of the fixture 'box'", default="")
    parser.addini("vmim_snapshot", "the snapshot that it is restored to for each test", default=SNAPSHOT)


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers, and refuse an option that nobody can act upon before any test runs."""
    config.addinivalue_line("markers", MARKER)
    config.addinivalue_line("markers", trapped.MARKER)
    wait = config.getoption("--vmim-wait")
    try:
        config.stash[_wanted_wait] = None if wait is None else parse_duration(wait)
    except ValueError as error:
        raise pytest.UsageError(f"--vmim-wait: {error}.") from error
    for setting, check in (("box", names.box_name), ("snapshot", names.snapshot_name)):
        given = _setting(config, setting)
        try:
            if given:
                check(given)
        except UsageError as error:
            raise pytest.UsageError(f"--vmim-{setting} or vmim_{setting}: {error.message}") from error


@pytest.fixture(scope="session")
def _vmim_manager() -> Iterator[Manager]:
    from vmimagemanager.manager import Manager

    try:
        manager = Manager.open()
    except VmimError as error:
        raise failed(error) from None
    with manager:
        yield manager


@pytest.fixture
def box(request: pytest.FixtureRequest, _vmim_manager: Manager) -> Iterator[Box]:
    """A `vmimagemanager.Box` that runs, restored to its snapshot for this test and leased until the test's end."""
    wanted = _wanted(request)
    try:
        leased = _vmim_manager.lease(wanted.box, wait=wanted.wait)
    except VmimError as error:
        raise failed(error) from None
    with leased:
        try:
            leased.restore(wanted.snapshot)
        except VmimError as error:
            raise failed(error) from None
        request.node.stash[box_in_use] = leased
        try:
            yield leased
        finally:
            del request.node.stash[box_in_use]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the trap has found and the last lines of the guest's console below a failure of a test."""
    report = yield
    trapped.tell(item, report)
    leased = item.stash.get(box_in_use, None)
    if leased is not None and report.failed:
        from vmimagemanager.guest.console import last_lines

        with suppress(VmimError, OSError):  # a test's failure is never hidden behind one of ours
            lines = last_lines(leased.console_log()[-_CONSOLE_BYTES:], _CONSOLE_LINES)
            if lines:
                report.sections.append((f"Console of the guest '{leased.name}', last lines", lines))
    return report


def _wanted(request: pytest.FixtureRequest) -> Wanted:
    marker = request.node.get_closest_marker("vmim")
    given = dict(marker.kwargs) if marker is not None else {}
    if (marker is not None and marker.args) or not given.keys() <= {"box", "snapshot"}:
        pytest.fail("The marker 'vmim' takes the keywords 'box' and 'snapshot' only.", pytrace=False)
    name = given.get("box") or _setting(request.config, "box")
    if not name:
        pytest.fail(
            "The fixture 'box' does not know which box to use.  Name one with --vmim-box NAME, with the ini key "
            "vmim_box, or with @pytest.mark.vmim(box=NAME); 'vmimagemanager list' shows them.",
            pytrace=False,
        )
    snapshot = given.get("snapshot") or _setting(request.config, "snapshot")
    return Wanted(box=str(name), snapshot=str(snapshot), wait=request.config.stash[_wanted_wait])


def _setting(config: pytest.Config, name: str) -> str:
    return str(config.getoption(f"--vmim-{name}") or config.getini(f"vmim_{name}"))
