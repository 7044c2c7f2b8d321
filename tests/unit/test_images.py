"""The image store, with a build that takes no time, and what is laid into a Debian tree."""

from __future__ import annotations

import gzip
import io
import logging
import os
import signal
import stat
import subprocess
import sys
import tarfile
import textwrap
import threading
from collections.abc import Collection, Mapping
from pathlib import Path

import pytest

from vmimagemanager import disks, process
from vmimagemanager.errors import ImageError, SpaceError, StateError, ToolError, UsageError
from vmimagemanager.images import RECIPES, Image, ImageStore, debian, intake, layout, manifest, userns
from vmimagemanager.images import stage as stages
from vmimagemanager.images.catalogue import Recipe
from vmimagemanager.progress import Progress, silent

HERE = Path(__file__).parents[2]


def nobody() -> Mapping[str, Collection[str]]:
    return {}


class Builder:
    """Stands in for `debian.build`: the disk differs each time, kernel and initrd stay."""

    def __init__(self) -> None:
        self.count = 0
        self.fails: BaseException | None = None

    def __call__(self, recipe: Recipe, stage: Path, *, mirror: str | None, progress: Progress) -> debian.Built:
        progress("building", 0.5)
        self.count += 1
        (stage / "disk.qcow2").write_bytes(b"disk %d" % self.count)
        (stage / "kernel").write_bytes(b"kernel")
        (stage / "initrd").write_bytes(b"initrd")
        if self.fails is not None:
            raise self.fails
        return debian.Built(
            disk=stage / "disk.qcow2", kernel=stage / "kernel", initrd=stage / "initrd", packages={"bash": "5.2-1"}
        )


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Builder:
    builder = Builder()
    monkeypatch.setattr(debian, "build", builder)
    return builder


@pytest.fixture
def store(tmp_path: Path, builder: Builder) -> ImageStore:
    return ImageStore(tmp_path / "state")


def blobs(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "state" / "blobs" / "sha512").iterdir()}


def staged(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "state" / "stage" / "images").iterdir() if path.name != "lock"]


# What the store holds


def test_an_empty_store_lists_nothing_and_makes_no_folder(tmp_path: Path, store: ImageStore) -> None:
    assert store.list() == []
    assert not (tmp_path / "state").exists()


def test_a_built_image_is_found_again_by_another_store(tmp_path: Path, store: ImageStore) -> None:
    built = store.build("debian-12")
    assert ImageStore(tmp_path / "state").get("debian-12") == built
    assert (built.address, built.agent, built.user, built.packages) == ("debian-12:1", True, "root", {"bash": "5.2-1"})
    assert built.created.utcoffset() is not None
    assert built.command_line.startswith("root=/dev/vda ")
    assert built.disk.read_bytes() == b"disk 1"
    assert built.kernel is not None
    assert built.kernel.read_bytes() == b"kernel"


def test_blobs_can_be_read_by_all_and_written_by_none(store: ImageStore) -> None:
    for path in store.build("debian-12").files.values():
        assert stat.S_IMODE(path.stat().st_mode) == 0o444
        for folder in (path.parent, path.parent.parent):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o755


def test_generations_count_up_and_the_latest_is_meant_by_the_bare_name(store: ImageStore) -> None:
    for _ in range(11):
        store.build("debian-12")
    assert store.get("debian-12").generation == 11  # not 9, which is last in the alphabet
    assert store.get("debian-12:2").disk.read_bytes() == b"disk 2"
    assert [image.generation for image in store.list()] == list(range(1, 12))


def test_files_with_the_same_content_are_kept_once(tmp_path: Path, store: ImageStore) -> None:
    first, second = store.build("debian-12"), store.build("debian-13")
    assert (first.kernel, first.initrd) == (second.kernel, second.initrd)
    assert len(blobs(tmp_path)) == 4


def test_builds_at_the_same_time_become_two_generations(tmp_path: Path, store: ImageStore) -> None:
    threads = [threading.Thread(target=store.build, args=("debian-12",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [image.generation for image in store.list()] == [1, 2, 3, 4]
    assert staged(tmp_path) == []


def test_progress_is_told_up_to_the_end(store: ImageStore) -> None:
    told: list[tuple[str, float | None]] = []
    store.build("debian-12", progress=lambda phase, fraction: told.append((phase, fraction)))
    assert told == [("building", 0.5), ("storing the image", 0.95), ("done", 1.0)]


# What is not there


def test_a_missing_image_names_the_nearest_and_how_to_build_one(store: ImageStore) -> None:
    store.build("debian-12")
    with pytest.raises(ImageError, match="no image 'debain-12'") as caught:
        store.get("debain-12")
    assert "Did you mean 'debian-12'?" in caught.value.hint
    assert "There are: debian-12." in caught.value.hint


def test_a_missing_image_that_has_a_recipe_says_how_it_is_made(store: ImageStore) -> None:
    with pytest.raises(ImageError) as caught:
        store.get("debian-13")
    assert caught.value.hint == "There are no images yet. 'vmimagemanager image build debian-13' makes it."


def test_a_missing_generation_lists_those_that_exist(store: ImageStore) -> None:
    store.build("debian-12")
    with pytest.raises(ImageError, match="no generation 7") as caught:
        store.get("debian-12:7")
    assert caught.value.hint == "It has 1."


@pytest.mark.parametrize(
    "name", ["", "..", "../x", "a/b", "A", "a b", "a'b", "x\n", "\x1b[31m", "-x", "a:b", "a:0", "a:-1", "a:1:2", "é"]
)
def test_a_name_that_could_leave_the_store_is_a_usage_error(store: ImageStore, name: str) -> None:
    with pytest.raises(UsageError):
        store.get(name)


def test_a_name_without_recipe_cannot_be_built(store: ImageStore) -> None:
    with pytest.raises(ImageError, match=r"Did you mean 'debian-1[23]'") as caught:
        store.build("debian-11")
    assert all(name in caught.value.hint for name in RECIPES)


# Interruption


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ToolError("failed"), SpaceError("full")])
def test_an_interrupted_build_leaves_nothing(
    tmp_path: Path, store: ImageStore, builder: Builder, error: BaseException
) -> None:
    builder.fails = error
    with pytest.raises(type(error)):
        store.build("debian-12")
    assert store.list() == []
    assert staged(tmp_path) == []


@pytest.mark.parametrize("step", range(1, 6))
def test_a_store_that_stops_at_any_rename_is_whole_and_the_next_build_works(
    tmp_path: Path, store: ImageStore, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    first = store.build("debian-12")
    steps = 0

    plainly = Path.rename

    def rename(self: Path, target: Path) -> Path:
        nonlocal steps
        steps += 1
        if steps == step:
            raise KeyboardInterrupt
        return plainly(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        patch.setattr(Path, "replace", rename)
        try:
            store.build("debian-12")
        except KeyboardInterrupt:
            assert [image.address for image in store.list()] == ["debian-12:1"]
    store.verify(first)
    latest = store.build("debian-12")
    store.verify(latest)
    store.remove(first.address, used_by=nobody)
    remaining = {digest for image in store.list() for digest in image.digests.values()}
    assert blobs(tmp_path) == remaining


def test_what_a_killed_build_left_is_swept_by_the_next_and_a_live_one_is_not(tmp_path: Path, store: ImageStore) -> None:
    program = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        from vmimagemanager.images.stage import stage
        with stage(Path(sys.argv[1]), purpose="test") as own:
            (own / "half").write_text("half a build")
            print(own, flush=True)
            sys.stdin.read()
        """
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path / "state"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=HERE,
    )
    assert child.stdout is not None
    assert child.stdin is not None
    own = Path(child.stdout.readline().strip())
    try:
        store.build("debian-12")
        assert (own / "half").exists()
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdin.close()
        child.stdout.close()
    assert (own / "half").exists()
    store.build("debian-12")
    assert staged(tmp_path) == []


def test_a_stage_below_a_closed_folder_gets_a_folder_that_others_can_reach(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with stages.stage(closed, purpose="test") as own:
        place = stages.reachable_folder(own)
        assert stat.S_IMODE(place.stat().st_mode) == 0o1777
        assert not place.is_relative_to(closed)
        assert place.is_dir()
    assert not place.exists()


def test_a_forged_link_out_of_a_stage_removes_nothing(tmp_path: Path) -> None:
    precious = tmp_path / "vmimagemanager-stage-precious"
    precious.mkdir()
    with stages.stage(tmp_path / "state", purpose="test") as own:
        (own / "outside").symlink_to(precious)
    assert precious.is_dir()


def test_a_stale_stage_that_cannot_be_removed_is_no_obstacle(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "stage" / "images" / "old").mkdir(parents=True)

    def refuse(path: Path) -> None:
        if path.name == "old":
            raise StateError(f"Cannot remove '{path}'.")
        process.run(["rm", "-r", path])

    with caplog.at_level(logging.WARNING), stages.stage(tmp_path, purpose="test", remove=refuse):
        pass
    assert "cannot be removed" in caplog.text


# Removal


def test_a_removed_image_is_gone_with_the_blobs_that_nobody_else_has(tmp_path: Path, store: ImageStore) -> None:
    first, second = store.build("debian-12"), store.build("debian-12")
    removed, _ = store.remove("debian-12:1", used_by=nobody)
    assert removed == [first]
    assert store.list() == [second]
    assert blobs(tmp_path) == set(second.digests.values())
    store.verify(second)


def test_a_bare_name_removes_all_generations(tmp_path: Path, store: ImageStore) -> None:
    store.build("debian-12"), store.build("debian-12")
    kept = store.build("debian-13")
    store.remove("debian-12", used_by=nobody)
    assert store.list() == [kept]
    assert not (tmp_path / "state" / "images" / "debian-12").exists()


def test_an_image_in_use_is_refused_with_its_users_and_nothing_is_removed(store: ImageStore) -> None:
    used, _ = store.build("debian-12"), store.build("debian-12")
    before = store.list()
    with pytest.raises(ImageError, match="in use by db, web") as caught:
        store.remove("debian-12", used_by=lambda: {used.digests["disk"]: ["web", "db"]})
    assert caught.value.hint == "Undefine what stands on it first: vmimagemanager undefine db"
    assert store.list() == before


def test_what_another_generation_also_has_does_not_make_an_image_used(store: ImageStore) -> None:
    first, second = store.build("debian-12"), store.build("debian-12")
    in_use = {digest: ["web"] for digest in first.digests.values()}
    store.remove(second.address, used_by=lambda: in_use)  # the same kernel, but not the disk that 'web' stands on
    store.verify(first)


def test_a_missing_image_cannot_be_removed(store: ImageStore) -> None:
    with pytest.raises(ImageError, match="no image"):
        store.remove("debian-12", used_by=nobody)


# Damage


def test_verify_finds_changed_and_missing_files(store: ImageStore) -> None:
    image = store.build("debian-12")
    store.verify(image)
    image.disk.chmod(0o644)
    image.disk.write_bytes(b"disk 2")
    with pytest.raises(ImageError, match="damaged"):
        store.verify(image)
    image.disk.unlink()
    with pytest.raises(ImageError, match="missing"):
        store.verify(image)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("agent = true", 'agent = "yes"'),
        ('name = "debian-12"', 'name = "debian-13"'),
        ('disk = "', 'disk = "../../'),
        ("command_line", "commandline"),
        ("format = 1", "format = 99"),
        ("[digests]", "[digests"),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path: Path, store: ImageStore, old: str, new: str) -> None:
    store.build("debian-12")
    path = tmp_path / "state" / "images" / "debian-12" / "1" / "manifest.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(StateError, match=r"images/debian-12/1"):
        store.list()


def test_a_manifest_reads_back_as_it_was_written(tmp_path: Path, store: ImageStore) -> None:
    image = store.build("debian-12")
    manifest.write(tmp_path, image)
    assert manifest.read(tmp_path, image.disk.with_name) == image


# Images of the user's


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "mine.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "16M"], check=True)
    return path


def test_what_is_there_already_is_added_again_only_when_it_is_not_to_be_reused(store: ImageStore, disk: Path) -> None:
    first = store.add("mine", disk, kernel=disk)
    assert store.add("mine", disk, kernel=disk, reuse=True) == first
    assert store.add("mine", disk, kernel=disk).generation == 2
    assert store.add("mine", disk, kernel=disk, command_line="quiet", reuse=True).generation == 3
    assert store.add("mine", disk, reuse=True).generation == 4


def test_an_added_image_is_a_copy(store: ImageStore, disk: Path) -> None:
    image = store.add("mine", disk, description="my own")
    disk.unlink()
    assert disks.info(image.disk).virtual_size == image.disk_size
    assert (image.kernel, image.agent, image.description) == (None, False, "my own")
    store.verify(image)


def test_a_raw_image_must_be_called_one(tmp_path: Path, store: ImageStore) -> None:
    raw = tmp_path / "mine.raw"
    raw.write_bytes(bytes(1 << 20))
    with pytest.raises(ImageError, match="cannot be recognised"):
        store.add("mine", raw)
    assert store.add("mine", raw, disk_format="raw").disk_size.bytes == 1 << 20


def test_an_image_with_a_backing_file_is_refused(tmp_path: Path, store: ImageStore, disk: Path) -> None:
    overlay = tmp_path / "overlay.qcow2"
    disks.create_overlay(overlay, disk)
    with pytest.raises(ImageError, match="backing file"):
        store.add("mine", overlay)
    assert store.list() == []


def test_an_image_with_a_data_file_is_refused(tmp_path: Path, store: ImageStore) -> None:
    path = tmp_path / "evil.qcow2"
    options = f"data_file={tmp_path / 'data'},data_file_raw=on"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, "1M"], check=True)
    with pytest.raises(ImageError, match="another file"):
        store.add("mine", path)


def test_other_formats_are_refused(store: ImageStore, disk: Path) -> None:
    with pytest.raises(ImageError, match="expected one of qcow2"):
        store.add("mine", disk, disk_format="qed")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path, store: ImageStore, disk: Path) -> None:
    with pytest.raises(ImageError, match="does not exist"):
        store.add("mine", tmp_path / "missing")
    with pytest.raises(ImageError, match="does not exist"):
        store.add("mine", disk, kernel=tmp_path / "missing")
    assert store.list() == []


def test_too_little_space_is_found_before_the_copy(
    store: ImageStore, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise SpaceError("full")

    monkeypatch.setattr(intake, "require_space", full)
    with pytest.raises(SpaceError):
        store.add("mine", disk)


# The Debian recipe


def tar_of(path: Path, files: Mapping[str, bytes | None]) -> Path:
    """Write a tar; content None makes a symbolic link to /etc/shadow."""
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            if content is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/shadow"
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


STATUS = b"""\
Package: bash
Status: install ok installed
Version: 5.2-1
Description: a shell
 Version: 9

Package: gone
Status: deinstall ok config-files
Version: 1

Package: adduser
Status: hold ok installed
Version: 3
"""


def test_kernel_initrd_and_packages_are_read_out_of_the_tar(tmp_path: Path) -> None:
    files = {
        "./boot/vmlinuz-6.1": b"kernel",
        "./boot/initrd.img-6.1": gzip.compress(b"initrd"),
        "./var/lib/dpkg/status": STATUS,
    }
    found, packages = debian._take_out(tar_of(tmp_path / "root.tar", files), tmp_path, uefi=False)
    assert found["kernel"].read_bytes() == b"kernel"
    assert found["initrd"].read_bytes() == b"initrd"  # unpacked here, because the guest's kernel would do it slowly
    assert list(packages.items()) == [("adduser", "3"), ("bash", "5.2-1")]


@pytest.mark.parametrize(
    "files",
    [
        {"./boot/initrd.img-6.1": b"x"},
        {"./boot/vmlinuz-6.1": None, "./boot/initrd.img-6.1": b"x"},
        {"./boot/vmlinuz-6.1": b"x", "./boot/vmlinuz-6.2": b"x", "./boot/initrd.img-6.1": b"x"},
    ],
)
def test_a_tree_without_exactly_one_kernel_is_refused_and_no_link_is_followed(
    tmp_path: Path, files: Mapping[str, bytes | None]
) -> None:
    with pytest.raises(ImageError, match="vmlinuz"):
        debian._take_out(tar_of(tmp_path / "root.tar", files), tmp_path, uefi=False)


def test_what_is_laid_into_the_tree_has_the_last_word_and_identities_are_left_out(tmp_path: Path) -> None:
    files: dict[str, bytes | None] = {
        "./etc/machine-id": b"0123456789abcdef\n",
        "./etc/resolv.conf": b"nameserver 192.0.2.1\n",
        "./etc/ssh/ssh_host_ed25519_key": b"secret",
        "./etc/ssh/sshd_config": b"UsePAM yes\n",
        "./var/lib/systemd/random-seed": b"seed",
        "./var/lib/dbus/machine-id": b"id",
        "./var/lib/apt/lists/archive.example_debian_dists_bookworm_Release": b"list",
    }
    archive, tree = tar_of(tmp_path / "root.tar", files), tmp_path / "tree"
    with tarfile.open(archive, "a") as stream:
        layout.add(stream, layout.SYSTEM)
    tree.mkdir()
    exclusions = [f"--exclude={pattern}" for pattern in layout.LEFT_OUT]
    process.run(["tar", "--extract", "--no-same-owner", *exclusions, f"--file={archive}", f"--directory={tree}"])
    assert (tree / "etc/machine-id").read_bytes() == b""
    assert (tree / "etc/resolv.conf").readlink() == Path("../run/systemd/resolve/stub-resolv.conf")
    assert [path.name for path in (tree / "etc/ssh").iterdir() if path.is_file()] == ["sshd_config"]
    assert (tree / "etc/systemd/system/apt-daily.timer").readlink() == Path("/dev/null")
    left = [str(path.relative_to(tree)) for path in (tree / "var").rglob("*") if path.is_file()]
    assert left == []


def test_missing_programs_are_named_with_the_command_that_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    found = process.find
    monkeypatch.setattr(process, "find", lambda name: None if name in {"mmdebstrap", "mkfs.ext4"} else found(name))
    with pytest.raises(ToolError, match="e2fsprogs, mmdebstrap") as caught:
        debian._require_tools(RECIPES["debian-12"])
    assert caught.value.hint.startswith("apt-get install e2fsprogs mmdebstrap")


@pytest.mark.parametrize(
    ("missing", "lines", "hint"),
    [
        ("newuidmap", True, "apt-get install uidmap"),
        ("", False, "As root: usermod --add-subuids 100000-165535 "),
    ],
)
def test_what_forbids_user_namespaces_is_named_with_what_mends_it(
    monkeypatch: pytest.MonkeyPatch, missing: str, lines: bool, hint: str
) -> None:
    monkeypatch.setattr(process, "find", lambda name: None if name == missing else Path("/usr/bin") / name)
    monkeypatch.setattr(userns, "_has_line", lambda table, user: lines)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    refused = process.Finished(argv=("mmdebstrap",), status=1, stdout=b"", stderr=b"E: no\n")
    monkeypatch.setattr(process, "run", lambda *_, **__: refused)
    with pytest.raises(ToolError, match="cannot be built here") as caught:
        userns.require()
    assert caught.value.hint.startswith(hint)
    assert caught.value.detail == "E: no"


def test_an_option_is_not_a_mirror(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="not a mirror"):
        debian.build(RECIPES["debian-12"], tmp_path, mirror="--hook-dir=/tmp", progress=silent)


def test_images_are_values(store: ImageStore) -> None:
    image = store.build("debian-12")
    assert isinstance(image, Image)
    assert {image: 1}[store.get("debian-12")] == 1
