"""A recipe that is really built, twice: what it says is in the image, and both times the image is the same."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmimagemanager import disks
from vmimagemanager.images import ImageStore, bootable, layout, recipefile

RECIPE = """\
suite = "bookworm"
size = "2G"
hooks = ["hook.sh"]
user = "tester"
uefi = true

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


def test_a_recipe_is_followed_and_gives_the_same_image_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "PACKAGES", ("initramfs-tools",))  # a small one: what is not in it takes no time
    (folder / "hook.sh").write_text(HOOK)
    (folder / "recipe.toml").write_text(RECIPE)
    recipe = recipefile.read(folder / "recipe.toml", "small")
    images = [ImageStore(folder / f"state-{number}").build("small", recipe=recipe) for number in (1, 2)]
    assert images[0].digests == images[1].digests
    assert (images[0].user, images[0].firmware) == ("tester", "uefi")
    raw = folder / "disk.raw"
    disks.convert(images[0].disk, raw, source_format="qcow2", target_format="raw")
    assert debugfs(raw, "cat /etc/hooked") == "hooked\n"
    assert "Mode:  0600" in debugfs(raw, "stat /etc/laid-in")
    assert "tester" in debugfs(raw, "cat /etc/passwd")
    assert "File not found" in debugfs(raw, "stat /vmimagemanager-hooks")


def debugfs(raw: Path, command: str) -> str:
    device = f"{raw}?offset={bootable.SYSTEM_OFFSET.bytes}"
    finished = subprocess.run(["/usr/sbin/debugfs", "-R", command, device], capture_output=True, check=True)
    return finished.stdout.decode() + finished.stderr.decode().partition("\n")[2]
