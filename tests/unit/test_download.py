"""Downloads, against a server that can be told to behave badly."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.unit.webserver import Page, WebServer, web_server
from vmimagemanager import durable
from vmimagemanager.errors import DeadlineError, ImageError, SpaceError
from vmimagemanager.images import download
from vmimagemanager.images.download import Expected
from vmimagemanager.locks import FileLock
from vmimagemanager.progress import silent
from vmimagemanager.units import Size

CONTENT = os.urandom(300_000)
NOTHING = Expected(digests={})
RIGHT = Expected(size=Size(len(CONTENT)), digests={"sha512": hashlib.sha512(CONTENT).hexdigest()})


@pytest.fixture
def web() -> Iterator[WebServer]:
    with web_server() as server:
        yield server


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PATIENCE", timedelta(seconds=0.3))


class Fetcher:
    """Fetches one page, each time into a stage of its own."""

    def __init__(self, web: WebServer, folder: Path) -> None:
        self.web = web
        self.folder = folder
        self.count = 0

    def __call__(self, page: Page, expected: Expected = NOTHING, *, keep: bool = False) -> bytes:
        self.web.pages["/disk.qcow2"] = page
        self.count += 1
        stage = self.folder / f"stage-{self.count}"
        stage.mkdir()
        cache = self.folder / "cache"
        url = f"{self.web.url}/disk.qcow2"
        return download.fetch(url, stage, cache, expected=expected, keep=keep, progress=silent).read_bytes()

    @property
    def part(self) -> Path | None:
        return next(iter(self.folder.glob("cache/downloads/*/part")), None)

    @property
    def whole(self) -> Path | None:
        return next(iter(self.folder.glob("cache/downloads/*/whole")), None)


@pytest.fixture
def fetch(web: WebServer, tmp_path: Path) -> Fetcher:
    return Fetcher(web, tmp_path)


def test_a_file_is_fetched_whole_and_nothing_else_is_left(fetch: Fetcher, tmp_path: Path) -> None:
    assert fetch(Page(content=CONTENT), RIGHT) == CONTENT
    assert list((tmp_path / "cache" / "downloads").iterdir()) == []


def test_progress_is_told_as_far_as_the_server_says_how_much_there_is(web: WebServer, tmp_path: Path) -> None:
    web.pages["/a"] = Page(content=CONTENT)
    told: list[float | None] = []
    download.fetch(
        f"{web.url}/a", tmp_path, tmp_path, expected=RIGHT, progress=lambda _, fraction: told.append(fraction)
    )
    assert told[-1] == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("etag", "modified"), [('"one"', None), ('W/"weak"', "Tue, 20 May 2025 00:00:00 GMT")], ids=["strong", "weak"]
)
def test_an_answer_that_breaks_off_is_gone_on_with_in_the_same_call(
    fetch: Fetcher, etag: str, modified: str | None
) -> None:
    page = Page(content=CONTENT, breaks_at=100_000, etag=etag, modified=modified)
    assert fetch(page, RIGHT) == CONTENT
    assert [asked.get("Range") for asked in page.asked] == [None, "bytes=100000-", "bytes=200000-"]


def test_what_an_earlier_attempt_fetched_is_gone_on_with(fetch: Fetcher) -> None:
    with pytest.raises(ImageError, match=r"ended after 100000 of 300000|cannot be fetched") as caught:
        fetch(Page(content=CONTENT, breaks_at=100_000, ranges=False), RIGHT)
    assert "goes on from there" in caught.value.hint
    page = Page(content=CONTENT)
    assert fetch(page, RIGHT) == CONTENT
    assert page.asked[0]["Range"] == "bytes=100000-"
    assert page.asked[0]["If-Range"] == '"one"'


@pytest.mark.parametrize(
    "page",
    [
        Page(content=CONTENT, etag='"two"'),
        Page(content=CONTENT, ranges=False),
        Page(content=CONTENT, says_range="bytes 0-299999/300000"),
        Page(content=CONTENT, says_range="bytes 100000-299998/299999"),
        Page(content=CONTENT, says_range="items 1-2/3"),
    ],
)
def test_another_file_than_before_is_fetched_from_its_beginning(fetch: Fetcher, page: Page) -> None:
    with pytest.raises(ImageError):
        fetch(Page(content=bytes(300_000), breaks_at=100_000, ranges=False))
    if page.says_range is not None:  # refused once, and then asked for as a whole
        with pytest.raises(ImageError, match="another part"):
            fetch(page, RIGHT)
    assert fetch(page, RIGHT) == CONTENT


def test_what_was_fetched_without_a_validator_is_not_gone_on_with(fetch: Fetcher) -> None:
    with pytest.raises(ImageError):
        fetch(Page(content=bytes(300_000), breaks_at=100_000, etag=None))
    page = Page(content=CONTENT)
    assert fetch(page, RIGHT) == CONTENT
    assert "Range" not in page.asked[0]


def test_what_was_fetched_before_the_host_was_booted_is_not_gone_on_with(
    fetch: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ImageError):
        fetch(Page(content=CONTENT, breaks_at=100_000, ranges=False))
    monkeypatch.setattr(download, "_boot", lambda: "another")
    page = Page(content=CONTENT)
    assert fetch(page, RIGHT) == CONTENT
    assert "Range" not in page.asked[0]


def test_a_truncated_download_is_an_error_that_says_how_much_came(fetch: Fetcher) -> None:
    with pytest.raises(ImageError, match=r"cannot be fetched|ended after") as caught:
        fetch(Page(content=CONTENT[:1000], length=300_000, ranges=False))
    assert "1000" in caught.value.message + caught.value.hint


def test_a_download_that_is_longer_than_it_may_be_is_refused_at_once(fetch: Fetcher) -> None:
    with pytest.raises(ImageError, match="300000 bytes, and not 1000"):
        fetch(Page(content=CONTENT), Expected(size=Size(1000), digests={}))
    with pytest.raises(ImageError, match="longer than the 1000 bytes"):
        fetch(Page(content=CONTENT, says_length=False), Expected(size=Size(1000), digests={}))


def test_a_length_that_is_too_small_is_found_by_the_digest(fetch: Fetcher) -> None:
    with pytest.raises(ImageError, match=r"not what was expected: its sha512|longer"):
        fetch(Page(content=CONTENT, length=1000), Expected(digests=RIGHT.digests))
    assert fetch.part is None


def test_a_wrong_digest_is_refused_and_what_was_wrong_is_not_gone_on_with(fetch: Fetcher) -> None:
    with pytest.raises(ImageError, match="its sha512 is"):
        fetch(Page(content=bytes(len(CONTENT))), RIGHT)
    assert fetch.part is None
    assert fetch(Page(content=CONTENT), RIGHT) == CONTENT


@pytest.mark.parametrize("at", [0, 5000])
def test_a_server_that_stalls_is_given_up_in_time_and_what_came_is_kept(fetch: Fetcher, at: int) -> None:
    with pytest.raises(DeadlineError, match="stalls"):
        fetch(Page(content=CONTENT, stalls_at=at, ranges=False))
    assert fetch.part is None or fetch.part.stat().st_size == at


def test_a_server_that_drips_is_given_up(fetch: Fetcher) -> None:
    with pytest.raises(DeadlineError, match="next to nothing"):
        fetch(Page(content=bytes(10_000), drips=True, ranges=False))


def test_a_disk_that_becomes_full_keeps_what_came(fetch: Fetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "free_space", lambda _: Size((1 << 30) + 1000))
    with pytest.raises(SpaceError, match="needs"):
        fetch(Page(content=CONTENT))
    monkeypatch.setattr(download, "free_space", durable.free_space)
    assert fetch(Page(content=CONTENT), RIGHT) == CONTENT


def test_an_answer_of_no_use_is_named(fetch: Fetcher, web: WebServer, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="404 Not Found"):
        download.fetch(f"{web.url}/none", tmp_path, tmp_path, expected=NOTHING, progress=silent)
    with pytest.raises(ImageError, match="encoding"):
        fetch(Page(content=CONTENT, encoding="gzip"))
    with pytest.raises(ImageError, match="cannot be fetched"):
        fetch(Page(content=CONTENT, redirect="/disk.qcow2"))
    with pytest.raises(ImageError, match="cannot be fetched"):
        download.fetch("http://127.0.0.1:9/x", tmp_path, tmp_path, expected=NOTHING, progress=silent)


def test_a_password_in_an_address_is_not_shown() -> None:
    assert download.shown("https://me:secret@host:8443/a/b.img?token=1") == "https://host:8443/a/b.img"


def test_a_kept_download_is_used_again_when_its_digest_or_the_server_says_so(fetch: Fetcher) -> None:
    page = Page(content=CONTENT)
    assert fetch(page, keep=True) == CONTENT
    assert fetch.whole is not None
    assert fetch(page, RIGHT) == CONTENT  # by its digest, without a question
    assert len(page.asked) == 1
    assert fetch(page) == CONTENT
    assert page.asked[1]["If-None-Match"] == '"one"'
    other = Page(content=CONTENT[::-1], etag='"two"')
    assert fetch(other) == CONTENT[::-1]


def test_two_that_fetch_the_same_both_get_it(fetch: Fetcher, tmp_path: Path) -> None:
    with pytest.raises(ImageError):
        fetch(Page(content=CONTENT, breaks_at=100_000, ranges=False))
    part = fetch.part
    assert part is not None
    with FileLock(part.parent.with_name(f"{part.parent.name}.lock")):
        assert fetch(Page(content=CONTENT), RIGHT) == CONTENT
        assert part.stat().st_size == 100_000
    assert [path for path, _ in download.leftovers(tmp_path / "cache", remove=True)] == [part.parent]
    assert download.leftovers(tmp_path / "cache", remove=False) == []


def test_a_small_document_is_bounded(web: WebServer) -> None:
    web.pages["/SHA512SUMS"] = Page(content=b"abc")
    assert download.document(f"{web.url}/SHA512SUMS") == b"abc"
    with pytest.raises(ImageError, match="longer than"):
        download.document(f"{web.url}/SHA512SUMS", most=Size(2))
