"""Definitions and ownership against a real libvirt: its test driver, which runs no guest and keeps no domain."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vmimagemanager import BoxSettings, Manager, records
from vmimagemanager.boxes.record import FORMAT, BoxRecord
from vmimagemanager.config import BOX_KEYS, Channel, Engine, Firmware, Hook, Moment, Place, schema
from vmimagemanager.config.schema import Spot
from vmimagemanager.errors import (
    BoxError,
    BoxNotFoundError,
    ConfigError,
    ForeignDomainError,
    HookError,
    HypervisorError,
    HypervisorUnreachableError,
    ImageError,
    SpaceError,
)
from vmimagemanager.hypervisor.accelerator import Accelerator
from vmimagemanager.hypervisor.connection import Hypervisor
from vmimagemanager.hypervisor.domain import DomainState
from vmimagemanager.hypervisor.domainxml import DomainXml
from vmimagemanager.hypervisor.parts import TPM_SOCKET, Boot, Parts
from vmimagemanager.hypervisor.ramfile import RamFile
from vmimagemanager.names import is_name
from vmimagemanager.report import boxes as report
from vmimagemanager.state import BoxFolder
from vmimagemanager.units import Size

FOREIGN = "<domain type='test'><name>{}</name><memory>65536</memory><os><type>hvm</type></os></domain>"


def plant(manager: Manager, text: str) -> None:
    """Define a domain past the library, as virsh does."""
    manager.site.hypervisor.define(DomainXml.parse(text, source="'foreign'"))


def parts(settings: BoxSettings, name: str, folder: Path) -> Parts:
    return Parts(
        name=name,
        uuid="83596ed3-5b0c-4bac-875c-5d7a393f7938",
        state_directory=folder,
        disk=folder / "boxes" / name / "overlay.qcow2",
        console_log=folder / "boxes" / name / "console.log",
        mac="52:54:00:96:d5:52",
        network=settings.network,
        boot=Boot(kernel=folder / "kernel", initrd=folder / "initrd", command_line="root=/dev/vda rw"),
    )


# -- whatever is asked for, libvirt's schema accepts -----------------------------------------------------------------

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True).filter(is_name)
PRINTABLE = st.text(min_size=1, max_size=20).filter(str.isprintable)
NETWORKS = st.one_of(st.sampled_from(["user", "none"]), PRINTABLE.map("libvirt:{}".format))
DURATIONS = st.integers(1, 10**6).map(lambda number: timedelta(milliseconds=number))
SETTINGS = st.builds(
    BoxSettings,
    image=st.none() | NAMES,
    description=st.none() | PRINTABLE,
    ram=st.integers(64 << 20, 16 << 40).map(Size),
    cpus=st.integers(1, 64),
    network=NETWORKS,
    user=st.just("root"),
    channel=st.sampled_from(Channel),
    disks=st.lists(st.integers(1 << 20, 16 << 40).map(Size), max_size=3).map(tuple),
    firmware=st.sampled_from(Firmware),
    tpm=st.booleans(),
    engines=st.sets(st.sampled_from(Engine), min_size=1).map(
        lambda chosen: tuple(one for one in Engine if one in chosen)
    ),
    boot_timeout=DURATIONS,
    down_timeout=DURATIONS,
    ssh_timeout=DURATIONS,
)


def is_valid(chosen: BoxSettings) -> bool:
    try:
        schema.read_table(chosen.to_record(), BOX_KEYS, Spot(prefix=""))
    except ConfigError:
        return False
    return True


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(SETTINGS.filter(is_valid), NAMES, st.lists(PRINTABLE, max_size=3), st.sampled_from(Accelerator))
@example(BoxSettings(network="libvirt:<&\"'>"), "a", ["<&\"'>,=", "ü"], Accelerator.TCG)
@example(BoxSettings(ram=Size((64 << 20) + 1), cpus=64), "0", ["a b"], Accelerator.KVM)
def test_libvirts_schema_accepts_the_domain_of_any_valid_settings(
    hypervisor: Hypervisor, chosen: BoxSettings, name: str, folders: list[str], accelerator: Accelerator
) -> None:
    folder = Path("/", *(text.replace("/", "|") for text in folders))
    plain = DomainXml.plain(ram=chosen.ram, cpus=chosen.cpus, accelerator=accelerator)
    plain = plain.with_disks([folder / "empty.qcow2" for _ in chosen.disks])
    plain = plain.with_uefi() if chosen.firmware is Firmware.UEFI else plain
    plain = plain.with_tpm() if chosen.tpm else plain
    beside = folder / "boxes" / name
    more = {
        "disks": {disk: beside / f"overlay-{disk}.qcow2" for disk in plain.further_disks()},
        "nvram": beside / "nvram",
        "tpm_socket": beside / TPM_SOCKET,
    }
    # The keywords are fields of Parts, as the callers below write them.
    laid = plain.with_parts(replace(parts(chosen, name, folder), **more)).with_owner((64055, 107))  # type: ignore[arg-type]
    assert len(laid.disks()) == 1 + len(chosen.disks)
    assert (laid.tpm_socket is not None) == chosen.tpm
    domain = hypervisor.define(laid)
    try:
        kept = domain.definition(live=False)
        assert kept.ownership == laid.ownership
        assert kept.disks() == laid.disks()
        assert kept.network == chosen.network
        assert kept.ram.bytes // 1024 == chosen.ram.bytes // 1024
        ram = RamFile(path=folder / "ram,=", size=chosen.ram, shared=False)
        running = kept.with_ram_file(ram, incoming=True).with_quick_start()
        assert running.ram_file == ram
        hypervisor.define(running)
    finally:
        domain.undefine()


# -- one domain's life -----------------------------------------------------------------------------------------------


def test_a_domain_is_defined_found_again_and_undefined(hypervisor: Hypervisor, tmp_path: Path) -> None:
    plain = DomainXml.plain(ram=Size(64 << 20), cpus=1, accelerator=Accelerator.TCG)
    hypervisor.define(plain.with_parts(parts(BoxSettings(), "one", tmp_path)))
    domain = hypervisor.domain("one", str(tmp_path))
    assert domain is not None
    assert "one" in hypervisor.names()
    assert (domain.state(), domain.active) == (DomainState.OFF, False)
    domain.undefine()
    assert hypervisor.domain("one", str(tmp_path)) is None
    domain.undefine()  # again: no error
    assert not domain.active


def test_a_domain_runs_pauses_goes_on_and_ends(hypervisor: Hypervisor) -> None:
    assert hypervisor.find("test") is None  # the shared node of test:///default has it
    defined = hypervisor.define(DomainXml.parse(FOREIGN.format("runs"), source="'runs'"))
    domain = hypervisor.start(defined.definition(live=False))
    domain.suspend()
    assert (domain.state(), domain.paused_for_space()) == (DomainState.PAUSED, False)
    domain.resume()
    assert domain.state() is DomainState.RUNNING
    domain.suspend()
    assert domain.state() is DomainState.PAUSED
    domain.end()
    assert domain.state() is DomainState.OFF
    domain.end()  # again: no error
    domain.undefine()


@pytest.mark.parametrize(
    "wrong",
    [
        "<domain type='test'><name>a</name><memory>1</memory><os><type>hvm</type></os><nonsense/></domain>",
        "<domain type='test'><name>a</name><memory unit='spoons'>1</memory><os><type>hvm</type></os></domain>",
        "<domain/>",
    ],
)
def test_xml_that_libvirt_does_not_accept_is_a_configuration_error(hypervisor: Hypervisor, wrong: str) -> None:
    with pytest.raises(ConfigError, match="does not accept its XML") as caught:
        hypervisor.define(DomainXml.parse(wrong, source="'wrong'"))
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("uri", ["nonsense:///system", "qemu+unix:///system?socket=/nowhere", "test:///nowhere.xml"])
def test_a_libvirt_that_is_not_there_is_an_error_of_the_hypervisor(uri: str) -> None:
    with pytest.raises(HypervisorError) as caught:
        Hypervisor.connect(uri)
    assert caught.value.exit_code == 111
    if "nowhere" in uri and uri.startswith("qemu"):
        assert isinstance(caught.value, HypervisorUnreachableError)
        assert caught.value.hint


# -- boxes -----------------------------------------------------------------------------------------------------------


def test_a_defined_box_has_a_domain_that_says_whose_it_is_and_an_undefined_one_nothing(manager: Manager) -> None:
    box = manager.define("web", BoxSettings(image="tiny"))
    folder = manager.site.state.box("web")
    domain = manager.site.hypervisor.domain("web", str(manager.state_directory))
    assert domain is not None
    assert folder.overlay.exists()
    assert folder.definition.read_text() == domain.definition(live=False).text()
    assert box.show().state == "off"
    box.undefine()
    assert not folder.path.exists()
    assert manager.site.hypervisor.names() == ()
    assert list(manager.site.state.boxes.iterdir()) == []
    with pytest.raises(BoxNotFoundError):
        box.show()


def test_a_second_box_of_the_same_name_is_refused(manager: Manager) -> None:
    manager.define("web", BoxSettings(image="tiny"))
    with pytest.raises(BoxError, match="already"):
        manager.define("web", BoxSettings(image="tiny"))
    assert manager.boxes() == ("web",)


def test_a_foreign_domain_is_never_touched(manager: Manager) -> None:
    plant(manager, FOREIGN.format("web"))
    domain = manager.site.hypervisor.find("web")
    assert domain is not None
    before = domain.definition(live=False).text()
    with pytest.raises(ForeignDomainError, match="not made by vmimagemanager") as caught:
        manager.define("web", BoxSettings(image="tiny"))
    assert "adopt" in caught.value.hint
    assert domain.definition(live=False).text() == before
    assert manager.boxes() == ()
    assert list(manager.site.state.boxes.iterdir()) == []


def test_a_domain_that_took_a_boxs_name_is_never_touched(manager: Manager) -> None:
    box = manager.define("web", BoxSettings(image="tiny"))
    ours = manager.site.hypervisor.find("web")
    assert ours is not None
    ours.undefine()
    plant(manager, FOREIGN.format("web"))
    theirs = manager.site.hypervisor.find("web")
    assert theirs is not None
    before = theirs.definition(live=False).text()
    for deed in (box.up, box.down, box.kill, box.reset, box.undefine, lambda: box.undefine(force=True), box.show):
        with pytest.raises(ForeignDomainError):
            deed()
    assert theirs.definition(live=False).text() == before
    assert manager.boxes() == ("web",)


def test_a_box_of_another_state_directory_is_never_touched(manager: Manager, tmp_path: Path) -> None:
    plain = DomainXml.plain(ram=Size(64 << 20), cpus=1, accelerator=Accelerator.TCG)
    manager.site.hypervisor.define(plain.with_parts(parts(BoxSettings(), "web", tmp_path / "elsewhere")))
    for adopt in (False, True):
        with pytest.raises(ForeignDomainError, match="elsewhere"):
            manager.define("web", BoxSettings(image="tiny"), adopt=adopt)
    assert manager.site.hypervisor.names() == ("web",)


def test_a_domain_whose_box_was_removed_by_hand_is_replaced(manager: Manager) -> None:
    manager.define("web", BoxSettings(image="tiny"))
    before = manager.site.record("web").uuid
    shutil.rmtree(manager.site.state.box("web").path)
    manager.define("web", BoxSettings(image="tiny"))
    assert manager.site.record("web").uuid != before
    assert manager.site.hypervisor.names() == ("web",)


@pytest.mark.parametrize("image", ["missing", None])
def test_a_box_without_its_image_leaves_nothing(manager: Manager, image: str | None) -> None:
    with pytest.raises((ImageError, ConfigError)):
        manager.define("web", BoxSettings(image=image))
    assert list(manager.site.state.boxes.iterdir()) == []
    assert manager.site.hypervisor.names() == ()


def test_own_xml_that_libvirt_refuses_leaves_nothing(manager: Manager, tmp_path: Path) -> None:
    own = tmp_path / "own.xml"
    own.write_text("<domain type='test'><memory>65536</memory><os><type>hvm</type></os><nonsense/></domain>")
    with pytest.raises(ConfigError):
        manager.define("web", BoxSettings(image="tiny", xml=own))
    assert list(manager.site.state.boxes.iterdir()) == []
    assert manager.site.hypervisor.names() == ()


def test_own_xml_says_which_accelerator_the_box_has(manager: Manager, tmp_path: Path) -> None:
    own = tmp_path / "own.xml"
    own.write_text("<domain type='kvm'><memory>65536</memory><vcpu>2</vcpu><os><type>hvm</type></os></domain>")
    box = manager.define("web", BoxSettings(image="tiny", xml=own))
    assert box.show().accelerator == "kvm"
    assert "XML" in box.show().accelerator_reason
    own.write_text("<domain type='qemu'><memory>65536</memory><vcpu>2</vcpu><os><type>hvm</type></os></domain>")
    box.update(BoxSettings(image="tiny", xml=own))
    assert box.show().accelerator == "tcg"


def test_a_hook_that_fails_after_define_leaves_nothing(manager: Manager) -> None:
    hook = Hook(moment=Moment.AFTER_DEFINE, where=Place.HOST, command=("false",))
    with pytest.raises(HookError):
        manager.define("web", BoxSettings(image="tiny", hooks=(hook,)))
    assert list(manager.site.state.boxes.iterdir()) == []
    assert manager.site.hypervisor.names() == ()


def test_a_box_whose_record_cannot_be_kept_after_an_update_stays_as_it_was(manager: Manager, tmp_path: Path) -> None:
    box = manager.define("web", BoxSettings(image="tiny"))
    folder = manager.site.state.box("web")
    before = BoxRecord.read(folder), folder.definition.read_text()
    stylesheet = tmp_path / "missing.xsl"
    with pytest.raises(ConfigError):
        box.update(replace(box.show().settings, xslt=stylesheet))
    assert (BoxRecord.read(folder), folder.definition.read_text()) == before


# -- adopting --------------------------------------------------------------------------------------------------------

ADOPTED = """
<domain type='test'>
  <name>old</name>
  <metadata><app:note xmlns:app="https://example.org/app">keep me</app:note></metadata>
  <memory unit='MiB'>96</memory><vcpu>2</vcpu>
  <os><type>hvm</type><kernel>/their/kernel</kernel></os>
  <devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{}'/>
    <target dev='vda' bus='virtio'/></disk></devices>
</domain>
"""


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return tmp_path / "disk.qcow2"  # the one that `manager` made


def test_an_adopted_domain_gets_its_definition_back(manager: Manager, disk: Path) -> None:
    plant(manager, ADOPTED.format(disk))
    domain = manager.site.hypervisor.find("old")
    assert domain is not None
    before, content = domain.definition(live=False).text(), disk.read_bytes()
    box = manager.define("old", BoxSettings(), adopt=True)
    status = box.show()
    assert (status.adopted, status.image, status.settings.ram) == (True, "", Size(96 << 20))
    laid = domain.definition(live=False)
    assert laid.disks() == (manager.site.state.box("old").overlay,)
    assert "/their/kernel" in laid.text()
    box.undefine()
    assert domain.definition(live=False).text() == before
    assert disk.read_bytes() == content
    assert list(manager.site.state.boxes.iterdir()) == []


def test_what_cannot_be_adopted_is_left_as_it_was(manager: Manager, disk: Path) -> None:
    hypervisor = manager.site.hypervisor
    with pytest.raises(BoxError, match="no domain 'old' to adopt"):
        manager.define("old", BoxSettings(), adopt=True)
    plant(manager, FOREIGN.format("diskless"))
    with pytest.raises(BoxError, match="its first disk is not a file"):
        manager.define("diskless", BoxSettings(), adopt=True)
    plant(manager, ADOPTED.format(disk.with_name("missing.qcow2")))
    with pytest.raises(BoxError, match="cannot be adopted"):
        manager.define("old", BoxSettings(), adopt=True)
    plant(manager, ADOPTED.format(disk).replace("old", "runs"))
    domain = hypervisor.find("runs")
    assert domain is not None
    hypervisor.start(domain.definition(live=False))
    with pytest.raises(BoxError, match="runs"):
        manager.define("runs", BoxSettings(), adopt=True)
    assert domain.active
    assert [hypervisor.find(name) is not None for name in ("diskless", "old", "runs")] == [True] * 3
    assert list(manager.site.state.boxes.iterdir()) == []
    domain.end()


def test_a_box_is_not_adopted_twice(manager: Manager, disk: Path) -> None:
    plant(manager, ADOPTED.format(disk))
    manager.define("old", BoxSettings(), adopt=True)
    with pytest.raises(BoxError, match="already"):
        manager.define("old", BoxSettings(), adopt=True)


@pytest.fixture
def full_after_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the disk be full when a box's record is written for the second time: the domain is defined by then."""
    original = BoxRecord.write
    written: list[str] = []

    def write(record: BoxRecord, folder: BoxFolder) -> None:
        written.append(record.name)
        if len(written) == 2:
            raise SpaceError("no space")
        original(record, folder)

    monkeypatch.setattr(BoxRecord, "write", write)


def test_an_adoption_that_fails_gives_the_definition_back(manager: Manager, disk: Path, full_after_one: None) -> None:
    plant(manager, ADOPTED.format(disk))
    domain = manager.site.hypervisor.find("old")
    assert domain is not None
    before = domain.definition(live=False).text()
    with pytest.raises(SpaceError):
        manager.define("old", BoxSettings(), adopt=True)
    assert domain.definition(live=False).text() == before
    assert list(manager.site.state.boxes.iterdir()) == []


def test_a_definition_that_fails_half_way_leaves_no_domain(manager: Manager, full_after_one: None) -> None:
    with pytest.raises(SpaceError):
        manager.define("web", BoxSettings(image="tiny"))
    assert manager.site.hypervisor.names() == ()
    assert list(manager.site.state.boxes.iterdir()) == []


def test_an_address_that_a_network_keeps_for_a_box_is_given_back_with_the_box_or_its_network(manager: Manager) -> None:
    network = manager.site.hypervisor.network("small")
    box = manager.define("we_b", BoxSettings(image="tiny", network="libvirt:small"))
    assert network.keep("we-b", "192.168.213.9")
    box.update(BoxSettings(image="tiny", network="libvirt:small", ram=Size(64 << 20)))
    assert [kept.name for kept in network.kept()] == ["we-b"]
    box.update(BoxSettings(image="tiny", network="user"))
    assert network.kept() == ()
    box.update(BoxSettings(image="tiny", network="libvirt:small"))
    assert network.keep("we-b", "192.168.213.9")
    box.undefine()
    assert network.kept() == ()
    manager.define("we_b", BoxSettings(image="tiny", network="libvirt:gone")).undefine()  # it keeps nothing


# -- whom a box is used as --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "user"),
    [
        (BoxSettings(), "tester"),
        (BoxSettings(user="root"), "root"),
        (BoxSettings(channel=Channel.NONE), "tester"),
        (BoxSettings(channel=Channel.SSH), "root"),  # who asks such a guest repairs it, too
    ],
)
def test_a_box_has_the_user_of_its_image_unless_the_settings_say_otherwise(
    manager: Manager, disk: Path, settings: BoxSettings, user: str
) -> None:
    manager.images.add("peopled", disk, disk_format="qcow2", agent=True, user="tester")
    box = manager.define("web", replace(settings, image="peopled"))
    status = box.show()
    assert (status.user, status.settings.user, status.drift) == (user, settings.user, ())
    said = [line.split(maxsplit=1)[1] for line in report.lines(status) if line.split()[0] == "user"]
    assert said == [user if settings.user else f"{user}, as no setting says another"]
    assert report.document(status)["user"] == user


def test_the_user_of_a_box_follows_its_image_and_its_settings(manager: Manager, disk: Path) -> None:
    manager.images.add("peopled", disk, disk_format="qcow2", agent=True, user="tester")
    box = manager.define("web", BoxSettings(image="tiny"))
    assert box.show().user == "root"
    assert box.update(BoxSettings(image="peopled")).waits_for == "the next reset"
    assert box.show().user == "tester"
    box.update(BoxSettings(image="peopled", user="zoe"))
    assert box.show().user == "zoe"


def test_a_record_from_before_boxes_had_the_users_of_images_keeps_its_own(manager: Manager) -> None:
    box = manager.define("web", BoxSettings(image="tiny", user="zoe"))
    path = manager.site.state.box("web").record
    older = {key: value for key, value in records.read(path, version=FORMAT).items() if key != "user"}
    records.write(path, older, version=FORMAT)
    assert box.show().user == "zoe"
