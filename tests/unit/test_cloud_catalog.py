"""The catalogue of cloud images: what the packaged one says, and how files of one's own add to it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from tests.unit.webserver import Page, WebServer, web_server
from vmimagemanager import disks
from vmimagemanager.cli.run import run
from vmimagemanager.errors import ConfigError, ImageError
from vmimagemanager.images import cloud
from vmimagemanager.images.cloud import INLINE, Kind

ENTRY = """
[image."site-9"]
url = "https://images.example.org/site-9-{arch}.qcow2"
checksums = "{url}.sha512"
user = "site"
source = "https://images.example.org/"
"""
DIGEST = 128 * "a"


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The administrator's file; the user's own is elsewhere, and neither exists yet."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(cloud, "SYSTEM", tmp_path / "etc.toml")
    return tmp_path / "etc.toml"


def of_user(tmp_path: Path) -> Path:
    path = tmp_path / "config" / "vmimagemanager" / "catalog.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@pytest.mark.usefixtures("system")
def test_every_packaged_entry_is_whole() -> None:
    found = cloud.catalog()
    families = ("debian", "ubuntu", "fedora", "almalinux", "rocky", "centos", "opensuse", "alpine", "arch")
    assert {name.split("-")[0] for name in found} == set(families)
    for image in found.values():
        assert image.name.endswith("-cloud")  # an image that is built has none of these names
        assert image.source.startswith("https://")
        assert image.digests or image.checksums, image.name
        assert not image.signature or image.keyrings, image.name
        for architecture in image.architectures:
            download = cloud.resolve(image, architecture)
            for address in (download.url, download.checksums, download.signature):
                assert address in ("", INLINE) or address.startswith("https://")
                assert not set(address) & set("{} ")
    assert len({cloud.resolve(image).url for image in found.values()}) == len(found)


@pytest.mark.usefixtures("system")
def test_an_address_is_made_for_an_architecture() -> None:
    found = cloud.resolve(cloud.entry("ubuntu-24.04-cloud"), "aarch64")
    assert found.url.endswith("/releases/24.04/release/ubuntu-24.04-server-cloudimg-arm64.img")
    assert (found.kind, found.user) == (Kind.QCOW2, "ubuntu")
    assert found.signature == f"{found.checksums}.gpg"
    fedora = cloud.resolve(cloud.entry("fedora-43-cloud"))
    assert fedora.signature == INLINE
    assert fedora.digest is not None
    assert cloud.resolve(cloud.entry("rocky-9-cloud")).checksums.endswith(".x86_64.qcow2.CHECKSUM")
    with pytest.raises(ImageError, match="does not exist for aarch64") as caught:
        cloud.resolve(cloud.entry("arch-cloud"), "aarch64")
    assert "x86_64" in caught.value.hint


@pytest.mark.usefixtures("system")
def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ImageError, match=r"Did you mean 'debian-13-cloud'\?"):
        cloud.entry("debian-13-clud")


def test_the_user_wins_over_the_administrator_and_both_over_the_package(system: Path, tmp_path: Path) -> None:
    system.write_text(ENTRY + ENTRY.replace("site-9", "arch-cloud"))
    assert cloud.entry("site-9").origin == system
    of_user(tmp_path).write_text(ENTRY.replace('"site"', '"me"') + "checked = 2026-11-20\n")
    found = cloud.catalog()
    assert (found["site-9"].user, found["site-9"].checked) == ("me", date(2026, 11, 20))
    whole = found["arch-cloud"]
    assert (whole.user, whole.checked, whole.origin) == ("site", None, system)  # nothing of the packaged one is left
    assert "debian-12-cloud" in found


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[images.x]\n", "'images' is not a known key"),
        ("[image.X]\n", "'X' is not the name of an image"),
        ('[image."../x"]\n', "is not the name of an image"),
        ("[image.x]\nuser = 'u'\nsource = 'https://x'\n", "'image.x' has no 'url'"),
        (ENTRY + "urls = 1\n", "nearest is 'url'"),
        (ENTRY.replace("https://images.example.org/site", "file:///site"), "expected an address"),
        (ENTRY.replace("{arch}", "{release}"), "expected an address"),
        (ENTRY + "checked = '2026-11-20'\n", "a day without quotes"),
        (ENTRY + "checked = 2026-11-20T10:00:00\n", "a day without quotes"),
        (ENTRY + "kind = 'vmdk'\n", "expected one of 'qcow2', 'raw'"),
        (ENTRY + "key = 'ABCD'\n", "fingerprint"),
        (ENTRY + "keyrings = 'one'\n", "a list of files"),
        (ENTRY + "architectures = {}\n", "at least one architecture"),
        (ENTRY + "architectures = { x86_64 = '../amd64' }\n", "publisher calls"),
        (ENTRY + "digests = { x86_64 = 'md5:00' }\n", "sha256, sha384 or sha512"),
        (ENTRY + f"digests = {{ riscv64 = 'sha512:{DIGEST}' }}\n", "none of its architectures"),
        (ENTRY + "signature = 'somewhere'\n", "expected an address"),
        ("image = 1\n", "expected a table"),
        ("[image\n", "is not TOML"),
    ],
)
def test_what_is_not_understood_is_refused_with_the_file_and_the_key(system: Path, text: str, reason: str) -> None:
    system.write_text(text)
    with pytest.raises(ConfigError, match=reason) as caught:
        cloud.catalog()
    assert str(system) in str(caught.value)


@pytest.mark.usefixtures("system")
def test_all_words_have_to_be_found() -> None:
    entries = cloud.catalog().values()
    assert [one.name for one in cloud.search(entries, ["Debian", "12"])] == ["debian-12-cloud"]
    assert cloud.search(entries, ["debian", "fedora"]) == []
    assert len(cloud.search(entries, [])) == len(entries)


def test_the_verb_lists_and_filters(system: Path, capsys: pytest.CaptureFixture[str]) -> None:
    system.write_text(ENTRY)
    assert run(["image", "catalog", "site"]) == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header.split() == ["IMAGE", "TITLE", "FOR", "USER", "CHECKED"]
    assert line.split() == ["site-9", "site-9", "x86_64", "site", "unverified"]
    assert run(["image", "catalog", "--json", "alma", "10"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["kind"], [one["name"] for one in document["images"]]) == ("catalog", ["almalinux-10-cloud"])
    assert document["images"][0]["checked"] == "2026-11-23"
    assert run(["image", "catalog", "nothing-like-it"]) == 0
    assert capsys.readouterr().out == ""


def test_the_manual_page_describes_every_key_and_its_example_is_an_entry(system: Path) -> None:
    page = (Path(__file__).parents[2] / "man" / "vmimagemanager-catalog.toml.5.rst").read_text()
    described = [line.split("``")[1] for line in page.splitlines() if line.startswith("``") and line.endswith(")")]
    assert sorted(set(described)) == sorted(cloud.KEYS)
    example = page.split("::\n\n", 1)[1].split("SEE ALSO")[0]
    system.write_text("".join(f"{line[4:]}\n" for line in example.splitlines()))
    assert cloud.entry("site-9").title == "our own build"


# -- taking one in -------------------------------------------------------------------------------------------------


@pytest.fixture
def published(system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    """A server with a qcow2, its checksum list and a catalogue entry for both; there is a new state directory."""
    monkeypatch.setenv("VMIM_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("VMIM_CONFIG", "/dev/null")
    monkeypatch.setenv("VMIM_URI", "test:///default")
    raw, disk = tmp_path / "published.raw", tmp_path / "published.qcow2"
    raw.write_bytes(bytes(range(256)) * 4096)
    disks.convert(raw, disk, source_format="raw")
    content = disk.read_bytes()
    with web_server() as server:
        name = "site-9-x86_64.qcow2"
        server.pages[f"/{name}"] = Page(content=content)
        listed = f"SHA512 ({name}) = {hashlib.sha512(content).hexdigest()}\n"
        server.pages[f"/{name}.sha512"] = Page(content=listed.encode())
        system.write_text(ENTRY.replace("https://images.example.org", server.url))
        yield server


def add_line(system: Path, line: str) -> None:
    system.write_text(f"{system.read_text()}{line}\n")


@pytest.mark.usefixtures("published")
def test_an_image_of_the_catalogue_is_imported_by_its_name_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["image", "import", "site-9", "--json"]) == 0
    image = json.loads(capsys.readouterr().out)["image"]
    assert (image["address"], image["user"], image["seed"], image["agent"]) == ("site-9:1", "site", "nocloud", False)
    assert image["description"] == "site-9"


def test_an_image_that_is_not_in_its_list_as_it_is_ends_the_import(
    published: WebServer, capsys: pytest.CaptureFixture[str]
) -> None:
    page = published.pages["/site-9-x86_64.qcow2"]
    page.content = page.content[:-1] + b"x"
    assert run(["image", "import", "site-9"]) == 112
    assert "its sha512 is" in capsys.readouterr().err
    assert run(["image", "import", "site-8"]) == 112
    assert "Did you mean 'site-9'?" in capsys.readouterr().err


def test_a_digest_of_the_entry_counts_beside_the_list(
    published: WebServer, system: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_line(system, f"digests = {{ x86_64 = 'sha256:{64 * 'a'}' }}")
    assert run(["image", "import", "site-9"]) == 112
    assert "its sha256 is" in capsys.readouterr().err
    good = hashlib.sha256(published.pages["/site-9-x86_64.qcow2"].content).hexdigest()
    system.write_text(system.read_text().replace(64 * "a", good))
    assert run(["image", "import", "site-9"]) == 0


def test_a_signature_is_asked_for_and_counts(
    published: WebServer, system: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    signed = Path(__file__).parent / "signed"
    published.pages["/sig"] = Page(content=(signed / "SHA256SUMS.gpg").read_bytes())
    add_line(system, f"signature = '{published.url}/sig'")
    assert run(["image", "import", "site-9"]) == 0
    assert "is unverified: The signer's key is not on this host" in capsys.readouterr().err
    add_line(system, f"keyrings = ['{signed / 'signer.gpg'}']")
    assert run(["image", "import", "site-9"]) == 112  # it is that of another list
    assert "is not good" in capsys.readouterr().err


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("option", [["--user", "root"], ["--cloud-init"], ["--firmware", "bios"], ["--format", "raw"]])
def test_what_the_catalogue_says_cannot_be_said_beside_it(
    option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["image", "import", "site-9", *option]) == 2
    assert f"{option[0]} needs a SOURCE" in capsys.readouterr().err


def test_an_image_with_cloud_init_is_imported_from_anywhere(
    published: WebServer, capsys: pytest.CaptureFixture[str]
) -> None:
    source = f"{published.url}/site-9-x86_64.qcow2"
    assert run(["image", "import", "mine", source, "--cloud-init", "--user", "me", "--json"]) == 0
    image = json.loads(capsys.readouterr().out)["image"]
    assert (image["seed"], image["user"]) == ("nocloud", "me")
