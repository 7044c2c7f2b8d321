"""Which clones are spares, and which were left by a killed process: by their records and leases alone."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from vmimagemanager import config
from vmimagemanager.boxes import spares
from vmimagemanager.boxes.fork import refuse_clones
from vmimagemanager.boxes.record import BoxRecord
from vmimagemanager.boxes.site import Site
from vmimagemanager.config import BoxSettings
from vmimagemanager.errors import BoxError
from vmimagemanager.hypervisor.accelerator import Accelerator
from vmimagemanager.leases import Leases
from vmimagemanager.names import Address
from vmimagemanager.state import StateDirectory

CLEAN = Address("web", "clean")
RECORD = BoxRecord(
    name="web",
    uuid=str(uuid.UUID(int=1)),
    mac="52:54:00:00:00:01",
    image="debian-12:1",
    digests={},
    base="/nowhere",
    accelerator=Accelerator.TCG,
    accelerator_reason="It is a test.",
    adopted=False,
    created=datetime.now(UTC),
    owner="me",
    settings=BoxSettings(image="debian-12"),
)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    state = StateDirectory.open(tmp_path / "state", shared=False)
    made = Site(state=state, configuration=config.load(Path("/dev/null")))
    write(made, RECORD)
    return made


def write(site: Site, record: BoxRecord) -> None:
    folder = site.state.box(record.name)
    folder.path.mkdir(exist_ok=True)
    record.write(folder)


def clone(name: str, *, of: Address = CLEAN, temporary: bool = True, spare: str = "") -> BoxRecord:
    return replace(RECORD, name=name, fork_of=str(of), temporary=temporary, spare=spare)


def test_the_records_tell_spares_from_clones_in_use_and_from_what_was_left(site: Site) -> None:
    catalogue = spares.Catalogue(site, CLEAN)
    assert (catalogue.ready(), catalogue.leftovers()) == ((), ())
    write(site, clone("web-1", spare="token"))
    write(site, clone("web-2"))
    write(site, clone("web-3", temporary=False))
    write(site, clone("web-4", of=Address("web", "other"), spare="token"))
    write(site, clone("web-5"))
    lease = Leases(site.state).attempt("web-5")
    assert lease is not None
    assert catalogue.ready() == ("web-1",)
    assert catalogue.leftovers() == ("web-2",)
    lease.release()
    assert catalogue.leftovers() == ("web-2", "web-5")


def test_a_record_that_was_replaced_is_read_again_and_a_damaged_one_passed_over(site: Site) -> None:
    catalogue = spares.Catalogue(site, CLEAN)
    for name in ("web-1", "web-2"):
        write(site, clone(name, spare="token"))
    assert catalogue.ready() == ("web-1", "web-2")
    write(site, clone("web-1"))
    assert catalogue.ready() == ("web-2",)
    site.state.box("web-2").record.write_text("nonsense")
    assert catalogue.ready() == ()
    write(site, clone("web-2", spare="token"))
    assert catalogue.ready() == ("web-2",)


def test_a_spare_has_a_holder_while_its_pool_is_locked_and_its_snapshot_stays_as_long(site: Site) -> None:
    spare = clone("web-1", spare="token")
    lock = Leases(site.state).pool(str(CLEAN))
    assert not spares.has_holder(site, spare)
    with lock:
        assert spares.has_holder(site, spare)
        assert not spares.has_holder(site, clone("web-1"))
        assert list(Leases(site.state).pools("web")) == [str(CLEAN)]
        assert Leases(site.state).pools("we") == {}
        for removed, what in ((None, "box 'web'"), ("clean", "snapshot 'web@clean'")):
            with pytest.raises(BoxError, match=f"The {what} cannot be removed: a pool of spares is held by"):
                refuse_clones(site, "web", removed)
        refuse_clones(site, "web", "other")
    assert not spares.has_holder(site, spare)
    refuse_clones(site, "web")
