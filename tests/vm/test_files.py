"""Files into and out of boxes that run and that are off, and whole file systems kept and put back, by real guests."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import pytest

from tests.vm.conftest import CLEAN
from vmimagemanager import Box, Manager
from vmimagemanager.boxes import offline
from vmimagemanager.boxes.record import BoxRecord
from vmimagemanager.deadline import Deadline
from vmimagemanager.errors import BoxError, ImageError, SpaceError, TransferError
from vmimagemanager.files import formats, pack
from vmimagemanager.files.formats import Format
from vmimagemanager.hypervisor import appliance

NAME = "test-files"
SMALL = "96M"
OLD = """
mkfs.ext4 -q -F -L odd -U 11111111-2222-3333-4444-555555555555 -O ^metadata_csum,^64bit -I 128 /dev/vdb || exit 50
mount /dev/vdb /mnt && mkdir -p /mnt/etc/.old && echo old >/mnt/.old && echo old >/mnt/etc/os-release && umount /mnt
"""
# Everything that a file system can hold; the capability, the label and the ACLs as what they are on the disk.
ODDITIES = r"""
mkfs.ext4 -q -F -L odd -U 11111111-2222-3333-4444-555555555555 /dev/vdb && mount /dev/vdb /mnt && cd /mnt || exit 50
mkdir -p etc/.hidden proc usr/bin var real "odd
name" && ln -s /real var/link && echo 'a system' >etc/os-release
printf 'caf' >"etc/$(printf 'caf\351')"; echo x >' leading'; echo x >-rf; echo x >'back\slash'; echo x >'*'
echo linked >etc/one; ln etc/one etc/two; ln etc/one "odd
name/three"; ln -s ../../../etc/passwd real/up; ln -s "$(printf '\377')" real/odd
truncate -s 5M etc/holes; printf end >>etc/holes
printf middle | dd of=etc/holes bs=1 seek=2000000 conv=notrunc status=none
mknod etc/null c 1 3; mknod etc/disk b 259 70000; mkfifo etc/pipe; : >etc/empty; mkdir -m 1777 tmp
cp /bin/true usr/bin/tool; chmod 6755 usr/bin/tool; chown 4000000000:1000 usr/bin/tool; chmod 6755 usr/bin/tool
cp /bin/true usr/bin/capable; chown -h 12:34 real/up; chmod 000 etc/empty; chmod 2750 real
perl -e '
    sub attribute {
        my ($path, $name, $value) = @_;
        syscall(189, $path, $name, $value, length $value, 0) == 0 or die "$path $name: $!";
    }
    attribute("usr/bin/capable", "security.capability", pack("V5", 0x2000001, 0x2000, 0, 0, 0));
    attribute("etc/os-release", "security.selinux", "system_u:object_r:etc_t:s0\0");
    attribute("etc/one", "user.bytes", pack("C*", 0, 255, 10, 61, 128));
    attribute("etc/one", "user.empty", "");
    attribute("etc/.hidden", "trusted.note", "a note");
    attribute("real/up", "trusted.link", "of a link");
    my @entries = ([1, 6, -1], [2, 4, 1000], [4, 5, -1], [8, 7, 50], [16, 7, -1], [32, 0, -1]);
    my $acl = pack("V", 2) . join("", map { pack("vvV", @$_[0], @$_[1], @$_[2] & 0xffffffff) } @entries);
    attribute("etc/os-release", "system.posix_acl_access", $acl);
    attribute("real", "system.posix_acl_default", $acl);
' || exit 51
touch -hd '2001-02-03 04:05:06.123456789 UTC' etc/one real/up etc/null; touch -d '1969-12-31 23:59:58.5 UTC' etc/empty
touch -d '2100-01-01 00:00:00.000000001 UTC' real; touch -d '2001-02-03 04:05:06.7 UTC' .
cd / && umount /mnt
"""
# One line for each file: what lstat says but for what no archive can keep, its attributes, its digest.
LISTING = r"""
mount -o ro,noatime /dev/vdb /mnt && cd /mnt || exit 50
blkid -p -o value -s UUID -s LABEL /dev/vdb >&3
export PERL_HASH_SEED=0
find . -print0 | sort -z | perl -0 -ne '
    chomp; my $path = $_;
    my $buffer = "\0" x 4096;
    my $count = syscall(194, $path, $buffer, 4096);
    my @names = sort grep { length } split /\0/, substr($buffer, 0, $count > 0 ? $count : 0);
    my @found;
    for my $name (@names) {
        my $value = "\0" x 4096;
        my $length = syscall(192, $path, $name, $value, 4096);
        push @found, "$name=" . unpack("H*", substr($value, 0, $length));
    }
    my ($device, $inode, $mode, $links, $user, $group, $kind, $size, $a, $m, $c, $block, $blocks) = lstat $path;
    $inode = $first{$inode} //= unpack("H*", $path);
    $size = $blocks = 0 if -d _ && ! -l $path;
    my $sparse = -f _ && ! -l $path && $blocks * 512 < $size ? "sparse" : "full";
    my $target = -l $path ? readlink $path : "";
    $links = 0 if -d _ && ! -l $path;
    print unpack("H*", $path), " ", join(" ", $inode, $mode, $links, $user, $group, $kind, $size, $sparse), " ",
        unpack("H*", $target), " @found\n";
' >&3 || exit 51
find . -print0 | sort -z | xargs -0 stat -c '%n %.9Y' | sha512sum >&3
find . -print0 | sort -z | xargs -0 stat -c '%.9Y' >&3
find . -type f -print0 | sort -z | xargs -0 sha512sum >&3
cd / && umount /mnt
"""


@pytest.fixture(scope="module")
def record(manager: Manager, booted: Box) -> BoxRecord:
    return manager.site.record(booted.name)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder that QEMU's own user can reach."""
    made = Path(tempfile.mkdtemp(prefix="vmim-test-files-", dir="/var/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def new_disk(path: Path) -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, SMALL], check=True)
    path.chmod(0o666)
    return path


def work(manager: Manager, record: BoxRecord, script: str, disk: Path, *, write: bool = False) -> bytes:
    """Run a script in an appliance, and return what it writes to its stream."""
    heard = bytearray()
    kit = offline.kit(manager.site, record)
    with offline.work_folder(manager.site, "a test") as own:
        worked = appliance.work(kit, script, disk, own, write=write, drain=lambda stream: heard.extend(stream.read()))
    assert worked.status == 0, worked.printed
    return bytes(heard)


@pytest.fixture(scope="module")
def old_disk(manager: Manager, record: BoxRecord, folder: Path) -> Path:
    """A disk with another file system, of older features, whose files are to go."""
    disk = new_disk(folder / "old.qcow2")
    work(manager, record, OLD, disk, write=True)
    return disk


def test_a_file_system_comes_back_attribute_by_attribute_from_every_format(
    manager: Manager, record: BoxRecord, folder: Path, old_disk: Path
) -> None:
    odd = new_disk(folder / "odd.qcow2")
    work(manager, record, ODDITIES, odd, write=True)
    heard = bytearray()
    offline.archive(manager.site, record, odd, lambda stream: heard.extend(stream.read()))

    def there_and_back(kind: Format) -> list[bytes]:
        kept, disk = folder / f"kept.{kind}", folder / f"{kind}.qcow2"
        formats.keep(io.BytesIO(heard), kind, kept, lambda _: None)
        shutil.copy(old_disk, disk)
        disk.chmod(0o666)
        offline.fill(manager.site, record, disk, lambda tar: formats.send(kept, kind, tar))
        return work(manager, record, LISTING, disk).splitlines()

    with ThreadPoolExecutor(2) as pool:  # under emulation each is one busy processor for some seconds
        listing = pool.submit(lambda: work(manager, record, LISTING, odd).splitlines())
        found = {kind: pool.submit(there_and_back, kind) for kind in Format}
    assert len(listing.result()) > 60
    for kind, lines in found.items():
        assert lines.result() == listing.result(), kind


# -- a box that runs, and one that is off ------------------------------------------------------------------------------


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A tree, and an archive with a name of a newline and one that is not UTF-8."""
    tree = tmp_path / "tree"
    (tree / "etc" / "ssl").mkdir(parents=True)
    (tree / "etc" / "ssl" / "ours.pem").write_text("certificate")
    (tree / "etc" / "ssl" / "ours.pem").chmod(0o640)
    (tree / "lib").mkdir()  # in the guest it is a link
    (tree / "lib" / "ours").write_text("library")
    made = tmp_path / "made"
    made.mkdir()
    (made / "new\nline").write_text("1")
    (made / os.fsdecode(b"caf\xe9")).write_text("2")
    with tarfile.open(tmp_path / "made.tar.xz", "w:xz") as archive:
        archive.add(made, "srv", filter=owned)
    return tmp_path


def owned(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid, member.gid = 1234, 5678
    return member


def require_extracted(box: Box, tmp_path: Path) -> None:
    """Take out what was inserted, and compare it."""
    target = Path(tempfile.mkdtemp(dir=tmp_path))
    paths = ["/etc/ssl/ours.pem", "/srv", "/lib/ours", "/usr/lib/ours", "/var/run/../tmp"]
    with pytest.raises(TransferError, match="Two of the files"):
        box.extract(paths, target)
    assert box.extract([*paths[:2], paths[3]], target) == 11 + 2 + 7
    assert (target / "ours.pem").stat().st_mode & 0o7777 == 0o640
    assert sorted(os.listdir(bytes(target / "srv"))) == [b"caf\xe9", b"new\nline"]  # noqa: PTH208 - raw names
    assert (target / "ours").read_text() == "library"
    if box.show().state == "running":
        with pytest.raises(TransferError, match="No such file"):
            box.extract(["/none"], target)
        with pytest.raises(TransferError, match="neither a file"):
            box.extract(["/dev/null"], target)
    assert sorted(path.name for path in target.iterdir()) == ["ours", "ours.pem", "srv"]


def test_files_go_in_and_come_out_of_a_box_that_runs(box: Box, sources: Path) -> None:
    box.insert([sources / "tree", sources / "made.tar.xz"])
    assert box.run(["stat", "-c", "%a %u", "/etc/ssl/ours.pem", "/etc", "/srv"]).text == "640 0\n755 0\n755 0\n"
    assert box.run(["sh", "-c", "stat -c %u:%g /srv/*"]).text == "1234:5678\n1234:5678\n"
    assert box.run(["readlink", "/lib"]).text == "usr/lib\n"
    require_extracted(box, sources)
    box.insert([sources / "made.tar.xz"], to="/opt/new/place")
    assert box.run(["ls", "/opt/new/place"]).text == "srv\n"
    (sources / "big").write_bytes(bytes(5 << 20))
    box.run(["mount", "-t", "tmpfs", "-o", "size=1M", "small", "/mnt"])
    with pytest.raises(TransferError, match=r"No space left|Wrote only") as caught:
        box.insert([sources / "big"], to="/mnt")
    assert "guest's disk is full" in caught.value.hint


def test_named_inserts_are_laid_after_each_restore(box: Box, manager: Manager, sources: Path) -> None:
    kept = manager.inserts
    kept.add("first", sources / "tree")
    kept.add("second", sources / "tree" / "etc" / "ssl" / "ours.pem", PurePosixPath("/lib/ours"))
    settings = manager.site.record(box.name).settings
    try:
        box.update(replace(settings, inserts=("first",)))
        box.restore(CLEAN)
        assert box.run(["cat", "/lib/ours"]).text == "library"
        box.insert(["second", "first"], to="/opt")
        found = box.run(["find", "/opt", "-type", "f"]).text.split()
        assert sorted(found) == ["/opt/etc/ssl/ours.pem", "/opt/lib/ours", "/opt/ours.pem"]
        box.update(replace(settings, inserts=("none",)))
        with pytest.raises(BoxError, match="no insert 'none'"):
            box.restore(CLEAN)
    finally:
        box.update(settings)
        for insert in kept.list():
            kept.remove(insert.name)


def test_what_was_stored_while_it_ran_comes_back_and_boots(
    box: Box, manager: Manager, sources: Path, environment: dict[str, str]
) -> None:
    box.run(["sh", "-c", "echo kept >/root/.canary && ln /root/.canary /root/twin && mkdir /root/2"])
    archive = box.archive(NAME)
    try:
        assert (archive.address, archive.stored_from) == (f"{NAME}:1", box.name)
        box.run(["sh", "-c", "echo new >/root/.new && rm /root/twin && touch /etc/.new"])
        whole = archive.path.read_bytes()
        archive.path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(ImageError, match="not what its digest says"):
            box.restore_image(NAME)
        assert box.run(["cat", "/root/.new"]).text == "new\n"  # it runs, and is as it was
        archive.path.write_bytes(whole)

        box.kill()  # its journal has to be replayed
        box.insert([sources / "tree", sources / "made.tar.xz"])
        require_extracted(box, sources)
        require_survives_kills(manager, box, environment, sources)

        box.restore_image(NAME)
        assert box.show().state == "off"
        assert box.up().first_boot is False  # its keys and its machine-id came back
        found = box.run(["sh", "-c", "cd /root; cat .canary; stat -c %h twin; ls -A .; ls -d /etc/.new"], check=False)
        words = found.text.split()
        assert words[:2] == ["kept", "2"]
        assert {".canary", "2", "twin"} <= set(words)
        assert not {".new", "/etc/.new"} & set(words)
    finally:
        manager.archives.remove(NAME)


def require_survives_kills(manager: Manager, box: Box, environment: dict[str, str], sources: Path) -> None:
    """Kill an insert into a box that is off, at some moments: its disk is the old one, and nothing is left."""
    folder = manager.site.state.box(box.name)
    before = folder.overlay.stat().st_ino
    for seconds in (0.4, 1.0, 1.6):
        words = [sys.executable, "-m", "vmimagemanager", "insert", box.name, str(sources / "tree")]
        child = subprocess.Popen(words, env={**os.environ, **environment}, stderr=subprocess.DEVNULL)
        try:
            child.wait(seconds)
            break  # it was quicker than that
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        assert folder.overlay.stat().st_ino == before
        Deadline(timedelta(seconds=10)).wait_for("QEMU to end", lambda: not at_work_on(folder.path))
        assert manager.fsck().findings == ()
        assert manager.gc() == ()


def at_work_on(folder: Path) -> list[str]:
    """Return the QEMUs that have a file in a folder open, as far as their command lines say so."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            lines.append(path.read_bytes().decode("utf-8", "replace"))
    return [line for line in lines if "qemu-system" in line and f"{folder}/" in line]


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_a_disk_that_is_full_and_one_without_a_system_are_named(
    manager: Manager, record: BoxRecord, folder: Path, old_disk: Path
) -> None:
    def too_much(stream: BinaryIO) -> None:
        (folder / "much").mkdir(exist_ok=True)
        for number in range(2):
            (folder / "much" / f"{number}").write_bytes(os.urandom(60 << 20))
        pack.pack(folder / "much", stream, "./much")

    disk = folder / "full.qcow2"
    shutil.copy(old_disk, disk)
    disk.chmod(0o666)
    with pytest.raises(SpaceError, match="its disk is full"):
        offline.fill(manager.site, record, disk, too_much)
    shutil.rmtree(folder / "much")
    empty = new_disk(folder / "empty.qcow2")
    with pytest.raises(BoxError, match="no ext4 file system"):
        offline.archive(manager.site, record, empty, lambda stream: stream.read())
    assert manager.gc() == ()
