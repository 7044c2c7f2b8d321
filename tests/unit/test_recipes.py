"""Recipes: how files are read, what mmdebstrap is told, and what an image's time is."""

from __future__ import annotations

import shutil
import struct
import tarfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmimagemanager.errors import ImageError, StateError, ToolError, UsageError
from vmimagemanager.images import RECIPES, biosboot, cloudlayout, debian, epoch, layout, recipefile
from vmimagemanager.images.catalogue import DISTRIBUTIONS, LaidIn, Recipe
from vmimagemanager.units import Size

WHOLE = """\
suite = "bookworm"
distribution = "debian"
components = ["main", "contrib"]
packages = ["gcc", "make=4.3-4.1", "libc6-dev/bookworm"]
mirror = "http://archive.example/debian"
size = "20G"
hooks = ["warm.sh"]
user = "build"
uefi = true
epoch = 2025-05-20T00:00:00Z
description = "a build machine"

[[files]]
path = "/etc/motd"
content = "Hello.\\n"

[[files]]
path = "/usr/local/bin/tool"
source = "warm.sh"
mode = "0755"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "warm.sh").write_text("#!/bin/sh\ntrue\n")
    return tmp_path


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def test_every_key_of_a_recipe_is_read(folder: Path) -> None:
    recipe = recipefile.read(written(folder, WHOLE), "builder")
    assert recipe == Recipe(
        name="builder",
        suite="bookworm",
        description="a build machine",
        components=("main", "contrib"),
        packages=("gcc", "make=4.3-4.1", "libc6-dev/bookworm"),
        mirror="http://archive.example/debian",
        size=Size(20 << 30),
        files=(
            LaidIn(path="/etc/motd", content=b"Hello.\n"),
            LaidIn(path="/usr/local/bin/tool", content=b"#!/bin/sh\ntrue\n", mode=0o755),
        ),
        hooks=(b"#!/bin/sh\ntrue\n",),
        user="build",
        uefi=True,
        epoch=datetime(2025, 5, 20, tzinfo=UTC),
    )


def test_only_the_suite_is_needed(folder: Path) -> None:
    recipe = recipefile.read(written(folder, 'suite = "trixie"\n'), "mine")
    assert recipe == Recipe(name="mine", suite="trixie", description="built by recipe.toml")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "'suite'"),
        ('suite = "../x"', "the name of a release"),
        ('suite = "-x"', "the name of a release"),
        ('suite = "a"\npackage = []', "the nearest is 'packages'"),
        ('suite = "a"\npackages = ["--x"]', r"packages\[1\]"),
        ('suite = "a"\npackages = ["a,b"]', "the name of a package"),
        ('suite = "a"\npackages = "gcc"', "a list of packages"),
        ('suite = "a"\nmirror = "--hook-dir=/tmp"', "an address"),
        ('suite = "a"\ndistribution = "gentoo"', "one of debian, ubuntu"),
        ('suite = "a"\nsize = "1M"', "from 1G"),
        ('suite = "a"\nhooks = ["missing"]', "missing"),
        ('suite = "a"\nhooks = ["recipe.toml"]', "interpreter"),
        ('suite = "a"\nuser = "a b"', "the name of a user"),
        ('suite = "a"\nuefi = "yes"', "true or false"),
        ('suite = "a"\nuefi = true\nbios = true', "one boot loader"),
        ('suite = "a"\nepoch = 2025-05-20', "a moment with a zone"),
        ('suite = "a"\n[[files]]\npath = "etc/x"\ncontent = ""', "absolute path"),
        ('suite = "a"\n[[files]]\npath = "/etc/../x"\ncontent = ""', "absolute path"),
        ('suite = "a"\n[[files]]\npath = "/etc/x"', "either 'source'"),
        ('suite = "a"\n[[files]]\npath = "/etc/x"\ncontent = ""\nmode = "abc"', "octal"),
        ("suite = ", "not TOML"),
    ],
)
def test_what_is_not_understood_is_named(folder: Path, text: str, reason: str) -> None:
    with pytest.raises((ImageError, StateError), match=reason):
        recipefile.read(written(folder, text), "mine")


def test_a_name_that_cannot_be_one_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError):
        recipefile.read(written(folder, WHOLE), "../x")


VALUES = st.text() | st.integers() | st.lists(st.text())


def _with(key: str, value: object) -> str:
    return f"suite = 'a'\n{key} = {value!r}"


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.text() | st.builds(_with, st.sampled_from(list(recipefile.KEYS)), VALUES))
def test_any_text_is_a_recipe_or_is_refused(folder: Path, content: str) -> None:
    path = folder / "fuzz.toml"
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    try:
        recipe = recipefile.read(path, "fuzz")
    except (ImageError, StateError):
        return
    assert not any(str(word).startswith("-") for word in (recipe.suite, *recipe.packages))


def test_mmdebstrap_is_told_what_a_recipe_says(folder: Path) -> None:
    recipe = recipefile.read(written(folder, WHOLE), "builder")
    words = [str(word) for word in debian.words(recipe, Path("/s t"), Path("/s t/root.tar"), recipe.mirror)]
    assert words[-3:] == ["bookworm", "/s t/root.tar", "http://archive.example/debian"]
    assert "--components=main,contrib" in words
    (include,) = (word for word in words if word.startswith("--include="))
    packages = include.removeprefix("--include=").split(",")
    assert {"openssh-server", "linux-image-cloud-amd64", "systemd-boot-efi", "gcc", "make=4.3-4.1"} <= set(packages)
    assert [word for word in words if "hook" in word] == [
        "--essential-hook=tar-in '/s t/early.tar' /",
        "--customize-hook=tar-in '/s t/late.tar' /",
        '--customize-hook=chroot "$1" useradd --create-home --user-group --shell /bin/bash build',
        '--customize-hook=chroot "$1" /vmimagemanager-hooks/1',
        '--customize-hook=rm -r "$1"/vmimagemanager-hooks',
    ]


def test_ubuntu_has_its_own_kernel_components_and_keyring() -> None:
    words = [str(word) for word in debian.words(RECIPES["ubuntu-24.04"], Path("/s"), Path("/s/root.tar"), None)]
    assert words[-5:] == [
        "noble",
        "/s/root.tar",
        "deb http://archive.ubuntu.com/ubuntu noble main universe",
        "deb http://archive.ubuntu.com/ubuntu noble-updates main universe",
        "deb http://security.ubuntu.com/ubuntu noble-security main universe",
    ]
    assert "--components=main,universe" in words
    assert "--keyring=/usr/share/keyrings/ubuntu-archive-keyring.gpg" in words
    (include,) = (word for word in words if word.startswith("--include="))
    assert "linux-image-virtual" in include.split(",")
    assert "cloud-amd64" not in include


def test_a_missing_keyring_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from dataclasses import replace

    monkeypatch.setitem(DISTRIBUTIONS, "ubuntu", replace(DISTRIBUTIONS["ubuntu"], keyring=tmp_path / "none"))
    with pytest.raises(ToolError, match="ubuntu-keyring"):
        debian._require_tools(RECIPES["ubuntu-24.04"])


def test_a_system_in_a_partition_is_told_which_one() -> None:
    roots = {}
    for name in ("debian-12", "debian-12-uefi", "debian-12-bios"):
        early, late = debian._early(RECIPES[name]), cloudlayout.system(RECIPES[name])
        assert early["etc/fstab"] == late["etc/fstab"]
        roots[name] = (str(early["etc/fstab"]).split()[0], "boot/grub/grub.cfg" in early)
    assert roots == {
        "debian-12": ("/dev/vda", False),
        "debian-12-uefi": ("/dev/vda2", False),
        "debian-12-bios": ("/dev/vda1", True),
    }
    assert "linux /vmlinuz root=/dev/vda1 " in str(debian._early(RECIPES["debian-12-bios"])["boot/grub/grub.cfg"])


def test_a_boot_loader_for_bios_lies_before_the_system_and_is_the_same_each_time(tmp_path: Path) -> None:
    disk, size = tmp_path / "disk.raw", Size(4 << 20)
    written = []
    for _ in range(2):
        biosboot.make(disk, size, identities=["8e1a9f0a-3c1d-4d58-8f4c-9a7c2a1b6d02"])
        biosboot.install_loader(disk, tmp_path)
        written.append(disk.read_bytes())
    first, offset = written[0], biosboot.SYSTEM_OFFSET.bytes
    assert written[1] == first
    assert (len(first), any(first[offset:])) == (offset + size.bytes, False)
    assert first[510:512] == b"\x55\xaa"
    # One partition that may be started, with the system.
    assert struct.unpack_from("<B3xB3xII", first, 446) == (0x80, 0x83, offset // 512, size.bytes // 512)
    assert not any(first[462:510])
    assert struct.unpack_from("<I", first, 440) == (0x8E1A9F0A,)
    # GRUB's first sector reads the second one, and that one reads the rest of the core.
    assert struct.unpack_from("<Q", first, 0x5C) == (1,)
    begin, sectors = struct.unpack_from("<QH", first, 512 + 512 - 12)
    end = 512 * (begin + sectors)
    assert (begin, end < offset, any(first[end - 512 : end]), any(first[end:offset])) == (2, True, True, False)


def test_another_boot_loader_than_the_one_that_is_known_is_refused(tmp_path: Path) -> None:
    disk, modules = tmp_path / "disk.raw", tmp_path / "modules"
    shutil.copytree(biosboot.MODULES, modules)
    (modules / "boot.img").write_bytes(bytes(512))
    biosboot.make(disk, Size(4 << 20), identities=["8e1a9f0a-3c1d-4d58-8f4c-9a7c2a1b6d02"])
    with pytest.raises(ImageError, match="expected GRUB 2"):
        biosboot.install_loader(disk, tmp_path, modules=modules)


def test_files_and_hooks_are_laid_in_without_changing_folders_that_are_there(folder: Path) -> None:
    recipe = recipefile.read(written(folder, WHOLE), "builder")
    path = folder / "late.tar"
    with tarfile.open(path, "w") as archive:
        layout.add(archive, debian._late(recipe), epoch=5, with_folders=False)
    with tarfile.open(path) as archive:
        found = {member.name: (member.mode, member.mtime) for member in archive}
    assert found == {
        "./etc/motd": (0o644, 5),
        "./usr/local/bin/tool": (0o755, 5),
        "./vmimagemanager-hooks/1": (0o755, 5),
    }


def test_the_identity_of_a_disk_follows_from_what_it_is_made_of() -> None:
    recipe = RECIPES["debian-12"]
    first = debian._identity(recipe, 1, "system")
    assert first == debian._identity(recipe, 1, "system")
    others = [(recipe, 2, "system"), (recipe, 1, "disk"), (RECIPES["debian-13"], 1, "system")]
    assert len({first, *(debian._identity(*other) for other in others)}) == 4


# The archive's time


def release(folder: Path, suite: str, text: str) -> str:
    place = folder / "archive" / "dists" / suite
    place.mkdir(parents=True)
    (place / "InRelease").write_text(text)
    return f"file:{folder}/archive"


def test_the_time_of_an_image_is_that_of_the_archive_or_of_its_recipe(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    mirror = release(tmp_path, "bookworm", "Suite: stable\nDate: Sat, 17 May 2025 08:47:01 UTC\n")
    assert epoch.of(RECIPES["debian-12"], mirror, tmp_path) == 1747471621
    assert epoch.of(RECIPES["debian-12"], f"deb [trusted=yes] {mirror} bookworm main", tmp_path) == 1747471621
    own = Recipe(name="x", suite="bookworm", description="", epoch=datetime(2001, 1, 1, tzinfo=UTC))
    assert epoch.of(own, "file:/nowhere", tmp_path) == 978307200


def test_a_time_in_the_future_is_not_believed(tmp_path: Path) -> None:
    mirror = release(tmp_path, "bookworm", "Date: Sat, 17 May 2999 08:47:01 UTC\n")
    assert epoch.of(RECIPES["debian-12"], mirror, tmp_path) < datetime(2900, 1, 1, tzinfo=UTC).timestamp()


def test_an_archive_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="cannot be reached") as caught:
        epoch.of(RECIPES["debian-12"], f"file:{tmp_path}/none", tmp_path)
    assert "--mirror" in caught.value.hint
