"""Named inserts and archives of files: kept whole, for their owner alone, or not at all."""

from __future__ import annotations

import io
import json
import stat
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest

from vmimagemanager.boxes.inserts import Inserts
from vmimagemanager.cli.run import run
from vmimagemanager.errors import BoxError, ImageError, TransferError, UsageError
from vmimagemanager.files import formats, tar
from vmimagemanager.files.formats import Format
from vmimagemanager.files.tarstream import TarStream
from vmimagemanager.images.archives import ArchiveStore
from vmimagemanager.units import Size


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "tree" / "etc").mkdir(parents=True)
    (tmp_path / "tree" / "etc" / "key").write_text("secret")
    return tmp_path / "tree"


def names(feed: Callable[[io.BytesIO], object]) -> list[str]:
    out = io.BytesIO()
    feed(out)
    return [member.name for member in TarStream(io.BytesIO(out.getvalue()))]


def test_an_insert_is_a_copy_that_only_its_owner_can_read(state: Path, tree: Path) -> None:
    inserts = Inserts(state)
    kept = inserts.add("keys", tree, PurePosixPath("/opt"))
    (tree / "etc" / "later").touch()
    assert (kept.name, kept.folder, kept.source) == ("keys", PurePosixPath("/opt"), str(tree))
    assert inserts.list() == [kept]
    laying = inserts.laying("keys")
    assert (laying.folder, names(laying.feed)) == (PurePosixPath("/opt"), ["./etc", "./etc/key"])
    assert stat.S_IMODE((state / "inserts").stat().st_mode) == 0o700
    assert stat.S_IMODE((state / "inserts" / "keys" / "files.tar.zst").stat().st_mode) == 0o600


def test_an_insert_that_cannot_be_kept_leaves_nothing(state: Path, tree: Path) -> None:
    inserts = Inserts(state)
    inserts.add("keys", tree)
    with pytest.raises(BoxError, match="already"):
        inserts.add("keys", tree)
    with pytest.raises(UsageError, match="not the name"):
        inserts.add("../keys", tree)
    with pytest.raises(UsageError, match="begins with '/'"):
        inserts.add("others", tree, PurePosixPath("opt/../.."))
    with pytest.raises(TransferError, match="no file or folder"):
        inserts.add("others", tree / "none")
    (tree / "broken.tar").write_bytes(b"x" * 1000)
    with pytest.raises(TransferError, match="damaged"):
        inserts.add("others", tree / "broken.tar")
    assert [path.name for path in (state / "inserts").iterdir()] == ["keys"]
    assert [path.name for path in (state / "stage" / "images").iterdir()] == ["lock"]


def test_an_insert_that_is_removed_is_gone_and_what_there_is_is_told(state: Path, tree: Path) -> None:
    inserts = Inserts(state)
    inserts.add("keys", tree)
    inserts.add("certificates", tree)
    inserts.remove("keys")
    with pytest.raises(BoxError, match="no insert 'keys'") as caught:
        inserts.laying("keys")
    assert caught.value.hint == "There are: certificates."
    with pytest.raises(BoxError, match="no insert"):
        inserts.remove("keys")


def test_a_source_is_an_insert_or_a_file_and_never_either(
    state: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inserts = Inserts(state)
    inserts.add("keys", tree, PurePosixPath("/opt"))
    monkeypatch.chdir(tree)
    assert inserts.resolve("keys", None).folder == PurePosixPath("/opt")
    assert inserts.resolve("keys", PurePosixPath("/srv")).folder == PurePosixPath("/srv")
    assert inserts.resolve("etc", None).folder == PurePosixPath("/")
    (tree / "keys").touch()
    with pytest.raises(UsageError, match="an insert and a file"):
        inserts.resolve("keys", None)
    assert names(inserts.resolve("./keys", None).feed) == ["keys"]


def stream() -> io.BytesIO:
    return io.BytesIO(tar.END)


def keep(store: ArchiveStore, name: str) -> None:
    def make(target: Path) -> Size:
        formats.keep(stream(), Format.TAR_ZST, target, lambda _: None)
        return Size(1024)

    store.keep(name, Format.TAR_ZST, make, stored_from="web", description="d")


def test_archives_have_generations_of_which_the_latest_is_meant(state: Path) -> None:
    store = ArchiveStore(state)
    for _ in range(2):
        keep(store, "web-files")
    assert [archive.address for archive in store.list()] == ["web-files:1", "web-files:2"]
    assert (store.get("web-files").generation, store.get("web-files:1").generation) == (2, 1)
    store.verify(store.get("web-files:1"))
    assert stat.S_IMODE(store.get("web-files").path.stat().st_mode) == 0o600
    store.remove("web-files:2")
    assert store.get("web-files").generation == 1
    with pytest.raises(ImageError, match="no generation 2"):
        store.get("web-files:2")
    store.remove("web-files")
    with pytest.raises(ImageError, match="no archive"):
        store.get("web-files")
    assert [path.name for path in (state / "archives").iterdir()] == ["lock"]


def test_an_archive_that_cannot_be_made_leaves_nothing(state: Path) -> None:
    store = ArchiveStore(state)

    def make(target: Path) -> Size:
        target.write_bytes(b"half")
        raise TransferError("The guest is gone.")

    with pytest.raises(TransferError):
        store.keep("web-files", Format.TAR_ZST, make, stored_from="web", description="")
    (state / "images" / "debian-12" / "1").mkdir(parents=True)
    with pytest.raises(ImageError, match="a name of their own"):
        keep(store, "debian-12")
    with pytest.raises(ImageError, match="holds a disk"):
        store.get("debian-12")
    assert store.list() == []
    assert [path.name for path in (state / "stage" / "images").iterdir()] == ["lock"]


def test_an_altered_archive_is_refused(state: Path) -> None:
    store = ArchiveStore(state)
    keep(store, "web-files")
    archive = store.get("web-files")
    archive.path.write_bytes(archive.path.read_bytes() + b"x")
    with pytest.raises(ImageError, match="not what its digest says"):
        store.verify(archive)
    assert [(where, type(error)) for where, error in store.examine()] == [("web-files:1", ImageError)]
    archive.path.unlink()
    with pytest.raises(ImageError, match="missing"):
        store.verify(archive)


# -- on the command line -----------------------------------------------------------------------------------------------


@pytest.fixture
def surroundings(tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VMIM_STATE_DIR", str(tmp_path / "new-state"))
    monkeypatch.setenv("VMIM_CONFIG", "/dev/null")
    monkeypatch.setenv("VMIM_URI", "test:///default")  # libvirt's own test driver: no daemon is asked
    monkeypatch.chdir(tree)
    return tmp_path


def test_inserts_are_added_listed_and_removed(surroundings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["insert", "add", "keys", "etc", "--to", "/opt"]) == 0
    assert capsys.readouterr().out.startswith("keys: kept, ")
    assert run(["insert", "list", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [(one["name"], one["to"]) for one in document["inserts"]] == [("keys", "/opt")]
    assert run(["insert", "list"]) == 0
    assert "keys" in capsys.readouterr().out
    assert run(["insert", "remove", "keys", "--yes"]) == 0
    assert run(["insert", "remove", "keys"]) == 120
    assert "no insert 'keys'" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["insert web etc", "insert into web etc", "extract web /etc ."])
def test_a_word_that_is_no_verb_of_insert_is_a_box(
    surroundings: Path, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    assert run(words.split()) == 120
    assert "There is no box 'web'." in capsys.readouterr().err


def test_archives_are_listed_and_removed_as_images_are(surroundings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["image", "archives"]) == 0
    assert "no archives" in capsys.readouterr().err
    keep(ArchiveStore(surroundings / "new-state"), "web-files")
    assert run(["image", "archives"]) == 0
    assert "web-files:1" in capsys.readouterr().out
    assert run(["image", "remove", "web-files", "--yes"]) == 0
    assert capsys.readouterr().out == "web-files:1: removed\n"
    assert run(["restore-image", "web", "web-files", "--yes"]) == 120
