"""Trees, archives and streams of files: every attribute survives every format, and nothing that is damaged gets in."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmimagemanager.durable import remove_tree, translate_os_errors
from vmimagemanager.errors import ImageError, SpaceError, TransferError
from vmimagemanager.files import cpio, formats, landing, pack, tar, tree
from vmimagemanager.files.formats import Format
from vmimagemanager.files.tarstream import TarStream
from vmimagemanager.files.unpack import checked, unpack

CAPABILITY = b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00".decode(
    "utf-8", "surrogateescape"
)
ACL = "user::rw-\nuser:1000:r--\ngroup::r--\nmask::r--\nother::---"
BIG = 300_000


def odd(name: str, kind: bytes = tarfile.REGTYPE, *, size: int = 0, **headers: str) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.size, made.mode, made.uid, made.gid, made.mtime = kind, size, 0o640, 1000, 4_000_000_000, 1_234_567
    made.pax_headers = {key.replace("__", "."): value for key, value in headers.items()}
    return made


def odd_tree() -> bytes:
    """Return a tar stream with everything that a file system can hold, written as GNU tar writes it."""
    buffer = io.BytesIO()
    write = buffer.write
    root = odd("./", tarfile.DIRTYPE)
    write(tar.head(root))
    write(tar.head(odd("./.hidden", tarfile.DIRTYPE, mtime="1600000000.123456789")))
    attributes = {"SCHILY.xattr.security.capability": CAPABILITY, "SCHILY.acl.access": ACL, "mtime": "-5.5"}
    file = odd("./.hidden/caf\udce9\nnew line", size=5)
    file.pax_headers, file.mode = attributes, 0o4711
    tar.write_file(write, file, io.BytesIO(b"12345"), None)
    labelled = odd("./label", size=0)
    labelled.pax_headers = {"SCHILY.xattr.security.selinux": "system_u:object_r:etc_t:s0\0", "SCHILY.xattr.user.a": ""}
    write(tar.head(labelled))
    link = odd("./.hidden/hard", tarfile.LNKTYPE)
    link.linkname = file.name
    write(tar.head(link))
    soft = odd("./soft", tarfile.SYMTYPE, mtime="1600000000.5")
    soft.linkname = "../../\udcff/nowhere"
    write(tar.head(soft))
    for name, kind in (("./null", tarfile.CHRTYPE), ("./disk", tarfile.BLKTYPE), ("./pipe", tarfile.FIFOTYPE)):
        device = odd(name, kind)
        device.devmajor, device.devminor = (0, 0) if kind == tarfile.FIFOTYPE else (1, 259)
        write(tar.head(device))
    holes = odd("./holes", size=BIG)
    tar.write_file(write, holes, io.BytesIO(bytes(65536) + b"x" * 4096 + bytes(BIG - 69632)), [(65536, 4096)])
    write(tar.head(odd("./empty", size=0)))
    long = odd("./" + "d" * 200 + "/", tarfile.DIRTYPE)
    write(tar.head(long))
    deep = odd("./" + "d" * 200 + "/" + "f" * 200, size=1)
    tar.write_file(write, deep, io.BytesIO(b"1"), None)
    write(tar.END)
    return buffer.getvalue()


def described(stream: bytes) -> dict[str, tuple[object, ...]]:
    """Return everything that a tar stream says, by name; a hole is as good as another."""
    found: dict[str, tuple[object, ...]] = {}
    reader = TarStream(io.BytesIO(stream), holes=True)
    for one in reader:
        content = b"".join(reader.content()) if one.isreg() else b""
        attributes = tar.attributes(one)
        time = attributes.pop("mtime", str(one.mtime))
        device = (one.devmajor, one.devminor) if one.ischr() or one.isblk() else None
        own = () if one.islnk() else (one.mode, one.uid, one.gid, float(time), attributes)
        found[checked(one.name)] = (one.type if not one.isreg() else b"0", one.linkname, device, content, *own)
    return found


@pytest.mark.parametrize("kind", Format)
def test_every_attribute_survives_every_format(kind: Format, tmp_path: Path) -> None:
    stream = odd_tree()
    if kind is Format.RSYNC:
        require_attributes(tmp_path)
    formats.keep(io.BytesIO(stream), kind, tmp_path / "kept", lambda _: None)
    back = io.BytesIO()
    formats.send(tmp_path / "kept", kind, back)
    assert normal(described(back.getvalue())) == normal(described(stream))


def normal(found: dict[str, tuple[object, ...]]) -> dict[str, tuple[object, ...]]:
    """Return what was described with its hard links as a set: which of two names is the first one does not matter."""
    links = {name: checked(str(value[1])) for name, value in found.items() if value[0] == tarfile.LNKTYPE}
    sets = {frozenset((name, target)) for name, target in links.items()}
    plain = {name: value for name, value in found.items() if not any(name in one for one in sets)}
    linked = {min(one): next(found[name][3:] for name in sorted(one) if name not in links) for one in sets}
    return {**plain, **{f"{name} linked": (*value, sorted(map(sorted, sets))) for name, value in linked.items()}}


@pytest.mark.parametrize("kind", Format)
def test_a_hole_stays_a_hole(kind: Format, tmp_path: Path) -> None:
    if kind is Format.RSYNC:
        require_attributes(tmp_path)
    formats.keep(io.BytesIO(odd_tree()), kind, tmp_path / "kept", lambda _: None)
    back = io.BytesIO()
    formats.send(tmp_path / "kept", kind, back)
    holes = [one for one in TarStream(io.BytesIO(back.getvalue()), holes=True) if one.name == "./holes"]
    assert holes[0].issparse()
    assert len(back.getvalue()) < BIG


@pytest.mark.parametrize("kind", [Format.TAR_GZ, Format.TAR_ZST, Format.CPIO_BZ2])
def test_a_damaged_archive_is_an_error_of_the_image(kind: Format, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    formats.keep(io.BytesIO(odd_tree()), kind, kept, lambda _: None)
    whole = kept.read_bytes()
    kept.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match="cannot be read"):
        formats.send(kept, kind, io.BytesIO())


@pytest.mark.parametrize("kind", Format)
def test_a_stream_that_breaks_off_is_not_kept(kind: Format, tmp_path: Path) -> None:
    if kind is Format.RSYNC:
        require_attributes(tmp_path)
    with pytest.raises(TransferError, match="ends"):
        formats.keep(io.BytesIO(odd_tree()[:4096]), kind, tmp_path / "kept", lambda _: None)


def test_a_tree_that_was_altered_has_another_digest(tmp_path: Path) -> None:
    require_attributes(tmp_path)
    folder = tmp_path / "kept"
    formats.keep(io.BytesIO(odd_tree()), Format.RSYNC, folder, lambda _: None)
    before = tree.digest(folder)
    assert tree.digest(folder) == before
    changes: list[Callable[[], object]] = [
        lambda: os.setxattr(folder / "label", tree.STAT, b"100777 0,0 0:0"),
        lambda: os.utime(folder / "empty", (1, 1)),
        lambda: (folder / "holes").write_bytes(b"y"),
        (folder / "new").touch,
    ]
    seen = {before}
    for change in changes:
        change()
        seen.add(tree.digest(folder))
    assert len(seen) == len(changes) + 1


def test_what_cpio_cannot_hold_is_refused_with_what_can() -> None:
    huge = odd("./huge")
    huge.size = 5 << 30
    with pytest.raises(TransferError, match="4 GiB") as caught:
        cpio.from_tar(io.BytesIO(tar.head(huge)), lambda _: None)
    assert "tar.zst" in caught.value.hint


# -- what a guest sends ------------------------------------------------------------------------------------------------


def test_a_tree_is_laid_down_with_modes_times_and_holes(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "run").write_bytes(bytes(1 << 20))
    (source / "sub" / "run").chmod(0o4750)
    os.utime(source / "sub", (5, 5))
    buffer = io.BytesIO()
    assert pack.pack(source, buffer, "top") == 1 << 20
    (tmp_path / "target").mkdir()
    found = unpack(io.BytesIO(buffer.getvalue()), tmp_path / "target")
    assert (found.bytes, found.tops) == (1 << 20, ["top"])
    laid = (tmp_path / "target" / "top" / "sub" / "run").stat()
    assert (laid.st_mode & 0o7777, laid.st_size) == (0o750, 1 << 20)
    assert laid.st_blocks == 0
    assert (tmp_path / "target" / "top" / "sub").stat().st_mtime == 5


def test_a_header_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    header = tarfile.TarInfo("long")
    header.type, header.size = tarfile.XHDTYPE, 1 << 40
    with pytest.raises(TransferError, match="extended header has"):
        unpack(io.BytesIO(header.tobuf(tarfile.GNU_FORMAT) + bytes(4096)), tmp_path)


def test_a_chain_of_headers_has_an_end(tmp_path: Path) -> None:
    header = tarfile.TarInfo("long")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 512
    with pytest.raises(TransferError):
        unpack(io.BytesIO((header.tobuf(tarfile.GNU_FORMAT) + b"x" * 512) * 5000), tmp_path)


def sparse(text: bytes, *, size: int = 1 << 20, stored: int = 0) -> bytes:
    """Return a tar of one sparse file that begins with a map."""
    text += bytes(-len(text) % 512)
    one = odd("GNUSparseFile.0/a")
    one.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(size)}
    one.size = len(text) + stored
    return tar.head(one) + text + bytes(stored + -stored % 512) + tar.END


@pytest.mark.parametrize(
    "text",
    [b"", b"1\n", b"x\n", b"1\n-1\n1\n", b"1\n1048576\n512\n", b"2\n512\n512\n0\n0\n", b"1\n0\n1024\n", b"9" * 600],
)
def test_holes_that_make_no_sense_are_refused(text: bytes) -> None:
    (good,) = list(TarStream(io.BytesIO(sparse(b"1\n0\n512\n", stored=512)), holes=True))
    assert (good.size, good.issparse()) == (1 << 20, True)
    with pytest.raises(TransferError, match=r"hole|too early"):
        list(TarStream(io.BytesIO(sparse(text, stored=512)), holes=True))


def test_a_map_of_holes_that_would_fill_the_memory_is_refused_and_not_read() -> None:
    stream = io.BytesIO(sparse(b"99999999\n" + b"0\n0\n" * 100000))
    with pytest.raises(TransferError, match="99999999 holes"):
        list(TarStream(stream, holes=True))
    assert stream.tell() < 8192


def test_who_does_not_expect_holes_gets_none() -> None:
    with pytest.raises(TransferError, match="sparse"):
        list(TarStream(io.BytesIO(sparse(b"0\n", size=1 << 60))))


def test_headers_for_all_members_have_an_end() -> None:
    def shared(number: int) -> bytes:
        record = f"key{number:06}=".encode() + b"x" * 700_000
        text = f"{len(record) + 8} ".encode() + record + b"\n"
        header = tarfile.TarInfo("shared")
        header.type, header.size = tarfile.XGLTYPE, len(text)
        return header.tobuf(tarfile.GNU_FORMAT) + text + bytes(-len(text) % 512) + tar.head(odd("a"))

    with pytest.raises(TransferError, match="extended header has"):
        list(TarStream(io.BytesIO(b"".join(map(shared, range(3))) + tar.END)))


@pytest.mark.parametrize("record", [b"15 SCHILY\0.a=b\n", b"12 path=a\0b\n", b"22 mtime=99999999999x\n"])
def test_an_extended_header_that_no_system_could_take_is_refused(record: bytes) -> None:
    header = tarfile.TarInfo("own")
    header.type, header.size = tarfile.XHDTYPE, len(record)
    stream = header.tobuf(tarfile.GNU_FORMAT) + record + bytes(512 - len(record)) + tar.head(odd("a")) + tar.END
    with pytest.raises(TransferError, match="damaged"):
        list(TarStream(io.BytesIO(stream)))


def test_something_after_the_end_is_refused() -> None:
    with pytest.raises(TransferError, match="follows its end"):
        list(TarStream(io.BytesIO(tar.END + b"x" * 512)))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_stream_that_somebody_altered_is_read_or_refused(data: st.DataObject, tmp_path: Path) -> None:
    stream = bytearray(odd_tree())
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(stream) - 1))
        stream[at] = data.draw(st.integers(0, 255))
    broken = bytes(stream[: data.draw(st.integers(0, len(stream)))])
    outside = set(tmp_path.parent.iterdir())
    target = tmp_path / "x" / "target"
    target.mkdir(parents=True, exist_ok=True)
    for read in (
        lambda: cpio.from_tar(io.BytesIO(broken), lambda _: None),
        lambda: unpack(io.BytesIO(broken), target),
    ):
        with suppress(TransferError, OSError):
            read()
    landing._make_removable(tmp_path / "x")
    remove_tree(tmp_path / "x")
    assert set(tmp_path.parent.iterdir()) == outside
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_cpio_that_somebody_altered_is_read_or_refused(data: st.DataObject) -> None:
    buffer = io.BytesIO()
    cpio.from_tar(io.BytesIO(odd_tree()), buffer.write)
    whole = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with suppress(TransferError):
        cpio.to_tar(io.BytesIO(bytes(whole)), lambda _: None)


@pytest.mark.parametrize("name", ["", ".", "./", "a/./b//c/"])
def test_a_name_is_freed_of_what_does_not_matter(name: str) -> None:
    assert checked(name or "./") == "/".join(part for part in name.split("/") if part not in ("", "."))


# -- where it lands ----------------------------------------------------------------------------------------------------


def evil(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = odd(name, kind)
    made.linkname = link
    return made


@pytest.mark.parametrize(
    "members",
    [
        [evil("../evil")],
        [evil("a/../../evil")],
        [evil("/evil")],
        [evil("a"), evil("a/evil")],
        [evil("a"), evil("a")],
        [evil("missing/evil")],
        [evil("out", tarfile.SYMTYPE, ".."), evil("out/evil")],
        [evil("out", tarfile.SYMTYPE, "../evil"), evil("out")],
        [evil("evil", tarfile.LNKTYPE, "../taken")],
        [evil("evil", tarfile.LNKTYPE, "/etc/passwd")],
        [evil("out", tarfile.SYMTYPE, "../taken"), evil("evil", tarfile.LNKTYPE, "out")],
        [evil("null", tarfile.CHRTYPE)],
        [evil("disk", tarfile.BLKTYPE)],
        [evil("pipe", tarfile.FIFOTYPE)],
        [evil("d/" * 201 + "deep")],
    ],
)
def test_what_could_get_out_of_its_folder_or_is_no_file_is_refused(
    members: list[tarfile.TarInfo], tmp_path: Path
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (tmp_path / "taken").write_text("the host's")
    with pytest.raises(TransferError):
        unpack(io.BytesIO(b"".join(map(tar.head, members)) + tar.END), target)
    assert {path.name for path in tmp_path.iterdir()} == {"target", "taken"}
    assert (tmp_path / "taken").stat().st_nlink == 1


def test_what_did_not_land_leaves_nothing(tmp_path: Path) -> None:
    with landing.prepared(["a"], tmp_path / "b") as arrival:
        arrival.receive(io.BytesIO(odd_tree_without_devices()))
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_taken_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(TransferError, match="exists already"), landing.prepared(["taken"], tmp_path):
        pass
    with pytest.raises(TransferError, match="Two"), landing.prepared(["a", "a"], tmp_path):
        pass
    with pytest.raises(TransferError, match="no folder"), landing.prepared(["a", "b"], tmp_path / "none"):
        pass


def test_a_full_disk_of_the_host_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpaceError):
        formats_to_full(tmp_path)


def formats_to_full(tmp_path: Path) -> None:
    with translate_os_errors("write", tmp_path), Path("/dev/full").open("wb", buffering=0) as full:
        cpio.from_tar(io.BytesIO(odd_tree()), full.write)


def odd_tree_without_devices() -> bytes:
    buffer = io.BytesIO()
    buffer.write(tar.head(odd("./a", tarfile.DIRTYPE)))
    buffer.write(tar.END)
    return buffer.getvalue()


# -- what goes in ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".cpio", ".cpio.bz2"])
def test_an_archive_is_known_by_its_name_and_read_by_its_content(suffix: str, tmp_path: Path) -> None:
    content = odd_tree()
    if "cpio" in suffix:
        buffer = io.BytesIO()
        cpio.from_tar(io.BytesIO(content), buffer.write)
        content = buffer.getvalue()
    packers: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
    packers |= {"zst": zstandard.compress, "tgz": gzip.compress}
    packer = packers.get(suffix.rpartition(".")[2], bytes)
    path = tmp_path / f"archive{suffix}"
    path.write_bytes(packer(content))
    assert pack.is_archive(path)
    out = io.BytesIO()
    pack.laying(path, PurePosixPath("/")).feed(out)
    assert normal(described(out.getvalue())) == normal(described(odd_tree()))


@pytest.mark.parametrize("content", [b"no tar at all", os.urandom(2000), b"\x1f\x8bbroken", b"070701", b"BZh9", b""])
def test_what_is_no_archive_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "archive.tar"
    path.write_bytes(content)
    with pytest.raises((TransferError, OSError)):
        pack.laying(path, PurePosixPath("/")).feed(io.BytesIO())


def test_a_folder_brings_its_content_and_a_file_its_name(tmp_path: Path) -> None:
    (tmp_path / "tree" / "etc").mkdir(parents=True)
    (tmp_path / "tree" / "etc" / "a").write_text("a")
    names = []
    for source in (tmp_path / "tree", tmp_path / "tree" / "etc" / "a"):
        out = io.BytesIO()
        pack.laying(source, PurePosixPath("/")).feed(out)
        names.append([(one.name, one.uid, one.uname) for one in TarStream(io.BytesIO(out.getvalue()))])
    assert names == [[("./etc", 0, ""), ("./etc/a", 0, "")], [("a", 0, "")]]


def test_a_pipe_is_not_packed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TransferError, match="neither"):
        pack.pack(tmp_path, io.BytesIO(), ".")
    with pytest.raises(TransferError, match="no file or folder"):
        pack.laying(tmp_path / "none", PurePosixPath("/"))


def require_attributes(folder: Path) -> None:
    try:
        os.setxattr(folder, "user.test", b"")
    except OSError:
        pytest.skip("the file system has no extended attributes")
