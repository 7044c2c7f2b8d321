"""Domain XML: what we build, what we lay over, and what we refuse to read.

``pytest tests/unit/test_domainxml.py --regenerate`` writes the golden files anew.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from vmimagemanager.errors import ConfigError
from vmimagemanager.hypervisor.accelerator import Accelerator
from vmimagemanager.hypervisor.domainxml import DomainXml, Ownership
from vmimagemanager.hypervisor.parts import OURS, TPM_SOCKET, Boot, Parts
from vmimagemanager.hypervisor.qemuline import QEMU
from vmimagemanager.hypervisor.ramfile import RamFile
from vmimagemanager.units import Size

GOLDEN = Path(__file__).parent / "golden"
XSLT = "http://www.w3.org/1999/XSL/Transform"
DIRECT = Boot(kernel=Path("/state/blobs/kernel"), initrd=Path("/state/blobs/initrd"), command_line="root=/dev/vda rw")
OWN = """
<domain type="qemu" xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0">
  <name>theirs</name>
  <metadata><app:note xmlns:app="https://example.org/app">keep me</app:note></metadata>
  <memory unit="GiB">1</memory>
  <vcpu>2</vcpu>
  <os><type arch="x86_64" machine="pc-q35-7.2">hvm</type><kernel>/their/kernel</kernel><boot dev="hd"/></os>
  <devices>
    <disk type="block" device="cdrom"><source dev="/dev/sr0"/><target dev="sda" bus="sata"/></disk>
    <disk type="network" device="disk">
      <driver name="qemu" type="raw" cache="none"/>
      <source protocol="rbd" name="pool/image"><host name="ceph" port="6789"/></source>
      <target dev="vdb" bus="virtio"/>
      <shareable/>
      <serial>THEIRS</serial>
    </disk>
    <interface type="bridge" trustGuestRxFilters="yes">
      <mac address="52:54:00:aa:bb:cc"/>
      <source bridge="br0"/>
      <model type="e1000e"/>
      <boot order="2"/>
    </interface>
    <serial type="pty"><log file="/their/log"/><target port="0"/></serial>
    <serial type="null"><target port="1"/></serial>
    <watchdog model="i6300esb" action="reset"/>
  </devices>
  <qemu:commandline><qemu:arg value="-global"/><qemu:arg value="ICH9-LPC.disable_s3=1"/></qemu:commandline>
</domain>
"""


def plain(accelerator: Accelerator = Accelerator.TCG, *, cpus: int = 1) -> DomainXml:
    return DomainXml.plain(ram=Size(512 << 20), cpus=cpus, accelerator=accelerator)


def parts(network: str = "user", boot: Boot = DIRECT) -> Parts:
    return Parts(
        name="web",
        uuid="83596ed3-5b0c-4bac-875c-5d7a393f7938",
        state_directory=Path("/state"),
        disk=Path("/state/boxes/web/overlay.qcow2"),
        console_log=Path("/state/boxes/web/console.log"),
        mac="52:54:00:96:d5:52",
        network=network,
        boot=boot,
    )


def own(text: str = OWN) -> DomainXml:
    return DomainXml.parse(text, source="'own.xml'")


def ram_file(path: str = "/state/boxes/web/ram", *, shared: bool = True) -> RamFile:
    return RamFile(path=Path(path), size=Size(512 << 20), shared=shared)


SEVERAL = """
<domain type="qemu">
  <os><type>hvm</type><loader readonly="yes" type="pflash">/their/OVMF_CODE.fd</loader>
    <nvram template="/their/OVMF_VARS.fd">/their/variables</nvram></os>
  <devices>
    <disk type="file" device="disk"><source file="/their/first"/><target dev="sda" bus="scsi"/></disk>
    <disk type="file"><source file="/their/raw"/><target dev="vda" bus="virtio"/><shareable/></disk>
    <disk type="file" device="disk"><driver name="qemu" type="qcow2" cache="none"/><source file="/their/qcow2"/>
      <target dev="vdc" bus="virtio"/></disk>
    <disk type="block" device="disk"><source dev="/dev/their"/><target dev="vdd" bus="virtio"/><readonly/></disk>
    <disk type="file" device="cdrom"><source file="/their/iso"/><target dev="sdb" bus="sata"/></disk>
    <tpm model="tpm-tis"><backend type="emulator" version="2.0"/></tpm>
  </devices>
</domain>
"""


def full_parts(*disks: str) -> Parts:
    folder = Path("/state/boxes/web")
    return replace(
        parts(boot=Boot()),
        disks={disk: folder / f"overlay-{disk}.qcow2" for disk in disks},
        nvram=folder / "nvram",
        tpm_socket=Path("/run/web") / TPM_SOCKET,
    )


GOLDEN_DOMAINS = {
    "several": own(SEVERAL).with_disks([Path("/state/empty/1.qcow2")]).with_parts(full_parts("vda", "vdb", "vdc")),
    "uefi-tpm": plain().with_uefi().with_tpm().with_parts(full_parts()),
    "plain-tcg": plain().with_parts(parts()),
    "plain-kvm-network": plain(Accelerator.KVM, cpus=4).with_parts(parts("libvirt:isolated")),
    "session": plain().with_parts(replace(parts(), sockets=Path("/run/user/1000/vmimagemanager/web"))),
    "plain-boot-loader-no-network": plain().with_parts(parts("none", Boot())),
    "own": own().with_parts(parts("libvirt:isolated")),
    "running": plain().with_parts(parts()).with_owner((64055, 107)).with_ram_file(ram_file()).with_quick_start(),
    "restored": own().with_parts(parts()).with_ram_file(ram_file(shared=False), incoming=True).with_quick_start(),
}


@pytest.mark.parametrize("name", GOLDEN_DOMAINS)
def test_a_domain_looks_as_its_golden_file_does(name: str, request: pytest.FixtureRequest) -> None:
    path, text = GOLDEN / f"{name}.xml", GOLDEN_DOMAINS[name].text()
    if request.config.getoption("--regenerate"):
        path.write_text(text)
    assert text == path.read_text()


def test_every_golden_file_belongs_to_a_domain() -> None:
    assert {path.stem for path in GOLDEN.glob("*.xml")} == set(GOLDEN_DOMAINS)


# -- laying over ---------------------------------------------------------------------------------------------------


def test_laying_our_parts_twice_is_the_same_as_once() -> None:
    once = own().with_parts(parts())
    assert once.with_parts(parts()).text() == once.text()


def test_a_step_leaves_the_tree_that_it_came_from_alone() -> None:
    domain = own()
    before = domain.text()
    domain.with_parts(parts("none")).with_owner((1, 2)).with_ram_file(ram_file()).with_quick_start()
    assert domain.text() == before


def test_nothing_of_a_foreign_disk_stays_but_its_place_and_serial_number() -> None:
    text = own().with_parts(parts()).text()
    assert own(text).disks() == (Path("/state/boxes/web/overlay.qcow2"),)
    for gone in ("rbd", "ceph", "shareable", 'cache="none"', 'type="network" device'):
        assert gone not in text
    for kept in ("vdb", "THEIRS", "/dev/sr0"):
        assert kept in text


def test_further_disks_are_those_that_the_guest_can_write_to() -> None:
    several = own(SEVERAL).with_disks([Path("/state/empty/1.qcow2")])
    assert several.further_disks() == {
        "vda": (Path("/their/raw"), "raw"),  # as libvirt takes it that is given no format
        "vdc": (Path("/their/qcow2"), "qcow2"),
        "vdb": (Path("/state/empty/1.qcow2"), "qcow2"),
    }
    assert own().further_disks() == plain().further_disks() == {}


@pytest.mark.parametrize(
    "disk",
    [
        '<disk type="block" device="disk"><source dev="/dev/sdb"/><target dev="vdb"/></disk>',
        '<disk type="network" device="disk"><source protocol="rbd" name="a"/><target dev="vdb"/></disk>',
        '<disk type="volume"><source pool="a" volume="b"/><target dev="vdb"/></disk>',
        '<disk type="block" device="lun"><source dev="/dev/sdb"/><target dev="vdb"/></disk>',
        '<disk type="file"><target dev="vdb"/></disk>',
    ],
)
def test_a_disk_that_could_belong_to_no_snapshot_is_refused(disk: str) -> None:
    domain = own(f'<domain><devices><disk type="file"><target dev="vda"/></disk>{disk}</devices></domain>')
    with pytest.raises(ConfigError, match="The disk 'vdb' of the domain XML could belong to no snapshot") as caught:
        domain.further_disks()
    assert "<readonly/>" in caught.value.hint


@pytest.mark.parametrize(
    "backend", ['type="emulator" version="1.2"', 'type="emulator"><encryption secret="a"/></backend']
)
def test_a_tpm_that_cannot_be_kept_is_refused(backend: str) -> None:
    end = "" if backend.endswith("backend") else "/"
    domain = own(f"<domain><devices><tpm><backend {backend}{end}></tpm></devices></domain>")
    with pytest.raises(ConfigError, match="The TPM of the domain XML cannot be kept"):
        domain.with_parts(full_parts())


def test_a_tpm_or_a_firmware_of_their_own_stays_theirs() -> None:
    tpm = '<tpm model="tpm-crb"><backend type="external"><source type="unix" path="/their/socket"/></backend></tpm>'
    system = '<os><type>hvm</type><loader type="rom">/their/bios</loader></os>'
    theirs = own(f"<domain>{system}<devices>{tpm}</devices></domain>")
    laid = theirs.with_tpm().with_uefi().with_parts(full_parts())
    assert laid.tpm_socket is None
    assert "/their/socket" in laid.text()
    assert (laid.nvram, "firmware" in laid.text()) == (None, False)


def test_nothing_of_a_foreign_network_card_stays_but_its_model_and_place() -> None:
    text = own().with_parts(parts("user")).text()
    assert own(text).network == "user"
    assert own(text).mac == "52:54:00:96:d5:52"
    for gone in ("br0", "trustGuestRxFilters", "52:54:00:aa:bb:cc"):
        assert gone not in text
    assert "e1000e" in text


def test_other_programs_metadata_and_arguments_stay() -> None:
    domain = own().with_parts(parts()).with_ram_file(ram_file(), incoming=True).with_ram_file(None)
    assert "keep me" in domain.text()
    assert "ICH9-LPC.disable_s3=1" in domain.text()
    assert domain.ownership == Ownership(box="web", state_directory="/state", format=1)


def test_a_forged_claim_in_own_xml_is_replaced() -> None:
    forged = OWN.replace("<metadata>", f'<metadata><v:box xmlns:v="{OURS}" name="other" state-directory="/else"/>')
    domain = own(forged).with_parts(parts())
    assert domain.ownership == Ownership(box="web", state_directory="/state", format=1)
    assert domain.text().count(f'"{OURS}"') == 1


def test_metadata_with_a_nonsensical_format_is_still_somebodys() -> None:
    text = f'<domain><metadata><v:box xmlns:v="{OURS}" name="a" format="new"/></metadata></domain>'
    assert own(text).ownership == Ownership(box="a", state_directory="", format=0)


def test_a_domain_without_our_metadata_has_no_owner() -> None:
    assert own().ownership is None


def test_the_channels_sockets_are_put_where_we_say_unless_own_xml_says_where() -> None:
    ours, other = Path("/run/ours"), Path("/run/other")
    agent, waiter = "org.qemu.guest_agent.0", "org.vmimagemanager.0"
    assert plain().with_parts(parts()).channel_sockets == ()
    laid = plain().with_parts(replace(parts(), sockets=other))
    assert laid.channel_sockets == (other / agent, other / waiter)
    # A clone's are not those of the box that it was made of, which runs, too.
    assert laid.with_parts(replace(parts(), sockets=ours)).channel_sockets == (ours / agent, ours / waiter)
    target = f'<source mode="bind" path="/run/theirs"/><target type="virtio" name="{agent}"/>'
    theirs = own(f'<domain><devices><channel type="unix">{target}</channel></devices></domain>')
    laid = theirs.with_parts(replace(parts(), sockets=ours, boot=Boot()))
    assert laid.channel_sockets == (Path("/run/theirs"), ours / waiter)


def test_a_channel_is_open_when_libvirt_says_that_the_guest_is_connected() -> None:
    def with_state(state: str) -> DomainXml:
        target = f'<target type="virtio" name="org.vmimagemanager.0" {state}/>'
        return own(f'<domain><devices><channel type="unix">{target}</channel></devices></domain>')

    assert with_state('state="connected"').channel_is_open("org.vmimagemanager.0")
    assert not with_state('state="disconnected"').channel_is_open("org.vmimagemanager.0")
    assert not with_state("").channel_is_open("org.vmimagemanager.0")
    assert not with_state('state="connected"').channel_is_open("org.qemu.guest_agent.0")


# -- RAM -----------------------------------------------------------------------------------------------------------


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0\n\r\t", exclude_categories=["Cc", "Cs"])))
def test_a_ram_file_of_any_name_is_read_back_as_it_was_written(name: str) -> None:
    try:
        etree.Element("a").text = name
    except ValueError:  # XML has no word for it
        return
    written = ram_file(f"/state/{name}")
    assert plain().with_ram_file(written, incoming=True).ram_file == written


def test_a_domain_that_gives_up_its_ram_file_is_as_it_was_before() -> None:
    domain = own().with_parts(parts())
    assert domain.with_ram_file(ram_file()).with_ram_file(ram_file(shared=False), incoming=True).with_ram_file(
        None
    ).text() == (domain.text())


@pytest.mark.parametrize(
    ("unit", "size"),
    [
        ('unit="GiB"', 3 << 30),
        ('unit="G"', 3 << 30),
        ('unit="gb"', 3 * 10**9),
        ('unit="KB"', 3000),
        ("", 3 << 10),
        ('unit="bytes"', 3),
        ('unit="TiB"', 3 << 40),
    ],
)
def test_memory_is_read_in_all_of_libvirts_units(unit: str, size: int) -> None:
    assert own(f"<domain><memory {unit}>\n3\n</memory></domain>").ram == Size(size)


@pytest.mark.parametrize(
    "memory", ["", "<memory/>", "<memory>much</memory>", "<memory>-3</memory>", '<memory unit="GB3">3</memory>']
)
def test_memory_that_is_no_size_is_a_configuration_error(memory: str) -> None:
    with pytest.raises(ConfigError, match="memory"):
        _ = own(f"<domain>{memory}</domain>").ram


# -- what is refused -----------------------------------------------------------------------------------------------

LAUGHS = "".join(f'<!ENTITY {chr(98 + level)} "{f"&{chr(97 + level)};" * 10}">' for level in range(9))
BILLION_LAUGHS = f'<!DOCTYPE domain [<!ENTITY a "aaaaaaaaaa">{LAUGHS}]>'
BAD_XML: dict[str, str | bytes] = {
    "nothing": "",
    "text": "no XML",
    "another root": "<network/>",
    "two roots": "<domain/><domain/>",
    "a control character": "<domain>\0</domain>",
    "half": "<domain><name>",
    "an unknown entity": "<domain>&unknown;</domain>",
    "an unknown encoding": b'<?xml version="1.0" encoding="nonsense"?><domain/>',
    "a harmless entity": '<!DOCTYPE domain [<!ENTITY a "a">]><domain><name>&a;</name></domain>',
    "an unused entity": '<!DOCTYPE domain [<!ENTITY a "a">]><domain/>',
    "an external entity": '<!DOCTYPE domain [<!ENTITY a SYSTEM "file:FILE">]><domain><name>&a;</name></domain>',
    "an external document type": '<!DOCTYPE domain SYSTEM "file:FILE"><domain/>',
    "a document type of the network": '<!DOCTYPE domain SYSTEM "http://127.0.0.1:9/x.dtd"><domain/>',
    "a parameter entity": '<!DOCTYPE domain [<!ENTITY % a SYSTEM "file:FILE"> %a;]><domain/>',
    "a billion laughs": f"{BILLION_LAUGHS}<domain>&j;</domain>",
    "a billion laughs in an attribute": f'{BILLION_LAUGHS}<domain type="&j;"/>',
    "a bottomless tree": f"<domain>{'<a>' * 10000}{'</a>' * 10000}</domain>",
}


@pytest.mark.parametrize("kind", BAD_XML)
def test_bad_xml_is_a_configuration_error_that_names_its_file(kind: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("<!ENTITY found 'SECRET'>SECRET")
    path, text = tmp_path / "own.xml", BAD_XML[kind]
    path.write_bytes((text if isinstance(text, bytes) else text.encode()).replace(b"FILE", str(secret).encode()))
    with pytest.raises(ConfigError) as caught:
        DomainXml.read(path)
    assert str(path) in caught.value.message
    assert "SECRET" not in caught.value.message
    assert caught.value.exit_code == 2


def test_a_file_that_cannot_be_read_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        DomainXml.read(tmp_path / "missing.xml")
    with pytest.raises(ConfigError, match="cannot be read"):
        DomainXml.read(tmp_path)


def stylesheet(body: str, top: str = "", *, names: str = "") -> str:
    return (
        f'<xsl:stylesheet version="1.0" xmlns:xsl="{XSLT}" {names}>{top}'
        f'<xsl:template match="/"><domain type="qemu">{body}</domain></xsl:template></xsl:stylesheet>'
    )


def writing(element: str, namespace: str, attribute: str = "href") -> str:
    names = f'xmlns:w="{namespace}"' + ("" if namespace == XSLT else ' extension-element-prefixes="w"')
    return stylesheet(f'<w:{element} {attribute}="OUT"><a/></w:{element}>', names=names)


BAD_STYLESHEETS = {
    "no stylesheet": "<domain/>",
    "no XML": "no XML",
    "an entity": f'<!DOCTYPE a [<!ENTITY a SYSTEM "file:FILE">]>{stylesheet("&a;")}',
    "document() of a path": stylesheet("<xsl:copy-of select=\"document('FILE')\"/>"),
    "document() of a file": stylesheet("<xsl:copy-of select=\"document('file://FILE')\"/>"),
    "document() of the network": stylesheet("<xsl:copy-of select=\"document('http://127.0.0.1:9/x')\"/>"),
    "an included path": stylesheet("", '<xsl:include href="FILE"/>'),
    "an included file": stylesheet("", '<xsl:include href="file://FILE"/>'),
    "an included page": stylesheet("", '<xsl:include href="http://127.0.0.1:9/x"/>'),
    "an imported path": stylesheet("", '<xsl:import href="FILE"/>'),
    "an imported file": stylesheet("", '<xsl:import href="file://FILE"/>'),
    "an imported page": stylesheet("", '<xsl:import href="http://127.0.0.1:9/x"/>'),
    "xsl:document": writing("document", XSLT),
    "exslt:document": writing("document", "http://exslt.org/common"),
    "saxon:output": writing("output", "http://icl.com/saxon"),
    "redirect:write": writing("write", "org.apache.xalan.xslt.extensions.Redirect", "file"),
    "xt:document": writing("document", "http://www.jclark.com/xt"),
    "no result": f'<xsl:stylesheet version="1.0" xmlns:xsl="{XSLT}"><xsl:template match="/"/></xsl:stylesheet>',
    "another root": stylesheet("").replace("domain", "network"),
    "text": stylesheet("", '<xsl:output method="text"/>').replace("<domain type=", "a<b ").replace("</domain>", "</b>"),
    "an unknown function": stylesheet('<xsl:value-of select="a:b()" xmlns:a="a"/>'),
    "wrong XPath": stylesheet('<xsl:value-of select="(("/>'),
    "its own refusal": stylesheet('<xsl:message terminate="yes">not this one</xsl:message>'),
    "no end": stylesheet("").replace('<domain type="qemu">', '<xsl:apply-templates select="/"/><domain>'),
}


@pytest.mark.parametrize("kind", BAD_STYLESHEETS)
def test_a_bad_stylesheet_is_a_configuration_error_and_neither_reads_nor_writes(kind: str, tmp_path: Path) -> None:
    secret, out = tmp_path / "secret.xml", tmp_path / "out"
    secret.write_text(
        f'<xsl:stylesheet version="1.0" xmlns:xsl="{XSLT}">'
        '<xsl:template match="x">SECRET</xsl:template></xsl:stylesheet>'
    )
    secret.chmod(0o600)
    path = tmp_path / "site.xsl"
    path.write_text(BAD_STYLESHEETS[kind].replace("FILE", str(secret)).replace("OUT", str(out)))
    before = secret.stat().st_atime_ns, sorted(tmp_path.iterdir())
    with pytest.raises(ConfigError) as caught:
        plain().transformed(path)
    assert str(path) in caught.value.message
    assert "SECRET" not in caught.value.message
    assert caught.value.exit_code == 2
    assert (secret.stat().st_atime_ns, sorted(tmp_path.iterdir())) == before


def test_a_stylesheet_can_change_a_domain_and_our_parts_are_laid_over_it(tmp_path: Path) -> None:
    path = tmp_path / "site.xsl"
    path.write_text(
        f'<xsl:stylesheet version="1.0" xmlns:xsl="{XSLT}">'
        '<xsl:template match="@*|node()"><xsl:copy><xsl:apply-templates select="@*|node()"/></xsl:copy></xsl:template>'
        '<xsl:template match="name"><name>theirs</name></xsl:template>'
        '<xsl:template match="memballoon"><memballoon model="virtio"/></xsl:template>'
        "</xsl:stylesheet>"
    )
    domain = plain().transformed(path).with_parts(parts())
    assert '<memballoon model="virtio"/>' in domain.text()
    assert "<name>web</name>" in domain.text()
    assert "theirs" not in domain.text()


def test_qemu_arguments_of_a_stylesheet_keep_their_namespace(tmp_path: Path) -> None:
    path = tmp_path / "site.xsl"
    line = '<q:commandline><q:arg value="-no-hpet"/></q:commandline>'
    path.write_text(stylesheet(f"<os><type>hvm</type></os>{line}", names=f'xmlns:q="{QEMU}"'))
    domain = plain().transformed(path).with_parts(parts()).with_ram_file(ram_file())
    assert domain.ram_file == ram_file()
    assert domain.with_ram_file(None).text().count("-no-hpet") == 1


def test_the_files_of_the_host_that_a_domain_names_are_found() -> None:
    definition = DomainXml.parse(
        """<domain><os><loader>/firmware</loader><nvram>/its/own</nvram></os><devices>
        <disk device="disk"><source file="/disk"/></disk><disk device="cdrom"><source file="/disc.iso"/></disk>
        <disk device="cdrom"/><serial><source path="/dev/pts/1"/></serial>
        <filesystem><source dir="/shared"/></filesystem>
        </devices></domain>""",
        source="the test",
    )
    assert definition.host_files == (Path("/disc.iso"), Path("/shared"), Path("/firmware"))


# -- the seed of a cloud image ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [plain(), own()])
def test_a_seed_is_a_read_only_disk_after_all_others_and_none_of_the_guests_own(base: DomainXml) -> None:
    path = Path("/state/boxes/web/seed-1.iso")
    seeded = base.with_disks([Path("/state/empty/1.qcow2")]).with_seed()
    laid = seeded.with_seed().with_parts(replace(parts(), seed=path))
    assert laid.seed == path
    disks = etree.fromstring(laid.text()).findall("devices/disk")
    (disk,) = [one for one in disks if one.findtext("serial") == "vmim-seed"]
    assert (disk is disks[-1], disk.get("device"), disk.find("readonly") is not None) == (True, "disk", True)
    target, driver = disk.find("target"), disk.find("driver")
    assert target is not None
    assert driver is not None
    assert (target.get("dev"), target.get("bus"), driver.get("type")) == ("vdaa", "virtio", "raw")
    assert path not in laid.disks()
    assert path not in laid.host_files
    assert "vdaa" not in laid.further_disks()
    other = laid.with_parts(replace(parts(), name="clone", seed=Path("/state/boxes/clone/seed-1.iso")))
    assert other.seed == Path("/state/boxes/clone/seed-1.iso")
    assert other.layout() == laid.layout()
    assert base.with_parts(parts()).layout() != laid.layout()


def test_parts_bring_no_seed_to_a_memory_that_knows_of_none() -> None:
    assert plain().with_parts(replace(parts(), seed=Path("/seed.iso"))).seed is None
