"""Pushing and pulling: what travels, what is believed, and what an interruption leaves."""

from __future__ import annotations

import functools
import http.server
import os
import random
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from vmimagemanager import disks, records
from vmimagemanager.errors import ImageError, SpaceError, UsageError, VmimError
from vmimagemanager.images import Image, ImageStore, chunks, manifest, pull, share
from vmimagemanager.images.chunks import Chunk
from vmimagemanager.images.share import Shared
from vmimagemanager.images.stage import stage
from vmimagemanager.images.transport import Transport
from vmimagemanager.progress import silent
from vmimagemanager.units import Size

CLUSTER = 64 << 10


class Host:
    """A state directory of its own."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.store = ImageStore(state)

    def made(self, content: bytes, *, name: str = "web", parent: Image | None = None, at: int = 0) -> Image:
        """Publish a disk with this content, as an overlay on a parent's where one is given."""
        with stage(self.state, purpose="test") as own:
            raw, disk = own / "raw", own / "disk"
            raw.write_bytes(content)
            if parent is None:
                disks.convert(raw, disk, source_format="raw")
            else:
                disks.create_overlay(disk, parent.disk)
                words: list[str | Path] = ["qemu-io", "-f", "qcow2", "-c", f"write -s {raw} {at} {len(content)}", disk]
                subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
                disks.name_backing(disk, parent.disk.name)
            (own / "kernel").write_bytes(b"kernel")
            size = disks.info(disk).virtual_size if parent is None else parent.disk_size
            image = Image(
                name=name,
                generation=1,
                created=datetime(2026, 11, 1, tzinfo=UTC),
                disk=disk,
                kernel=own / "kernel",
                disk_size=size,
                digests={},
                packages={"bash": "5.2"},
            )
            return self.store.publish(own, image)

    def push(self, image: Image, url: object) -> share.Pushed:
        return share.push(self.store, image, str(url), progress=silent)

    def pull(self, address: str, url: object) -> pull.Pulled:
        return pull.pull(self.store, self.state, address, str(url), progress=silent)


def noise(seed: int, clusters: int) -> bytes:
    return random.Random(seed).randbytes(clusters * CLUSTER)


@pytest.fixture
def here(tmp_path: Path) -> Host:
    return Host(tmp_path / "here")


@pytest.fixture
def there(tmp_path: Path) -> Host:
    return Host(tmp_path / "there")


@pytest.fixture
def url(tmp_path: Path) -> Path:
    return tmp_path / "shared"


def test_what_is_pulled_is_what_was_pushed(here: Host, there: Host, url: Path) -> None:
    image = here.made(noise(1, 40))
    pushed = here.push(image, url)
    assert (pushed.address, pushed.was_there) == ("web:1", False)
    pulled = there.pull("web", url)
    found = pulled.image
    assert replace(found, disk=image.disk, kernel=image.kernel) == image
    there.store.verify(found)
    assert pulled.travelled.bytes >= 40 * CLUSTER
    assert there.pull("web:1", url).was_here
    assert here.push(image, f"file://{url}").was_there


def test_a_generation_on_its_parent_costs_what_was_written(here: Host, there: Host, url: Path) -> None:
    one = here.made(noise(1, 400))
    here.push(one, url)
    first = there.pull("web", url)
    two = here.made(noise(2, 4), parent=one, at=7 * CLUSTER)
    here.push(two, url)
    second = there.pull("web:2", url)
    assert second.image.parents == (*one.parents, one.digests["disk"])
    there.store.verify(second.image)
    subprocess.run(["qemu-img", "compare", "-q", two.disk, second.image.disk], check=True)
    assert second.travelled.bytes < 0.05 * first.travelled.bytes


def test_an_image_that_was_built_anew_shares_what_is_the_same(here: Host, there: Host, url: Path) -> None:
    content = noise(1, 1000)
    here.push(here.made(content), url)
    first = there.pull("web", url)
    changed = content[: 300 * CLUSTER] + noise(3, 10) + content[305 * CLUSTER :]  # five clusters more, too
    pushed = here.push(here.made(changed), url)
    second = there.pull("web", url)
    assert second.image.generation == 2
    assert second.travelled.bytes < 0.1 * first.travelled.bytes
    assert pushed.travelled.bytes < 0.1 * first.travelled.bytes


def test_two_who_push_at_once_become_two_generations(here: Host, there: Host, url: Path) -> None:
    images = [(here, here.made(noise(1, 4))), (there, there.made(noise(2, 4)))]
    here.push(here.made(noise(3, 2)), url)
    pushed: list[str] = []
    threads = [
        threading.Thread(target=lambda host=host, image=image: pushed.append(host.push(image, url).address))
        for host, image in images
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(pushed) == ["web:2", "web:3"]
    assert [(image.name, image.generation) for image in share.listing(here.store, str(url))] == [
        ("web", 1),
        ("web", 2),
        ("web", 3),
    ]
    index = records.parse((url / share.INDEX).read_text(), source="index")
    assert len(index["images"]["web"]) == 3
    assert list(url.rglob("*.part")) == []


def test_what_is_not_there_is_named_with_what_is(here: Host, url: Path) -> None:
    with pytest.raises(ImageError, match="no shared store") as caught:
        here.pull("web", url)
    assert "image push" in caught.value.hint
    here.push(here.made(noise(1, 1)), url)
    with pytest.raises(ImageError, match="no image 'db'") as caught:
        here.pull("db", url)
    assert caught.value.hint == "There are: web."
    with pytest.raises(ImageError, match="no generation 7"):
        here.pull("web:7", url)
    (url / share.MARKER).write_text("format = 9\n")
    with pytest.raises(ImageError, match="format 9"):
        here.pull("web", url)
    with pytest.raises(UsageError, match="not known"):
        here.pull("web", "gopher://example/")


# What is believed


def manifest_of(url: Path) -> Path:
    (path,) = (url / "images/web").iterdir()
    return path


def largest_chunk(url: Path) -> Path:
    return max((path for path in (url / "chunks").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def turn_round(path: Path) -> None:
    title, *lines = path.read_text().splitlines()
    path.write_text("\n".join([title, *reversed(lines), ""]))


def each(url: Path, deed: Callable[[Path], None]) -> None:
    for path in (url / "blobs").iterdir():
        deed(path)


def swap(old: str, new: str) -> Callable[[Path], None]:
    def change(url: Path) -> None:
        path = manifest_of(url)
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return change


LIES: dict[str, Callable[[Path], object]] = {
    "a chunk is missing": lambda url: largest_chunk(url).unlink(),
    "a chunk is cut off": lambda url: truncate(largest_chunk(url)),
    "a chunk is another one": lambda url: largest_chunk(url).write_bytes(chunks.pack(b"other")),
    "a chunk unpacks to more": lambda url: largest_chunk(url).write_bytes(chunks.pack(bytes(1 << 30))),
    "a chunk never ends": lambda url: largest_chunk(url).write_bytes(bytes(4 << 20)),
    "a list is missing": lambda url: each(url, Path.unlink),
    "a list is cut off": lambda url: each(url, truncate),
    "a list is in another order": lambda url: each(url, turn_round),
    "the manifest is cut off": lambda url: truncate(manifest_of(url)),
    "the manifest is nested": lambda url: manifest_of(url).write_text("a=" + "[" * 100_000),
    "the manifest is that of another image": swap('name = "web"', 'name = "db"'),
    "the user is an option": swap('user = "root"', 'user = "-oProxyCommand=x"'),
    "a digest is a path": swap('kernel = "', 'kernel = "../../'),
    "the size is another one": swap("disk_size = ", "disk_size = 1"),
    "a parent is invented": swap("[digests]", f'parents = ["{"0" * 128}"]\n[digests]'),
    "the format is newer": swap("format = 1", "format = 2"),
}


@pytest.mark.parametrize("lie", LIES)
def test_nothing_of_a_store_that_lies_gets_in(here: Host, there: Host, url: Path, lie: str) -> None:
    kept = there.made(noise(9, 1), name="own")
    here.push(here.made(noise(1, 40)), url)
    LIES[lie](url)
    with pytest.raises(ImageError) as caught:
        there.pull("web", url)
    assert str(url) in caught.value.message or "web" in caught.value.message
    assert [image.address for image in there.store.list()] == [kept.address]
    assert {path.name for path in (there.state / "blobs/sha512").iterdir()} == set(kept.needed)
    assert [path.name for path in (there.state / "stage/images").iterdir()] == ["lock"]


def test_a_disk_that_stands_outside_is_refused_whatever_the_manifest_says(
    here: Host, there: Host, url: Path, tmp_path: Path
) -> None:
    image = here.made(noise(1, 2))
    evil = tmp_path / "evil"
    subprocess.run(
        [
            "qemu-img",
            "create",
            "-q",
            "-u",
            "-f",
            "qcow2",
            "-F",
            "raw",
            "-b",
            "/etc/passwd",
            evil,
            str(image.disk_size.bytes),
        ],
        check=True,
    )
    pieces = chunks.cut(evil)
    shared = Shared(str(url), make=True)
    for at, chunk in pieces.placed():
        shared.transport.write(
            f"chunks/{chunk.digest[:2]}/{chunk.digest}", chunks.pack(evil.read_bytes()[at : at + chunk.size])
        )
    shared.transport.write(f"blobs/{pieces.sha512}", pieces.text().encode())
    forged = replace(image, digests={"disk": pieces.sha512}, sizes={}, kernel=None)
    share._claim(shared, "web", "0" * 16, manifest.to_record(forged))
    with pytest.raises(ImageError, match="no disk of the store"):
        there.pull("web", url)
    assert there.store.list() == []


def test_what_is_damaged_here_travels_once_more_and_is_no_new_generation(here: Host, there: Host, url: Path) -> None:
    one = here.made(noise(1, 20))
    two = here.made(noise(2, 4), parent=one)
    here.push(two, url)
    image = there.pull("web", url).image
    base = there.store.blob(image.parents[0])
    base.chmod(0o644)
    base.write_bytes(b"nonsense")
    again = there.pull("web", url)
    assert (again.image, again.was_here) == (image, False)
    assert again.travelled.bytes >= 20 * CLUSTER
    there.store.verify(image)


# Interruption


def test_a_pull_that_was_interrupted_goes_on_where_it_was(
    here: Host, there: Host, url: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.push(here.made(noise(1, 400)), url)
    fetched, whole = 0, Shared.fetch

    def fetch(self: Shared, chunk: Chunk) -> tuple[bytes, int]:
        nonlocal fetched
        fetched += 1
        if fetched == 60:
            raise KeyboardInterrupt
        return whole(self, chunk)

    with monkeypatch.context() as patch:
        patch.setattr(Shared, "fetch", fetch)
        with pytest.raises(KeyboardInterrupt):
            there.pull("web", url)
    assert there.store.list() == []
    (left,) = pull.stale(there.state, remove=False)
    assert left[1].bytes > 0
    pulled = there.pull("web", url)
    assert pulled.travelled.bytes < 380 * CLUSTER
    there.store.verify(pulled.image)
    assert pull.stale(there.state, remove=False) == []


def test_what_an_interrupted_pull_left_can_be_removed(there: Host) -> None:
    folder = there.state / "cache/pulls"
    folder.mkdir(parents=True)
    (folder / ("a" * 128)).write_bytes(b"half")
    assert len(pull.stale(there.state, remove=True)) == 1
    assert list(folder.iterdir()) == []


def test_a_pull_that_finds_the_disk_full_leaves_no_space_taken(
    here: Host, there: Host, url: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.push(here.made(noise(1, 40)), url)

    write = os.pwrite

    def full(descriptor: int, content: bytes, at: int) -> int:
        if len(content) >= CLUSTER:
            raise OSError(28, "No space left on device")
        return write(descriptor, content, at)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(SpaceError, match="No space left"):
            there.pull("web", url)
    assert list((there.state / "cache/pulls").iterdir()) == []
    there.pull("web", url)


# Places


@pytest.fixture
def served(url: Path) -> Iterator[str]:
    """The shared store, as a web server on the loopback shows it."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None: ...

    url.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(url)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_web_server_can_be_pulled_from_and_not_pushed_to(here: Host, there: Host, url: Path, served: str) -> None:
    image = here.made(noise(1, 40))
    with pytest.raises(UsageError, match="cannot be written to"):
        here.push(image, served)
    here.push(image, url)
    pulled = there.pull("web", served)
    there.store.verify(pulled.image)
    assert [one.address for one in share.listing(there.store, served)] == ["web:1"]


def test_an_object_store_takes_files_whole(here: Host, there: Host) -> None:
    image = here.made(noise(1, 40))
    here.push(image, "memory://bucket/images")
    there.store.verify(there.pull("web", "memory://bucket/images").image)


def test_a_server_that_is_not_there_is_one_error(there: Host) -> None:
    for url in ("http://127.0.0.1:9", "ssh://127.0.0.1:9/images", "file:///proc/nothing/images"):
        with pytest.raises(VmimError):
            there.pull("web", url)


def test_a_password_in_an_address_is_in_no_message(there: Host) -> None:
    for url in ("ssh://somebody:secret@127.0.0.1:9/images", "http://somebody:secret@127.0.0.1:9/images"):
        with pytest.raises(VmimError, match="somebody@127") as caught:
            there.pull("web", url)
        assert "secret" not in str(caught.value) + caught.value.hint + caught.value.detail


def test_a_package_that_is_missing_is_named(there: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "aiohttp", None)
    with pytest.raises(ImageError, match="not installed") as caught:
        there.pull("web", "http://127.0.0.1:9")
    assert caught.value.hint == "pip install aiohttp"


def test_a_file_with_more_bytes_than_it_may_have_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(100))
    transport = Transport(str(tmp_path))
    assert transport.read("file", most=100) == bytes(100)
    assert transport.read("none", most=100) is None
    with pytest.raises(ImageError, match="more than 99 bytes"):
        transport.read("file", most=99)


# Pieces


def test_a_file_is_its_pieces_and_they_are_of_the_promised_size(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(noise(5, 100) + bytes(40 * CLUSTER) + b"end")
    pieces = chunks.cut(path)
    assert chunks.parse(pieces.text().encode(), sha512=pieces.sha512, source="") == pieces
    assert pieces.size == path.stat().st_size
    assert max(chunk.size for chunk in pieces.chunks) <= chunks.LONGEST
    for at, chunk in pieces.placed():
        content = path.read_bytes()[at : at + chunk.size]
        assert chunks.unpack(chunks.pack(content), chunk) == content
    assert Size(pieces.size) == Size(140 * CLUSTER + 3)
