"""The contract of tests/contract/test_session.py, over a real guest's SSH server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

import pytest

from tests.contract.test_session import Contract
from tests.vm.conftest import CLEAN
from vmimagemanager import Box, Manager
from vmimagemanager.boxes import reach
from vmimagemanager.guest.session import Session


def connect(manager: Manager, box: Box) -> Session:
    record, folder = manager.site.record(box.name), manager.site.state.box(box.name)
    return reach.open_session(reach.running_domain(manager.site, record), record, folder)


@pytest.fixture(scope="module")
def shared(manager: Manager, booted: Box) -> Iterator[Session]:
    """One connection for all tests that leave it alive: each costs a second under emulation."""
    booted.restore(CLEAN)
    with connect(manager, booted) as session:
        yield session


class TestGuest(Contract):
    @pytest.fixture
    def session(self, manager: Manager, booted: Box, shared: Session) -> Iterator[Session]:
        if shared.alive:
            yield shared
            return
        with connect(manager, booted) as session:
            yield session

    @pytest.fixture
    def folder(self, session: Session) -> PurePosixPath:
        return PurePosixPath(session.run(["mktemp", "--directory"]).check().text.strip())
