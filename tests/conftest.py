"""What every test gets: a surrounding of its own, and markers that act."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

_HERE = Path(__file__).parent

# A shell starts its background jobs with SIGINT ignored, and every program that a test starts would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regenerate", action="store_true", help="write the golden files anew, and look at git diff")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(_HERE / "vm"):
            item.add_marker(pytest.mark.vm)
        if item.get_closest_marker("root") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture(autouse=True)
def _own_surroundings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the caller's settings out of a test, and the test's state out of the caller's home."""
    if request.node.get_closest_marker("vm"):
        return
    for name in list(os.environ):
        if name.startswith("VMIM_"):
            monkeypatch.delenv(name)
    for name in ("CONFIG", "DATA", "CACHE", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / "xdg" / name.lower()))
