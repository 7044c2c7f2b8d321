"""The seed of a cloud image: a file system that others read, and what it says."""

from __future__ import annotations

import io
import json
import stat
from pathlib import Path

import pytest

from vmimagemanager import process
from vmimagemanager.errors import ImageError, StateError
from vmimagemanager.images import ImageStore, manifest, seed
from vmimagemanager.images.seed import Seed

SEED = Seed(
    instance="83596ed3-5b0c-4bac-875c-5d7a393f7938",
    host_name="web-1",
    authorized_key="ssh-ed25519 AAAA login",
    host_key="ssh-ed25519 BBBB host",
    private_host_key="-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl: #\n-----END OPENSSH PRIVATE KEY-----\n",
    users=("tester",),
    mac="52:54:00:96:d5:52",
)


def files(path: Path) -> dict[str, bytes]:
    import pycdlib

    disc = pycdlib.PyCdlib()
    disc.open(str(path))
    found = {}
    for _, _, names in disc.walk(rr_path="/"):
        for name in names:
            content = io.BytesIO()
            disc.get_file_from_iso_fp(content, rr_path=f"/{name}")
            found[name] = content.getvalue()
    disc.close()
    return found


def test_a_seed_is_a_small_file_system_labelled_cidata_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "seed.iso"
    seed.write(path, SEED)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_size == 256 << 10
    content = path.read_bytes()
    assert content[0x8001:0x8006] == b"CD001"
    assert content[0x8028:0x8048] == b"cidata".ljust(32)  # the volume's identifier: ECMA-119, 8.4.7
    assert files(path) == SEED.files()
    blkid = process.require("blkid", package="util-linux")
    found = process.run([blkid, "-o", "value", "-s", "LABEL", path]).stdout
    assert found == b"cidata\n"


def test_a_guest_is_told_who_it_is() -> None:
    told = SEED.files()
    assert sorted(told) == ["meta-data", "network-config", "user-data"]
    assert json.loads(told["meta-data"]) == {"instance-id": SEED.instance, "local-hostname": "web-1"}
    first, _, rest = told["user-data"].partition(b"\n")
    user = json.loads(rest)
    assert first == b"#cloud-config"
    assert user["ssh_authorized_keys"] == [SEED.authorized_key]
    assert user["ssh_keys"] == {"ed25519_private": SEED.private_host_key, "ed25519_public": SEED.host_key}
    assert (user["disable_root"], user["ssh_pwauth"]) == (False, False)
    assert [one if isinstance(one, str) else one["name"] for one in user["users"]] == ["default", "tester"]
    network = json.loads(told["network-config"])
    assert network["ethernets"]["vmimagemanager"] == {"match": {"macaddress": SEED.mac}, "dhcp4": True}


def test_a_box_without_a_network_configures_none() -> None:
    from dataclasses import replace

    assert json.loads(replace(SEED, mac=None).files()["network-config"]) == {"version": 2, "ethernets": {}}


def test_seeds_of_boxes_have_one_size_and_a_huge_one_is_refused() -> None:
    assert len(seed.iso({"user-data": b"x" * 100_000})) == len(seed.iso(SEED.files()))
    assert len(seed.iso({"user-data": b"x" * 300_000})) == 512 << 10
    with pytest.raises(ImageError, match="expected at most"):
        seed.iso({"user-data": bytes(2 << 20)})


def test_a_manifest_keeps_the_kind_of_seed_and_refuses_another(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(1 << 20))
    store = ImageStore(tmp_path / "state")
    image = store.add("cloud", disk, disk_format="raw", seed="nocloud", firmware="uefi", user="debian")
    assert (image.seed, image.firmware) == ("nocloud", "uefi")
    assert store.add("plain", disk, disk_format="raw").seed == ""
    path = tmp_path / "state" / "images" / "cloud" / "1" / manifest.FILE
    path.write_text(path.read_text().replace('"nocloud"', '"other"'))
    with pytest.raises(StateError, match="'seed' is 'other': expected"):
        store.get("cloud")
