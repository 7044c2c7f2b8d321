"""What QEMU cannot migrate is named as people know it."""

from __future__ import annotations

import pytest

from vmimagemanager.hypervisor.domainxml import DomainXml

DEVICES = """
<filesystem type="mount"><source dir="/src"/><target dir="src"/></filesystem>
<filesystem type="mount"><driver type="virtiofs"/><source dir="/data"/><target dir="data"/></filesystem>
<shmem name="peer"><model type="ivshmem-plain"/></shmem>
<hostdev mode="subsystem" type="pci"><source><address domain="0x0000" bus="0x03" slot="0x00" function="0x1"/></source>
</hostdev>
<hostdev mode="subsystem" type="usb"><source><vendor id="0x1234"/><product id="0xbeef"/></source></hostdev>
<tpm model="tpm-crb"><backend type="passthrough"/></tpm>
"""
MOUNTED = "Migration is disabled when VirtFS export path '/src' is mounted in the guest using mount_tag 'src'"


@pytest.mark.parametrize(
    ("blocker", "named"),
    [
        (MOUNTED, "the file system share 'src' (9p)"),
        ("non-migratable device: 0000:00:05.0/vhost-user-fs", "the file system share 'data' (virtiofs)"),
        ("non-migratable device: 0000:09:00.0/ivshmem-plain", "the shared memory 'peer' (ivshmem)"),
        ("0000:03:00.1: VFIO migration is not supported in kernel", "the host device 0000:03:00.1 (pci)"),
        ("non-migratable device: usb-host", "the host device 1234:beef (usb)"),
        ("non-migratable device: tpm-passthrough", "the host's TPM (passthrough)"),
        ("something else", ""),
    ],
)
def test_a_blocker_is_quoted_with_the_device_that_it_speaks_of(blocker: str, named: str) -> None:
    domain = DomainXml.parse(f"<domain><devices>{DEVICES}</devices></domain>", source="'own.xml'")
    assert domain.describe_blockers([blocker]) == (f"{named} ({blocker})" if named else blocker,)
