"""Imports: every format, and what has to be refused.  The images are made by the programs that users make them with."""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import struct
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.unit.webserver import Page, web_server
from tests.vm.deaths import deaths
from vmimagemanager import disks
from vmimagemanager.errors import ImageError, SpaceError, VmimError
from vmimagemanager.files.tarstream import TarStream
from vmimagemanager.images import ImageStore, appliance, foreign, intake, rootfs
from vmimagemanager.images.filesystem import FileSystem
from vmimagemanager.images.imports import Import
from vmimagemanager.images.unpacking import GZIP, XZ, ZSTD, Unpacked, unpacked
from vmimagemanager.progress import silent
from vmimagemanager.units import Size

MIB = 1 << 20
CONTENT = b"what the guest wrote" + bytes(492) + os.urandom(3 * MIB)
OPTIONS = {
    "qcow2": [""],
    "vmdk": ["", "subformat=streamOptimized"],
    "vdi": ["", "static=on"],
    "vhdx": ["", "subformat=fixed"],
}
SUBFORMATS = [(name, option) for name, options in OPTIONS.items() for option in options]


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "state")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(CONTENT + bytes(8 * MIB - len(CONTENT)))
    return path


@pytest.fixture
def nothing_left(tmp_path: Path) -> Iterator[None]:
    """Require that a refused import leaves no image, no blob and no stage."""
    yield
    state = tmp_path / "state"
    assert not list(state.glob("images/*/*"))
    assert not list(state.glob("blobs/sha512/*"))
    assert [path.name for path in state.glob("stage/images/*")] in ([], ["lock"])


def converted(raw: Path, name: str, option: str = "") -> Path:
    target = raw.with_name(f"disk.{name}")
    words = ["-o", option] if option else []
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", name, *words, str(raw), str(target)], check=True)
    return target


def same(image: Path, raw: Path) -> bool:
    words = ["qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", str(image), str(raw)]
    return subprocess.run(words, check=False).returncode == 0


def patched(path: Path, at: int, content: bytes) -> Path:
    with path.open("r+b") as stream:
        stream.seek(at)
        stream.write(content)
    return path


# Disk images


@pytest.mark.parametrize(("name", "option"), SUBFORMATS)
def test_every_format_is_recognised_and_comes_out_as_the_guest_saw_it(
    store: ImageStore, raw: Path, name: str, option: str
) -> None:
    image = store.import_image("mine", converted(raw, name, option))
    assert image.disk_size == Size(8 * MIB)
    assert same(image.disk, raw)
    assert disks.info(image.disk).backing is None


def test_a_raw_image_must_be_called_one(store: ImageStore, raw: Path) -> None:
    with pytest.raises(ImageError, match="cannot be recognised") as caught:
        store.import_image("mine", raw)
    assert "'raw'" in caught.value.hint
    assert same(store.import_image("mine", raw, Import(format="raw")).disk, raw)


@pytest.mark.parametrize("name", OPTIONS)
def test_an_image_is_not_taken_for_another_format(store: ImageStore, raw: Path, name: str, nothing_left: None) -> None:
    for other in (*OPTIONS, "ova", "tar"):
        if other != name:
            with pytest.raises(ImageError):
                store.import_image("mine", converted(raw, name), Import(format=other))


@pytest.mark.parametrize("name", OPTIONS)
def test_a_truncated_image_is_refused(store: ImageStore, raw: Path, name: str, nothing_left: None) -> None:
    whole = converted(raw, name).stat().st_size
    for size in (20, 600, 100_000, 2 * MIB, whole - (1 << 17)):
        path = converted(raw, name)
        os.truncate(path, size)
        with pytest.raises(ImageError):
            store.import_image("mine", path, Import(format=name))


def evil_qcow2(raw: Path, secret: Path) -> Iterator[Path]:
    for words in (
        ["-b", secret, "-F", "raw"],
        ["-u", "-b", "json:" + json.dumps({"driver": "file", "filename": str(secret)}), "-F", "raw"],
        ["-u", "-b", "nbd://127.0.0.1:9/", "-F", "raw"],
        ["-u", "-b", raw.with_name("evil.qcow2"), "-F", "qcow2"],  # itself
        ["-o", f"data_file={secret}.data,data_file_raw=on"],
    ):
        path = raw.with_name("made.qcow2")
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *map(str, words), str(path), "8M"], check=True)
        yield path.replace(raw.with_name("evil.qcow2"))


def evil_vmdk(raw: Path, secret: Path) -> Iterator[Path]:
    head = "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n"
    text = f'{head}createType="monolithicFlat"\nRW 2 FLAT "{secret}" 0\n'
    path = raw.with_name("flat.vmdk")
    path.write_text(text)
    yield path
    path = converted(raw, "vmdk")
    start = path.read_bytes()[:44]
    (at,) = struct.unpack_from("<Q", start, 28)
    yield patched(patched(path, 12, bytes(8)), at * 512, text.encode() + bytes(1024))  # capacity 0: only a descriptor
    path = converted(raw, "vmdk")
    descriptor = path.read_bytes()[at * 512 : at * 512 + 2048].rstrip(b"\0")
    yield patched(path, at * 512, descriptor + f'parentFileNameHint="{secret}"\n'.encode())
    path = converted(raw, "vmdk")
    yield patched(path, at * 512, descriptor + f'RW 2 FLAT "{secret}" 0\n'.encode())
    yield patched(converted(raw, "vmdk"), 0, b"COWD")


def evil_vdi(raw: Path, _: Path) -> Iterator[Path]:
    yield patched(converted(raw, "vdi"), 0x1A8, b"\1" * 16)
    yield patched(converted(raw, "vdi"), 0x1B8, b"\1" * 16)
    yield patched(converted(raw, "vdi"), 0x4C, struct.pack("<I", 4))


def evil_vhdx(raw: Path, _: Path) -> Iterator[Path]:
    path = converted(raw, "vhdx")
    content = path.read_bytes()
    parameters = content.index(foreign._VHDX_PARAMETERS)
    table = content.rindex(b"metadata", 0, parameters)
    (offset,) = struct.unpack_from("<I", content, parameters + 16)
    yield patched(path, table + offset + 4, struct.pack("<I", foreign._VHDX_HAS_PARENT))
    path = converted(raw, "vhdx")
    yield patched(path, parameters, foreign._VHDX_PARENT)


@pytest.mark.parametrize("make", [evil_qcow2, evil_vmdk, evil_vdi, evil_vhdx])
def test_an_image_that_names_another_file_is_refused_before_anything_reads_it(
    store: ImageStore, raw: Path, make: Callable[[Path, Path], Iterator[Path]], nothing_left: None
) -> None:
    secret = raw.with_name("secret")
    secret.write_bytes(b"the host's secret".ljust(MIB, b"!"))
    for path in make(raw, secret):
        with pytest.raises(ImageError, match=r"not followed|another file|says \d sizes"):
            store.import_image("mine", path)


@pytest.mark.parametrize("size", ["1P", "20T"])
def test_an_enormous_disk_is_refused(store: ImageStore, tmp_path: Path, size: str, nothing_left: None) -> None:
    path = tmp_path / "large.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", path, size], check=True)
    with pytest.raises(ImageError, match=r"disks of up to 16.0 TiB"):
        store.import_image("mine", path)
    sparse = tmp_path / "large.raw"
    with sparse.open("wb") as stream:
        stream.truncate(foreign.LARGEST.bytes - 4096)
    os.truncate(sparse, 17 << 40) if not limited(sparse) else None


def limited(path: Path) -> bool:
    """Say whether the file system cannot have a file that is too large for us."""
    try:
        os.truncate(path, 17 << 40)
    except OSError:
        return True
    return False


def test_a_size_in_the_header_that_is_not_the_real_one_is_refused(
    store: ImageStore, raw: Path, nothing_left: None
) -> None:
    for value in (0, 1 << 63, (16 << 40) + 512):
        with pytest.raises(ImageError):
            store.import_image("mine", patched(converted(raw, "qcow2"), 24, struct.pack(">Q", value)))


def bomb(path: Path, virtual: int) -> Path:
    """Make a small qcow2 whose guest sees ``virtual`` bytes that are not zero: each cluster is the same one."""
    cluster = 1 << 21
    tables = -(-virtual // (cluster * (cluster // 8)))
    header = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", 2, 0, 0, 21, virtual, 0, tables, cluster, 2 * cluster, 1, 0, 0)
    data = struct.pack(">Q", 1 << 62 | 4 * cluster)  # compressed, without the bit that says who else uses it
    with path.open("wb") as stream:
        stream.write(header)
        stream.seek(cluster)
        stream.write(struct.pack(">Q", 3 * cluster) * tables)
        stream.seek(3 * cluster)
        stream.write(data * (cluster // 8))
        stream.seek(4 * cluster)
        stream.write(b"\x63" * 512)
    return path


def test_a_small_image_of_a_large_disk_full_of_data_is_refused(
    store: ImageStore, tmp_path: Path, nothing_left: None
) -> None:
    with pytest.raises((ImageError, SpaceError)):
        store.import_image("mine", bomb(tmp_path / "bomb.qcow2", 1 << 40))


def test_what_an_image_needs_is_compared_with_what_is_free(
    store: ImageStore, raw: Path, monkeypatch: pytest.MonkeyPatch, nothing_left: None
) -> None:
    monkeypatch.setattr(intake, "free_space", lambda _: Size((1 << 30) + MIB))
    with pytest.raises(SpaceError, match="stay free"):
        store.import_image("mine", converted(raw, "qcow2"))


def test_a_disk_that_becomes_full_leaves_nothing(store: ImageStore, raw: Path, nothing_left: None) -> None:
    path = converted(raw, "qcow2")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Another limit is what a full disk looks like to those who write; the copy still fits, and the conversion does not.
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, limit[1]))
    try:
        with pytest.raises(VmimError):
            store.import_image("mine", path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


# Appliances


def tarred(path: Path, members: Mapping[str, bytes], *, compress: str = "") -> Path:
    with tarfile.open(path, f"w:{compress}") as archive:  # type: ignore[call-overload]  # a mode that is computed
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def digest_line(name: str, content: bytes, algorithm: str = "SHA256") -> bytes:
    return f"{algorithm}({name})= {hashlib.new(algorithm, content).hexdigest()}\n".encode()


def test_the_disk_of_an_appliance_comes_out_when_its_digests_are_right(store: ImageStore, raw: Path) -> None:
    disk = converted(raw, "vmdk", "subformat=streamOptimized").read_bytes()
    for algorithm in ("SHA1", "SHA256", "SHA512"):
        text = digest_line("a.ovf", b"<xml/>", algorithm) + digest_line("a.vmdk", disk, algorithm)
        path = tarred(raw.with_name("a.ova"), {"a.ovf": b"<xml/>", "a.mf": text, "a.vmdk": disk})
        assert same(store.import_image("mine", path).disk, raw)


def test_an_appliance_that_is_not_as_it_should_be_is_refused(store: ImageStore, raw: Path, nothing_left: None) -> None:
    disk = converted(raw, "vmdk").read_bytes()
    for members, reason in (
        ({"a.ovf": b"", "a.vmdk": disk, "a.mf": digest_line("a.vmdk", b"other")}, "is not what its SHA256 says"),
        ({"a.ovf": b"", "a.vmdk": disk, "b.vmdk": disk}, "several disks"),
        ({"a.ovf": b"", "a.iso": b"x"}, "has no disk"),
        ({"a.ovf": b"", "a.iso": bytes(5 * MIB)}, "has 5.0 MiB"),
        ({"a.ovf": b"", "a.vmdk": b"nothing"}, "no known format"),
        ({"a.ovf": b"", **{f"{number}": b"" for number in range(120)}}, "one too many"),
    ):
        with pytest.raises(ImageError, match=reason):
            store.import_image("mine", tarred(raw.with_name("a.ova"), members))


# Root file systems


WANTED = FileSystem(size=Size(64 * MIB), uuid="5c9d6f5b-0a5e-4f0e-9c59-6e0c0e6c7a51", epoch=1_700_000_000)


def written(path: Path, *members: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for entry in members:
            member, content = entry if isinstance(entry, tuple) else (entry, b"")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", **about: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    for key, value in about.items():
        setattr(made, key, value)
    return made


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([member("../etc/passwd")], "leads out of"),
        ([member("a/../../b")], "leads out of"),
        ([member("/etc/passwd")], "leads out of"),
        ([member("etc", tarfile.SYMTYPE, "/etc"), member("etc/passwd")], "no folder"),
        ([member("etc", tarfile.SYMTYPE, "/etc"), member("etc", tarfile.DIRTYPE)], "twice"),
        ([member("a"), member("a/b")], "no folder"),
        ([member("a", tarfile.LNKTYPE, "/etc/passwd")], "leads out of"),
        ([member("a", tarfile.LNKTYPE, "../passwd")], "leads out of"),
        ([member("a", tarfile.LNKTYPE, "b")], "no file of the archive"),
        ([member("s", tarfile.SYMTYPE, "/etc/passwd"), member("a", tarfile.LNKTYPE, "s")], "no file of the archive"),
        ([member("a", tarfile.BLKTYPE, devmajor=254)], "block device"),
        ([member("x/dev/null", tarfile.CHRTYPE)], "character device"),
        ([member(".", tarfile.SYMTYPE, "/")], "root's place"),
        ([member("a" * 300)], "too long"),
        ([member("b/" * 3000)], "too long"),
        ([member("s", tarfile.SYMTYPE, "")], "to nothing"),
        ([member("a", uid=(1 << 32) - 1)], "cannot be"),
        ([member("a", b"Z")], "unknown type"),
        ([member("a", pax_headers={"GNU.sparse.major": "1"})], "sparse"),
        ([], "empty"),
    ],
)
def test_an_archive_that_could_write_outside_is_refused(
    tmp_path: Path, members: list[tarfile.TarInfo], reason: str
) -> None:
    source = written(tmp_path / "evil.tar", *members)
    with pytest.raises(ImageError, match=reason):
        rootfs.rewrite(source, tmp_path / "new.tar", named="evil.tar", wanted=WANTED)


def test_devices_and_what_is_mounted_over_are_left_out_and_all_else_is_kept(tmp_path: Path) -> None:
    source = written(
        tmp_path / "root.tar",
        member("./", tarfile.DIRTYPE, mode=0o755),
        member("./dev", tarfile.DIRTYPE, mode=0o755),
        member("./dev/sda", tarfile.BLKTYPE),
        (member("./proc/version"), b"x"),
        (member("./usr/bin/ping", mode=0o4755, mtime=1_600_000_000, uid=7, gid=8), b"ping"),
        member("./usr/bin/ping6", tarfile.LNKTYPE, "./usr/bin/ping"),
        member("./bin", tarfile.SYMTYPE, "usr/bin"),
        (member("./" + "long/" * 60 + "name\nwith\xe9\udcff"), b"odd"),
        (member("./usr/bin/cap", pax_headers={"SCHILY.xattr.security.capability": "\1\0\0\2\0\4"}), b"cap"),
    )
    rootfs.rewrite(source, tmp_path / "new.tar", named="root.tar", wanted=WANTED)
    with tarfile.open(tmp_path / "new.tar") as archive:
        found = {each.name: each for each in archive}
        ping = found["./usr/bin/ping"]
        assert (ping.mode, ping.mtime, ping.uid, ping.gid, ping.size) == (0o4755, 1_600_000_000, 7, 8, 4)
        assert found["./usr/bin/ping6"].linkname == "./usr/bin/ping"
        assert found["./bin"].linkname == "usr/bin"
        assert found["./usr/bin/cap"].pax_headers["SCHILY.xattr.security.capability"] == "\1\0\0\2\0\4"
        assert "./" + "long/" * 60 + "name\nwith\xe9\udcff" in found
        assert not [name for name in found if name.startswith(("./dev/", "./proc/"))]


CAPABILITY = b"\1\0\0\2\0\x20" + bytes(14)


def squeeze(path: Path, kind: str) -> Path:
    target = path.with_name(f"{path.name}.{kind}")
    if kind == "zst":
        target.write_bytes(zstandard.ZstdCompressor(level=19).compress(path.read_bytes()))
    else:
        with path.open("rb") as source, target.open("wb") as stream:
            subprocess.run([{"gz": "gzip", "xz": "xz"}[kind], "-6", "-c"], stdin=source, stdout=stream, check=True)
    return target


@pytest.mark.parametrize("kind", ["gz", "xz", "zst"])
def test_a_bomb_is_found_while_it_is_unpacked(tmp_path: Path, kind: str) -> None:
    source = squeeze(written(tmp_path / "bomb.tar", (member("zeros"), bytes(80 * MIB))), kind)
    assert source.stat().st_size < MIB
    with pytest.raises(ImageError, match="unpacks to more than"):
        rootfs.rewrite(source, tmp_path / "new.tar", named="bomb", wanted=WANTED)
    assert (tmp_path / "new.tar").stat().st_size < 100 * MIB


def test_more_files_than_fit_are_refused(tmp_path: Path) -> None:
    source = written(tmp_path / "many.tar", *(member(f"{number}") for number in range(WANTED.inodes + 1)))
    with pytest.raises(ImageError, match="more than 4096 files"):
        rootfs.rewrite(source, tmp_path / "new.tar", named="many", wanted=WANTED)


@pytest.mark.parametrize("kind", ["gz", "xz", "zst"])
def test_a_compressed_archive_that_was_cut_off_or_altered_is_refused(tmp_path: Path, kind: str) -> None:
    whole = squeeze(written(tmp_path / "a.tar", (member("a"), os.urandom(100_000))), kind).read_bytes()
    rootfs.rewrite(_file(tmp_path, whole), tmp_path / "new.tar", named="a", wanted=WANTED)
    for content in (whole[:-1], whole[: len(whole) // 2], whole[:20]):
        with pytest.raises(ImageError, match="damaged"):
            rootfs.rewrite(_file(tmp_path, content), tmp_path / "new.tar", named="a", wanted=WANTED)
    if kind != "zst":  # which was packed without a checksum
        altered = whole[:50_000] + bytes([whole[50_000] ^ 1]) + whole[50_001:]
        with pytest.raises(ImageError):
            rootfs.rewrite(_file(tmp_path, altered), tmp_path / "new.tar", named="a", wanted=WANTED)


def _file(folder: Path, content: bytes) -> Path:
    path = folder / "file"
    path.write_bytes(content)
    return path


def test_the_tar_of_a_root_file_system_becomes_a_disk_with_its_newest_kernel(tmp_path: Path, store: ImageStore) -> None:
    source = written(
        tmp_path / "root.tar",
        (member("boot/vmlinuz-6.1.0-9"), b"old"),
        (member("boot/vmlinuz-6.1.0-31"), b"kernel"),
        (member("boot/initrd.img-6.1.0-31"), b"initrd"),
        (member("etc/shadow", mode=0o640, gid=42), b"root:*:\n"),
        (member("usr/bin/su", mode=0o4755), b"su"),
        (member("usr/bin/ping", pax_headers={"SCHILY.xattr.security.capability": CAPABILITY.decode()}), b"ping"),
        (member("var/lib/dpkg/status"), b"Package: bash\nStatus: install ok installed\nVersion: 5\n"),
    )
    image = store.import_image("root", squeeze(source, "xz"), Import(disk_size=Size(64 * MIB)))
    assert image.kernel is not None
    assert image.initrd is not None
    assert (image.kernel.read_bytes(), image.initrd.read_bytes()) == (b"kernel", b"initrd")
    assert (image.packages, image.disk_size) == ({"bash": "5"}, Size(64 * MIB))
    assert "root=/dev/vda" in image.command_line
    raw = tmp_path / "out.raw"
    disks.convert(image.disk, raw, source_format="qcow2", target_format="raw")
    shadow = subprocess.run(["/usr/sbin/debugfs", "-R", "stat /etc/shadow", raw], capture_output=True, check=True)
    assert b"Mode:  0640" in shadow.stdout
    assert b"Group:    42" in shadow.stdout
    ping = subprocess.run(["/usr/sbin/debugfs", "-R", "ea_list /usr/bin/ping", raw], capture_output=True, check=True)
    assert f"security.capability (20) = {CAPABILITY.hex(' ')}".encode() in ping.stdout
    again = store.import_image("root", squeeze(source, "xz"), Import(disk_size=Size(64 * MIB)))
    assert again.digests == image.digests


def test_a_root_file_system_without_a_kernel_needs_one(tmp_path: Path, store: ImageStore) -> None:
    source = written(tmp_path / "root.tar", (member("etc/hostname"), b"x"))
    with pytest.raises(ImageError, match="has no kernel") as caught:
        store.import_image("root", source, Import(disk_size=Size(64 * MIB)))
    assert "--kernel" in caught.value.hint
    image = store.import_image("root", source, Import(disk_size=Size(64 * MIB), kernel=source, command_line="quiet"))
    assert image.kernel is not None
    assert image.command_line == "quiet"


def test_a_file_system_that_is_too_small_is_named(tmp_path: Path, store: ImageStore, nothing_left: None) -> None:
    source = written(tmp_path / "root.tar", (member("a"), os.urandom(15 * MIB)))
    with pytest.raises(ImageError, match="too small"):
        store.import_image("root", source, Import(disk_size=Size(16 * MIB), kernel=source))


# Fetched ones, and several at once


def test_an_image_is_imported_from_an_address_and_compared_with_its_checksum(store: ImageStore, raw: Path) -> None:
    content = converted(raw, "qcow2").read_bytes()
    digest = hashlib.sha512(content).hexdigest()
    with web_server() as web:
        web.pages["/a/disk.qcow2"] = Page(content=content)
        web.pages["/a/SHA512SUMS"] = Page(content=f"{digest}  disk.qcow2\n".encode())
        web.pages["/b/SHA512SUMS"] = Page(content=f"{'0' * 128}  disk.qcow2\n".encode())
        wanted = Import(checksums=f"{web.url}/a/SHA512SUMS")
        assert same(store.import_image("mine", f"{web.url}/a/disk.qcow2", wanted).disk, raw)
        for wrong in (Import(checksums=f"{web.url}/b/SHA512SUMS"), Import(digests={"sha256": "0" * 64})):
            with pytest.raises(ImageError, match="not what was expected"):
                store.import_image("mine", f"{web.url}/a/disk.qcow2", wrong)
    assert [image.generation for image in store.list()] == [1]


def test_a_file_is_compared_with_its_checksum(store: ImageStore, raw: Path, nothing_left: None) -> None:
    path = converted(raw, "qcow2")
    with pytest.raises(ImageError, match="its sha256 is"):
        store.import_image("mine", path, Import(digests={"sha256": "0" * 64}))
    with pytest.raises(ImageError, match="bytes, and not 7"):
        store.import_image("mine", path, Import(size=Size(7)))


def test_imports_of_one_name_at_the_same_time_become_two_generations(store: ImageStore, raw: Path) -> None:
    with web_server() as web:
        web.pages["/disk.qcow2"] = Page(content=converted(raw, "qcow2").read_bytes())
        run = lambda: store.import_image("mine", f"{web.url}/disk.qcow2")  # noqa: E731
        threads = [threading.Thread(target=run) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [image.generation for image in store.list()] == [1, 2, 3]


@pytest.mark.slow
def test_an_import_may_die_at_every_step(tmp_path: Path, raw: Path) -> None:
    state = tmp_path / "state"
    store = ImageStore(state)
    with web_server() as web:
        web.pages["/disk.qcow2"] = Page(content=converted(raw, "qcow2").read_bytes())
        for _ in deaths({"VMIM_STATE_DIR": str(state)}, "image", "import", "mine", f"{web.url}/disk.qcow2"):
            for image in store.list():
                store.verify(image)
    assert same(store.get("mine").disk, raw)
    needed = {digest for image in store.list() for digest in image.digests.values()}
    store.unneeded_blobs(dict, remove=True)
    assert {path.name for path in state.glob("blobs/sha512/*")} == needed
    assert [path.name for path in state.glob("stage/images/*")] == ["lock"]
    store.downloads(remove=True)
    assert not [path for path in state.glob("cache/downloads/*") if path.is_dir()]


# Fuzz: whatever the bytes, an ImageError or a result, in bounded space


def a_tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for made in (
            member("./", tarfile.DIRTYPE),
            member("./" + "a/" * 70 + "x"),
            member("./l", tarfile.SYMTYPE, "x" * 120),
            member("./h", tarfile.LNKTYPE, "./" + "a/" * 70 + "x"),
            member("./p", pax_headers={"mtime": "1.5", "uid": "5", "SCHILY.xattr.user.a": "b"}),
        ):
            archive.addfile(made)
    return stream.getvalue()


@st.composite
def altered(draw: st.DrawFn, original: bytes) -> bytes:
    """Bytes that were something once: with others written over them, taken out or added, and right header checksums."""
    content = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content) - 1))
        content[at : at + draw(st.sampled_from([0, 1, 8, 600]))] = draw(st.binary(max_size=16))
        if not content:
            return b""
    if draw(st.booleans()):
        for at in range(0, len(content) - 511, 512):
            block = content[at : at + 512]
            if block[257:262] == b"ustar":
                total = sum(block[:148]) + 8 * 32 + sum(block[156:])
                content[at + 148 : at + 156] = b"%06o\0 " % total
    return bytes(content)


A_TAR = a_tar()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=altered(A_TAR) | st.binary(max_size=2048))
@example(content=A_TAR)
def test_any_bytes_are_a_tar_or_are_refused(tmp_path: Path, content: bytes) -> None:
    target = tmp_path / "new.tar"
    try:
        rootfs.rewrite(_file(tmp_path, content), target, named="fuzz", wanted=WANTED)
    except ImageError:
        return
    with tarfile.open(target) as archive:
        for found in archive:
            assert found.name == "." or found.name.startswith("./")
            assert ".." not in found.name.split("/")
            assert not found.isdev() or found.isfifo()


POSITIONS = st.integers(0, 1023) | st.integers(0, 1 << 22)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    raw = tmp_path_factory.mktemp("examples") / "disk.raw"
    raw.write_bytes(bytes(MIB))
    return {name: converted(raw, name).read_bytes()[: 4 * MIB] for name in OPTIONS}


@pytest.mark.parametrize("name", OPTIONS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(POSITIONS, st.binary(max_size=8)), max_size=5), cut=st.none() | POSITIONS)
def test_any_bytes_are_an_image_or_are_refused(
    tmp_path: Path, examples: dict[str, bytes], name: str, changes: list[tuple[int, bytes]], cut: int | None
) -> None:
    content = bytearray(examples[name])
    for at, piece in changes:
        content[at % len(content) : at % len(content) + len(piece)] = piece
    path = _file(tmp_path, bytes(content[:cut]))
    try:
        size = foreign.virtual_size(path, name, named="fuzz")
    except ImageError:
        return
    assert 0 < size.bytes <= foreign.LARGEST.bytes


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300), kind=st.sampled_from([b"", GZIP, XZ, ZSTD]))
def test_any_bytes_unpack_or_are_refused(tmp_path: Path, content: bytes, kind: bytes) -> None:
    with unpacked(_file(tmp_path, kind + content), source="fuzz", limit=Size(MIB)) as stream:
        try:
            assert len(stream.read(2 * MIB)) <= MIB
        except ImageError:
            return


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=altered(A_TAR))
def test_any_bytes_are_an_appliance_or_are_refused(tmp_path: Path, content: bytes) -> None:
    try:
        appliance.take_out(_file(tmp_path, content), tmp_path / "disk", named="fuzz")
    except ImageError:
        return


def test_a_header_that_claims_gigabytes_is_refused_and_not_read() -> None:
    huge = member("./PaxHeaders/x", tarfile.XHDTYPE)
    huge.size = 1 << 33
    stream = Unpacked(io.BytesIO(huge.tobuf(tarfile.GNU_FORMAT) + bytes(1024)), source="x", limit=Size(1 << 40))
    with pytest.raises(ImageError, match="extended header has"):
        list(TarStream(stream, stream.refusal))


def test_progress_is_told(store: ImageStore, raw: Path) -> None:
    told: list[str] = []
    store.import_image("mine", converted(raw, "vdi"), progress=lambda phase, _: told.append(phase))
    assert told[0] == "copying the file"
    assert told[-1] == "done"
    silent("", None)
