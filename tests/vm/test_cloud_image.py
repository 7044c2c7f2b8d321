"""A cloud image: it boots by its own boot loader, and a seed alone tells it who it is; one build and one boot."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from tests.vm.conftest import RAM, new_name
from vmimagemanager import Box, BoxSettings, Manager, keys
from vmimagemanager.config import Channel
from vmimagemanager.errors import StateError
from vmimagemanager.hypervisor.domainxml import DomainXml
from vmimagemanager.images import look
from vmimagemanager.images.blobs import digest_of
from vmimagemanager.images.catalogue import Recipe

NAME = "debian-12-cloud"
IDENTITY = "hostname; cat /etc/hostname /etc/machine-id; cat /proc/sys/kernel/random/boot_id"


@pytest.fixture(scope="module")
def cloud(manager: Manager) -> Iterator[Box]:
    """A running box on an image that has cloud-init and nothing of ours: no agent, no network, no condition of sshd."""
    if NAME not in [image.name for image in manager.images.list()]:
        recipe = Recipe(name=NAME, suite="bookworm", description="", uefi=True, cloud=True)
        manager.images.build(NAME, recipe=recipe)
    image = manager.images.get(NAME)
    assert (image.seed, image.agent, image.firmware) == ("nocloud", False, "uefi")
    assert (image.kernel, image.initrd) == (None, None)
    assert "qemu-guest-agent" not in image.packages
    box = manager.define(new_name(), BoxSettings(image=NAME, ram=RAM, boot_timeout=timedelta(minutes=4)))
    try:
        up = box.up()
        assert (up.first_boot, up.channel) == (True, Channel.SSH)
        yield box
    finally:
        box.undefine(force=True)


def seed_of(manager: Manager, box: Box) -> Path:
    (path,) = manager.site.state.box(box.name).seeds
    return path


def test_a_seed_gives_a_cloud_image_its_identity(cloud: Box, manager: Manager) -> None:
    record = manager.site.record(cloud.name)
    host_name, kept_name, machine_id, _ = cloud.script(IDENTITY).text.split()
    assert (host_name, kept_name, machine_id) == (record.host_name, record.host_name, record.machine_id)
    # Whom SSH talks to is known beforehand: a session would not have come about with another host key.
    folder = manager.site.state.box(cloud.name)
    assert cloud.run(["cat", "/etc/ssh/ssh_host_ed25519_key.pub"]).text.split()[1] in (
        (folder.keys / "known_hosts").read_text()
    )
    result = json.loads(cloud.run(["cat", "/run/cloud-init/result.json"]).text)["v1"]
    assert (result["datasource"].split()[0], result["errors"]) == ("DataSourceNoCloud", [])
    assert record.uuid in cloud.run(["cat", "/run/cloud-init/instance-data.json"]).text
    assert cloud.script("ls /etc/systemd/network").text.split() == [f"10-cloud-init-{_card(cloud)}.network"]
    command_line, loader, root = cloud.script(
        "cat /proc/cmdline; ls /sys/firmware/efi/efivars | grep LoaderInfo; findmnt -no SOURCE /"
    ).text.splitlines()
    assert "initrd=" in command_line  # as the image's own boot loader writes it
    assert (loader[:11], root) == ("LoaderInfo-", "/dev/vda2")
    seed = seed_of(manager, cloud)
    assert stat.S_IMODE(seed.stat().st_mode) == 0o600
    assert cloud.script("blkid -s LABEL -o value /dev/vdb; cat /sys/block/vdb/ro").text.split() == ["cidata", "1"]
    assert cloud.up().first_boot is False


def test_a_snapshot_of_a_cloud_image_is_restored_and_forked(cloud: Box, manager: Manager) -> None:
    seed = seed_of(manager, cloud)
    before = digest_of(seed)
    *_, boot_id = cloud.script(IDENTITY).text.split()
    assert cloud.snapshot("clean").engine == "live"
    cloud.script("echo dirty >/root/canary")
    restored = cloud.restore("clean")
    assert (restored.engine, restored.proven) == ("live", True)
    assert cloud.script("ls /root; cat /proc/sys/kernel/random/boot_id").text == f"{boot_id}\n"
    with cloud.fork("clean", count=1) as (clone,):
        record = manager.site.record(clone.name)
        told = clone.script(IDENTITY).text.split()
        assert told == [record.host_name, record.host_name, record.machine_id, boot_id]
        own = seed_of(manager, clone)
        assert own.parent != seed.parent
        assert (digest_of(own) != before, own.stat().st_size) == (True, seed.stat().st_size)
        assert clone.snapshot("own").engine == "live"
        assert clone.restore("own").proven
    assert digest_of(seed) == before


def test_what_a_box_is_told_anew_leaves_its_snapshots_as_they_are(cloud: Box, manager: Manager) -> None:
    if "clean" not in [one.name for one in cloud.snapshots()]:
        cloud.snapshot("clean")
    folder = manager.site.state.box(cloud.name)
    (first,) = folder.seeds
    before = cloud.show().settings
    cloud.update(replace(before, user="tester"))
    second = DomainXml.read(folder.definition).seed
    assert second != first
    assert cloud.restore("clean").proven  # whom it talks to is root, whoever uses it
    cloud.update(before)
    cloud.kill()
    cloud.update(replace(before, description="swept"))
    third = DomainXml.read(folder.definition).seed
    assert set(folder.seeds) == {first, third}
    Path(first).unlink()
    with pytest.raises(StateError, match=f"'{first}' is missing"):
        cloud.restore("clean")


def test_a_stored_cloud_image_forgets_who_it_was_and_its_boxes_are_told_anew(
    cloud: Box, manager: Manager, tmp_path: Path
) -> None:
    cloud.up()
    image = cloud.store(f"{NAME}-stored").image
    try:
        assert (image.seed, image.agent) == ("nocloud", False)
        with look.opened(image.disk, tmp_path) as system:
            assert system.names("/var/lib/cloud") == []
            assert set(system.find(["/etc/machine-id", "/root/.ssh/authorized_keys"])) == {"/etc/machine-id"}
        box = manager.define(new_name(), BoxSettings(image=image.name, ram=RAM, boot_timeout=timedelta(minutes=4)))
        try:
            assert box.up().first_boot
            host_name, *_ = box.script(IDENTITY).text.split()
            assert host_name == manager.site.record(box.name).host_name
            own = keys.load(manager.site.state.box(box.name).keys / "login").public
            lines = box.run(["cat", "/root/.ssh/authorized_keys"]).text.splitlines()
            assert [line for line in lines if line.split()[-1].startswith("vmimagemanager-")] == [own]
        finally:
            box.undefine(force=True)
    finally:
        manager.remove_image(image.name)


def _card(box: Box) -> str:
    return box.script("cd /sys/class/net; ls -d e*").text.strip()
