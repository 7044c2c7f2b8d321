"""A recipe that is really built, twice: what it says is in the image, and both times the image is the same."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmimagemanager import disks
from vmimagemanager.images import ImageStore, biosboot, bootable, layout, recipefile

RECIPE = """\
suite = "bookworm"
size = "2G"
hooks = ["hook.sh"]
user = "tester"
{firmware} = true

[[files]]
path = "/etc/laid-in"
content = "laid in\\n"
mode = "0600"
"""
HOOK = "#!/bin/sh\nset -e\ntest -f /etc/laid-in\ndate >/dev/null\necho hooked >/etc/hooked\n"


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not below tmp_path, whose folders are closed to the user ids of a build.
    with tempfile.TemporaryDirectory(prefix="vmim-test-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize(
    ("firmware", "offset"), [("uefi", bootable.SYSTEM_OFFSET.bytes), ("bios", biosboot.SYSTEM_OFFSET.bytes)]
)
def test_a_recipe_is_followed_and_gives_the_same_image_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, firmware: str, offset: int
) -> None:
    monkeypatch.setattr(layout, "PACKAGES", ("initramfs-tools",))  # a small one: what is not in it takes no time
    (folder / "hook.sh").write_text(HOOK)
    (folder / "recipe.toml").write_text(RECIPE.replace("{firmware}", firmware))
    recipe = recipefile.read(folder / "recipe.toml", "small")
    images = [ImageStore(folder / f"state-{number}").build("small", recipe=recipe) for number in (1, 2)]
    assert images[0].digests == images[1].digests
    assert (images[0].user, images[0].firmware) == ("tester", firmware)
    raw = folder / "disk.raw"
    system = f"{raw}?offset={offset}"
    disks.convert(images[0].disk, raw, source_format="qcow2", target_format="raw")
    assert debugfs(system, "cat /etc/hooked") == "hooked\n"
    assert "Mode:  0600" in debugfs(system, "stat /etc/laid-in")
    assert "tester" in debugfs(system, "cat /etc/passwd")
    assert "File not found" in debugfs(system, "stat /vmimagemanager-hooks")


def debugfs(device: str, command: str) -> str:
    finished = subprocess.run(["/usr/sbin/debugfs", "-R", command, device], capture_output=True, check=True)
    return finished.stdout.decode() + finished.stderr.decode().partition("\n")[2]
