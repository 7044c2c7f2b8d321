"""Own XML, a site's stylesheet, and domains that are taken over, on real guests."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.vm.conftest import IMAGE, new_name
from vmimagemanager import Box, BoxSettings, Manager
from vmimagemanager.errors import BoxError, ConfigError, ForeignDomainError
from vmimagemanager.units import Size

# What a plain box has not: two processors, more memory, another machine type, a watchdog.
OWN = """
<domain type="qemu">
  <name>theirs</name>
  <title>made by hand</title>
  <metadata><app:note xmlns:app="https://example.org/app">keep me</app:note></metadata>
  <memory unit="GiB">1</memory>
  <vcpu>2</vcpu>
  <os><type arch="x86_64" machine="pc-q35-7.0">hvm</type></os>
  <features><acpi/></features>
  <devices>
    <disk type="file" device="disk"><source file="/nowhere"/>
      <target dev="vda" bus="virtio"/><serial>OURS</serial></disk>
    <interface type="network"><source network="nowhere"/><model type="virtio-non-transitional"/></interface>
    <serial type="pty"><target port="0"/></serial>
    <serial type="null"><target port="1"/></serial>
    <watchdog model="i6300esb" action="none"/>
    <memballoon model="none"/>
  </devices>
</domain>
"""
SITE = """
<xsl:stylesheet version="1.0" xmlns:xsl="http://www.w3.org/1999/XSL/Transform">
  <xsl:template match="@*|node()"><xsl:copy><xsl:apply-templates select="@*|node()"/></xsl:copy></xsl:template>
  <xsl:template match="title"><title>changed by the site</title></xsl:template>
  <xsl:template match="devices"><xsl:copy><xsl:apply-templates select="@*|node()"/>
    <input type="tablet" bus="virtio"/></xsl:copy></xsl:template>
</xsl:stylesheet>
"""
EVIL = """
<xsl:stylesheet version="1.0" xmlns:xsl="http://www.w3.org/1999/XSL/Transform">
  <xsl:import href="file:///etc/passwd"/>
</xsl:stylesheet>
"""
ENTITY = "<!DOCTYPE a [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><a>&a;</a>"


def virsh(manager: Manager, *words: str, check: bool = True) -> str:
    argv = ["virsh", "--quiet", "--connect", manager.site.hypervisor.uri, *words]
    return subprocess.run(argv, capture_output=True, text=True, check=check).stdout


def survives_a_restore(box: Box) -> None:
    """Snapshot a running box, dirty it, and see that a restore brings the same boot back clean."""
    boot_id = box.run(["cat", "/proc/sys/kernel/random/boot_id"]).text
    assert box.snapshot("own").engine == "live"
    box.script("echo dirty >/run/canary; echo dirty >/root/canary; sync")
    restored = box.restore("own")
    assert (restored.engine, restored.proven) == ("live", True)
    assert box.run(["ls", "/run/canary", "/root/canary"], check=False).status == 2
    assert box.run(["cat", "/proc/sys/kernel/random/boot_id"]).text == boot_id


def test_a_box_of_own_xml_and_a_sites_stylesheet_has_their_devices_and_our_disk_and_network(
    manager: Manager, define: Callable[..., Box], tmp_path: Path
) -> None:
    own, site = tmp_path / "own.xml", tmp_path / "site.xsl"
    own.write_text(OWN)
    site.write_text(SITE)
    box = define(xml=own, xslt=site, ram=Size(64 << 20), cpus=1)
    box.up()
    seen = box.script(
        "nproc; awk '/MemTotal/ { print ($2 > 900000) }' /proc/meminfo; cat /sys/block/vda/serial; echo;"
        "cat /sys/class/dmi/id/product_version;"
        "cat /sys/bus/pci/devices/*/device | grep -xE '0x25ab|0x1052' | sort"
    ).text.split()
    assert seen == ["2", "1", "OURS", "pc-q35-7.0", "0x1052", "0x25ab"]
    text = virsh(manager, "dumpxml", box.name)
    for kept in ("keep me", "changed by the site", f'name="{box.name}"'):
        assert kept in text.replace("'", '"')
    assert "theirs" not in text
    survives_a_restore(box)
    assert box.run(["nproc"]).text == "2\n"
    box.kill()
    box.reset()


@pytest.mark.parametrize(
    "content", [EVIL, "<!DOCTYPE a [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><a>&a;</a>", "no XML"]
)
@pytest.mark.parametrize("key", ["xml", "xslt"])
def test_a_box_of_dangerous_xml_is_refused_and_leaves_nothing(
    manager: Manager, tmp_path: Path, key: str, content: str
) -> None:
    path, name = tmp_path / "dangerous", new_name()
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        manager.define(name, BoxSettings(image=IMAGE, **{key: path}))  # type: ignore[arg-type]  # one of two paths
    assert caught.value.exit_code == 2
    assert name not in manager.boxes()
    assert name not in manager.site.hypervisor.names()


def test_xml_that_libvirt_does_not_know_is_refused_and_leaves_nothing(manager: Manager, tmp_path: Path) -> None:
    own, name = tmp_path / "own.xml", new_name()
    own.write_text(OWN.replace("<vcpu>2</vcpu>", "<vcpu>2</vcpu><nonsense/>"))
    with pytest.raises(ConfigError, match="does not accept its XML"):
        manager.define(name, BoxSettings(image=IMAGE, xml=own))
    assert name not in manager.boxes()
    assert name not in manager.site.hypervisor.names()


# -- domains of others ---------------------------------------------------------------------------------------------

THEIRS = """
<domain type="qemu">
  <name>{name}</name>
  <metadata><app:note xmlns:app="https://example.org/app">keep me</app:note></metadata>
  <memory unit="MiB">384</memory>
  <vcpu>1</vcpu>
  <os><type arch="x86_64" machine="q35">hvm</type>
    <kernel>{kernel}</kernel><initrd>{initrd}</initrd><cmdline>root=/dev/vda rw console=ttyS0</cmdline></os>
  <features><acpi/></features>
  <devices>
    <disk type="file" device="disk"><driver name="qemu" type="qcow2"/><source file="{disk}"/>
      <target dev="vda" bus="virtio"/></disk>
    <interface type="user"><mac address="52:54:00:11:22:33"/><model type="virtio"/></interface>
    <memballoon model="none"/>
  </devices>
</domain>
"""


@pytest.fixture
def theirs(manager: Manager) -> Iterator[tuple[str, Path]]:
    """The name and the disk of a domain that somebody defined without us; both are gone at the end."""
    image, name = manager.images.get(IMAGE), new_name()
    folder = Path(tempfile.mkdtemp(prefix="vmim-test-", dir="/var/tmp"))
    folder.chmod(0o755)
    disk = folder / "disk.qcow2"
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(image.disk), "-F", "qcow2", str(disk)]
    subprocess.run(argv, check=True)
    disk.chmod(0o600)  # as libvirt leaves it behind when its domain has ended
    definition = folder / "domain.xml"
    definition.write_text(THEIRS.format(name=name, disk=disk, kernel=image.kernel, initrd=image.initrd))
    try:
        virsh(manager, "define", str(definition))
        yield name, disk
    finally:
        if name in manager.boxes():
            manager.box(name).undefine(force=True)
        virsh(manager, "destroy", name, check=False)
        virsh(manager, "undefine", name)
        shutil.rmtree(folder)


def state_of(disk: Path) -> tuple[str, int, int, int]:
    status = disk.stat()
    return hashlib.sha256(disk.read_bytes()).hexdigest(), status.st_uid, status.st_gid, status.st_mode


def test_an_adopted_domain_is_snapshotted_and_restored_and_comes_back_untouched(
    manager: Manager, theirs: tuple[str, Path]
) -> None:
    name, disk = theirs
    before, content = virsh(manager, "dumpxml", "--inactive", name), state_of(disk)
    box = manager.define(name, BoxSettings(), adopt=True)
    status = box.show()
    assert (status.adopted, status.settings.ram, status.settings.network) == (True, Size(384 << 20), "user")
    up = box.up()
    assert (up.started, up.first_boot) == (True, True)
    survives_a_restore(box)
    box.kill()
    box.reset()
    assert box.show().snapshot == ""
    box.restore("own")
    assert box.run(["cat", "/sys/class/net/en*/address"], check=False).status in (0, 1)
    box.undefine(force=True)
    assert virsh(manager, "dumpxml", "--inactive", name) == before
    assert state_of(disk) == content
    assert name not in manager.boxes()


def test_what_is_not_ours_is_never_touched_by_accident(manager: Manager, theirs: tuple[str, Path]) -> None:
    name, disk = theirs
    before, content = virsh(manager, "dumpxml", "--inactive", name), state_of(disk)
    with pytest.raises(ForeignDomainError, match="not made by"):
        manager.define(name, BoxSettings(image=IMAGE))
    with pytest.raises(BoxError, match="no domain"):
        manager.define(new_name(), BoxSettings(), adopt=True)
    virsh(manager, "start", "--paused", name)
    with pytest.raises(BoxError, match="runs"):
        manager.define(name, BoxSettings(), adopt=True)
    assert virsh(manager, "domstate", name).strip() == "paused"
    virsh(manager, "destroy", name)
    assert virsh(manager, "dumpxml", "--inactive", name) == before
    assert state_of(disk)[0] == content[0]
    assert name not in manager.boxes()


def test_a_box_of_another_state_directory_is_left_alone(
    manager: Manager, define: Callable[..., Box], tmp_path: Path
) -> None:
    box = define()
    before = virsh(manager, "dumpxml", "--inactive", box.name)
    with Manager.open(uri=manager.site.hypervisor.uri, state_directory=tmp_path / "other") as other:
        for adopt in (False, True):
            with pytest.raises(ForeignDomainError, match=str(manager.state_directory)):
                other.define(box.name, BoxSettings(image=IMAGE), adopt=adopt)
        assert other.boxes() == ()
    assert virsh(manager, "dumpxml", "--inactive", box.name) == before
