"""A shared store in buckets of an S3 server, which is moto's, in this process, on the loopback."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import httpx
import pytest
from moto.server import ThreadedMotoServer

from vmimagemanager import Manager
from vmimagemanager.errors import ImageError
from vmimagemanager.images.transport import Transport

KEY, SECRET = "AKIAVMIMAGEMANAGER00", "never-to-be-seen-anywhere"
URL = "s3://bucket/images"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An S3 server with an empty bucket, its address; what our environment says leads to it."""
    started = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    started.start()
    host, port = started.get_host_and_port()
    url = f"http://{host}:{port}"
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    httpx.post(f"{url}/moto-api/reset").raise_for_status()  # all servers of a process have the same buckets
    fsspec.filesystem("s3").clear_instance_cache()
    fsspec.filesystem("s3").mkdir("bucket")
    yield url
    started.stop()


def test_generations_travel_through_a_bucket(manager: Manager, server: str, tmp_path: Path) -> None:
    pushed = manager.push_image("tiny", URL)
    assert (pushed.address, pushed.was_there) == ("tiny:1", False)
    assert manager.push_image("tiny", URL).was_there
    with Manager.open(uri="test:///default", state_directory=tmp_path / "far") as far:
        assert [one.address for one in far.shared_images(URL)] == ["tiny:1"]
        image = far.pull_image("tiny", URL).image
        far.images.verify(image)
        assert image.digests == manager.images.get("tiny").digests
        second = far.images.add("tiny", image.disk, kernel=image.kernel, initrd=image.initrd, command_line="loud")
        assert far.push_image(second.address, URL).address == "tiny:2"
    assert [one.address for one in manager.shared_images(URL)] == ["tiny:1", "tiny:2"]


def test_what_lets_us_into_a_bucket_is_told_to_nobody(
    manager: Manager, server: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    manager.push_image("tiny", URL)
    manager.shared_images(URL)
    with pytest.raises(ImageError) as caught:
        manager.pull_image("none", URL)
    said = "".join((*capfd.readouterr(), caplog.text, str(caught.value), caught.value.hint, caught.value.detail))
    assert SECRET not in said
    stored = b"".join(path.read_bytes() for path in manager.state_directory.rglob("*") if path.is_file())
    assert SECRET.encode() not in stored


def test_an_object_that_was_altered_does_not_get_in(manager: Manager, server: str, tmp_path: Path) -> None:
    manager.push_image("tiny", URL)
    bucket = Transport(URL)
    for folder in bucket.names("chunks"):
        for name in bucket.names(f"chunks/{folder}"):
            bucket.write(f"chunks/{folder}/{name}", b"something else")
    with Manager.open(uri="test:///default", state_directory=tmp_path / "far") as far:
        with pytest.raises(ImageError, match="damaged"):
            far.pull_image("tiny", URL)
        assert far.images.list() == []


def test_a_bucket_that_is_not_there_and_a_server_that_is_gone_are_one_error_each(
    manager: Manager, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ImageError, match=r"Cannot write 'vmimagemanager\.toml' in the shared store 's3://none/images'"):
        manager.push_image("tiny", "s3://none/images")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(ImageError, match=r"Cannot read 'vmimagemanager\.toml' in the shared store 's3://gone/images'"):
        manager.pull_image("tiny", "s3://gone/images")
