"""An image that BIOS firmware starts by its own boot loader, taken in as anybody's disk, with a user; one cold boot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest

from tests.vm.conftest import RAM, new_name
from vmimagemanager import Box, BoxSettings, Manager, disks
from vmimagemanager.hypervisor.domainxml import DomainXml
from vmimagemanager.images import RECIPES, Image

NAME = "debian-12-bios"
STARTED = "cat /proc/cmdline; findmnt -no SOURCE /; ls -d /sys/firmware/efi || echo bios"
BOOT_ID = "cat /proc/sys/kernel/random/boot_id"


@pytest.fixture(scope="module")
def built(manager: Manager) -> Image:
    name = f"{NAME}-tester"
    if name not in [image.name for image in manager.images.list()]:
        manager.images.build(name, recipe=replace(RECIPES[NAME], name=name, user="tester"))
    return manager.images.get(name)


@pytest.fixture(scope="module")
def taken_in(manager: Manager, built: Image) -> Iterator[Image]:
    """The disk of the image as a file of somebody's, who says nothing of what boots it."""
    raw = manager.state_directory / "bios.raw"
    name = new_name()
    try:
        disks.convert(built.disk, raw, source_format="qcow2", target_format="raw")
        yield manager.images.add(name, raw, disk_format="raw", agent=True, user="tester")
    finally:
        raw.unlink(missing_ok=True)
        if any(image.name == name for image in manager.images.list()):
            manager.remove_image(name)


@pytest.fixture(scope="module")
def bios(manager: Manager, taken_in: Image) -> Iterator[Box]:
    settings = BoxSettings(image=taken_in.address, ram=RAM, boot_timeout=timedelta(minutes=4))
    box = manager.define(new_name(), settings)
    try:
        assert box.up().first_boot
        yield box
    finally:
        box.undefine(force=True)


def test_bios_firmware_starts_the_disk_and_nothing_else_does(
    bios: Box, built: Image, taken_in: Image, manager: Manager
) -> None:
    for image in (built, taken_in):
        assert (image.kernel, image.initrd, image.command_line, image.firmware) == (None, None, "", "bios")
    definition = DomainXml.read(manager.site.state.box(bios.name).definition)
    assert (definition.boot.kernel, definition.boot.command_line) == (None, "")
    command_line, root, firmware = bios.script(STARTED).text.splitlines()
    assert command_line.startswith("BOOT_IMAGE=/vmlinuz ")  # as GRUB writes it
    assert (root, firmware) == ("/dev/vda1", "bios")


def test_the_box_is_used_as_the_user_of_its_image(bios: Box) -> None:
    assert (bios.show().user, bios.show().settings.user) == ("tester", None)
    assert bios.run(["id", "-un"]).text == "tester\n"


def test_it_is_restored_and_forked(bios: Box) -> None:
    boot_id = bios.script(BOOT_ID).text
    assert bios.snapshot("clean").engine == "live"
    bios.script("echo dirty >canary")
    restored = bios.restore("clean")
    assert (restored.engine, restored.proven) == ("live", True)
    assert bios.script(f"ls; {BOOT_ID}").text == boot_id
    with bios.fork("clean", count=1) as (clone,):
        assert clone.script(BOOT_ID).text == boot_id
