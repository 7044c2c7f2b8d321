"""Writes that survive a kill at any moment."""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from vmimagemanager import durable
from vmimagemanager.errors import SpaceError, StateError
from vmimagemanager.units import Size

STEPS = ("open", "fchmod", "fsync", "replace", "rename", "close", "unlink", "mkdir", "chmod", "posix_fallocate")


def killed_at(step: int, deed: Callable[[], object], *, after: bool) -> bool:
    """Run ``deed`` in a child that is killed at its ``step``-th system call; say whether it got that far."""
    child = os.fork()
    if child == 0:
        try:
            _die_at(step, after=after)
            deed()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def _die_at(step: int, *, after: bool) -> None:
    calls = 0

    def wrap(real: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object, **options: object) -> object:
            nonlocal calls
            calls += 1
            if calls == step and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*arguments, **options)
            if calls == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return counted

    for name in STEPS:
        setattr(os, name, wrap(getattr(os, name)))


@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after the call"])
def test_a_file_that_is_replaced_is_old_or_new_wherever_the_writer_is_killed(tmp_path: Path, after: bool) -> None:
    path = tmp_path / "record"
    old, new = b"old" * 50_000, b"new" * 70_000
    seen = set()
    for step in range(1, 50):
        path.write_bytes(old)
        was_killed = killed_at(step, lambda: durable.replace_file(path, new, mode=0o640), after=after)
        content = path.read_bytes()
        assert content in (old, new)
        if content == new:
            assert path.stat().st_mode & 0o777 == 0o640
        seen.add(content)
        if not was_killed:
            break
    else:
        pytest.fail("the writer never came to its end")
    assert step > 5
    assert seen == {old, new}


@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after the call"])
def test_a_new_file_is_whole_or_absent_wherever_the_writer_is_killed(tmp_path: Path, after: bool) -> None:
    path = tmp_path / "record"
    for step in range(1, 50):
        path.unlink(missing_ok=True)
        was_killed = killed_at(step, lambda: durable.replace_file(path, b"new"), after=after)
        assert not path.exists() or path.read_bytes() == b"new"
        if not was_killed:
            break
    else:
        pytest.fail("the writer never came to its end")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after the call"])
def test_a_folder_is_published_whole_or_not_at_all_wherever_the_writer_is_killed(tmp_path: Path, after: bool) -> None:
    for step in range(1, 50):
        staged, target = tmp_path / f"staged{step}", tmp_path / f"target{step}"
        (staged / "inner").mkdir(parents=True)
        (staged / "inner" / "file").write_text("content")
        was_killed = killed_at(step, lambda staged=staged, target=target: durable.publish(staged, target), after=after)  # type: ignore[misc]
        assert staged.exists() != target.exists()
        where = target if target.exists() else staged
        assert (where / "inner" / "file").read_text() == "content"
        if not was_killed:
            break
    else:
        pytest.fail("the writer never came to its end")
    assert target.exists()


def test_everything_is_flushed_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []

    def spy(name: str) -> None:
        real = getattr(os, name)

        def noted(*arguments: object) -> object:
            steps.append(name)
            return real(*arguments)

        monkeypatch.setattr(os, name, noted)

    spy("fsync")
    spy("replace")
    durable.replace_file(tmp_path / "record", b"new")

    assert steps == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize("step", ["fsync", "replace", "fchmod"])
@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.ENOSPC, SpaceError), (errno.EDQUOT, SpaceError), (errno.EACCES, StateError), (errno.EIO, StateError)],
)
def test_a_failed_write_leaves_the_old_content_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int, error: type[Exception]
) -> None:
    path = tmp_path / "record"
    path.write_text("old")

    def fail(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(error, match="record"):
        durable.replace_file(path, b"new")

    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_is_interrupted_leaves_the_old_content_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "record"
    path.write_text("old")

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        durable.replace_file(path, b"new")

    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_has_exactly_the_mode_that_was_asked_for_whatever_the_umask(tmp_path: Path) -> None:
    previous = os.umask(0o077)
    try:
        durable.replace_file(tmp_path / "record", b"", mode=0o664)
    finally:
        os.umask(previous)

    assert (tmp_path / "record").stat().st_mode & 0o777 == 0o664


def test_a_write_into_a_folder_that_is_missing_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"Cannot write .*record"):
        durable.replace_file(tmp_path / "missing" / "record", b"")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_publishing_never_overwrites(tmp_path: Path, kind: str) -> None:
    staged, target = tmp_path / "staged", tmp_path / "target"
    for path, content in ((staged, "new"), (target, "old")):
        if kind == "folder":
            path.mkdir()
        (path / "file" if kind == "folder" else path).write_text(content)

    with pytest.raises(FileExistsError):
        durable.publish(staged, target)

    assert (target / "file" if kind == "folder" else target).read_text() == "old"
    assert (staged / "file" if kind == "folder" else staged).read_text() == "new"


def test_a_folder_is_made_with_its_parents_and_its_mode(tmp_path: Path) -> None:
    made = durable.make_folder(tmp_path / "a" / "b", mode=0o700)
    made.chmod(0o750)

    assert durable.make_folder(made, mode=0o700).stat().st_mode & 0o777 == 0o750


def test_a_file_where_a_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file")

    with pytest.raises(StateError, match="Cannot make the folder"):
        durable.make_folder(tmp_path / "a")
    with pytest.raises(StateError, match="Cannot make the folder"):
        durable.make_folder(tmp_path / "a" / "b")


def test_whatever_is_removed_is_gone_and_a_link_takes_nothing_with_it(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    (kept / "inner").mkdir(parents=True)
    doomed = tmp_path / "doomed"
    (doomed / "inner").mkdir(parents=True)
    (doomed / "link").symlink_to(kept)
    (tmp_path / "link").symlink_to(kept)
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))

    for name in ("doomed", "link", "dangling", "file", "fifo", "socket", "never was there"):
        durable.remove_tree(tmp_path / name)

    assert list(tmp_path.iterdir()) == [kept]
    assert (kept / "inner").is_dir()


def test_allocated_blocks_are_really_reserved(tmp_path: Path) -> None:
    durable.allocate(tmp_path / "ram", Size.parse("4M"))
    status = (tmp_path / "ram").stat()

    assert status.st_size == 4 << 20
    assert status.st_blocks * 512 >= 4 << 20
    assert status.st_mode & 0o777 == 0o600


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()], ids=["full", "interrupted"])
def test_an_allocation_that_fails_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises((SpaceError, KeyboardInterrupt)):
        durable.allocate(tmp_path / "ram", Size.parse("4M"))

    assert list(tmp_path.iterdir()) == []


def test_too_little_space_is_said_with_both_figures(tmp_path: Path) -> None:
    durable.require_space(tmp_path / "not" / "yet", Size(1), purpose="The test")

    with pytest.raises(SpaceError, match=r"The test needs 1048576.0 TiB in .*, where .* are free"):
        durable.require_space(tmp_path, Size(1 << 60), purpose="The test")
