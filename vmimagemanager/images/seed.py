"""The NoCloud seed of cloud-init: a small read-only disk from which a cloud image learns who it is at its first boot.

It is an ISO 9660 file system with the label ``cidata``: https://docs.cloud-init.io/en/latest/reference/datasources/nocloud.html.
Its files are YAML, and JSON is YAML: no text of ours can mean something else there.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmimagemanager.errors import ImageError

NOCLOUD = "nocloud"
KINDS = ("", NOCLOUD)
LABEL = "cidata"
_STEP = 256 << 10  # QEMU tells the guest how large the disk is, and a clone's is to be as large as the snapshot's
_MOST = 1 << 20
_CONFIG = "#cloud-config\n"
_SSHD = "/etc/ssh/sshd_config.d/00-vmimagemanager.conf"
_HOST_KEY = "ed25519"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    """What a guest is told; keys are in OpenSSH's formats, the public ones one line each.

    cloud-init does once what belongs to an ``instance``: a guest that sees another one takes its identity anew.
    ``users`` beside root, and the image's own user, are made and may become root.  The card with the address ``mac`` is
    configured by DHCP; without one no card is configured.
    """

    instance: str
    host_name: str
    authorized_key: str
    host_key: str
    private_host_key: str
    users: Sequence[str] = ()
    mac: str | None = None

    def files(self) -> dict[str, bytes]:
        """Return the files of the seed by their names."""
        return {
            "meta-data": _json({"instance-id": self.instance, "local-hostname": self.host_name}),
            "user-data": _CONFIG.encode() + _json(self._user_data()),
            "network-config": _json(self._network()),
        }

    def _user_data(self) -> dict[str, Any]:
        made = [
            {
                "name": name,
                "shell": "/bin/sh",
                "sudo": "ALL=(ALL) NOPASSWD:ALL",
                "lock_passwd": True,
                "ssh_authorized_keys": [self.authorized_key],
            }
            for name in self.users
        ]
        return {
            "hostname": self.host_name,
            "preserve_hostname": False,
            "manage_etc_hosts": "localhost",
            # Root is whom the host talks to: it sets the clock, installs and repairs.
            "disable_root": False,
            "ssh_pwauth": False,
            # Each costs seconds under emulation, or minutes: a locale is generated, keys are printed on the console.
            "locale": "false",
            "no_ssh_fingerprints": True,
            "ssh": {"emit_keys_to_console": False},
            "users": ["default", *made],
            "ssh_authorized_keys": [self.authorized_key],
            "ssh_deletekeys": True,
            "ssh_keys": {f"{_HOST_KEY}_private": self.private_host_key, f"{_HOST_KEY}_public": self.host_key},
            "write_files": [
                {"path": _SSHD, "content": "PermitRootLogin prohibit-password\nUseDNS no\n", "permissions": "0644"}
            ],
        }

    def _network(self) -> dict[str, Any]:
        if self.mac is None:
            return {"version": 2, "ethernets": {}}
        card = {"match": {"macaddress": self.mac}, "dhcp4": True}
        return {"version": 2, "ethernets": {"vmimagemanager": card}}


def iso(files: Mapping[str, bytes]) -> bytes:
    """Return an ISO 9660 file system with these files, whose names Rock Ridge and Joliet keep, labelled `LABEL`.

    Raises ImageError when it would be larger than a megabyte.
    """
    import pycdlib

    disc = pycdlib.PyCdlib()
    disc.new(interchange_level=3, vol_ident=LABEL, joliet=3, rock_ridge="1.09")
    for number, (name, content) in enumerate(sorted(files.items())):
        disc.add_fp(io.BytesIO(content), len(content), f"/FILE{number}.;1", rr_name=name, joliet_path=f"/{name}")
    written = io.BytesIO()
    disc.write_fp(written)
    disc.close()
    found = written.getvalue()
    if len(found) > _MOST:
        raise ImageError(f"The seed of a box would have {len(found)} bytes: expected at most {_MOST}.")
    return found + bytes(-len(found) % _STEP)


def write(path: Path, seed: Seed) -> None:
    """Write a seed durably, readable by its owner alone: it holds the box's private host key."""
    from vmimagemanager.durable import replace_file

    replace_file(path, iso(seed.files()), mode=0o600)


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
