"""What is quoted of a guest's console, and what counts as a box on disk."""

from __future__ import annotations

from pathlib import Path

from vmimagemanager.boxes.reach import console_tail
from vmimagemanager.state import BoxFolder, StateDirectory, staged_folder


def test_the_last_lines_of_a_console_are_quoted(tmp_path: Path) -> None:
    folder = BoxFolder(tmp_path)
    assert not console_tail(folder)
    folder.console_log.write_bytes(b"".join(b"line %d\r\n" % number for number in range(100)))
    assert console_tail(folder).splitlines() == [f"line {number}" for number in range(85, 100)]


def test_a_panic_is_quoted_with_what_came_before_it_however_long_its_trace(tmp_path: Path) -> None:
    folder = BoxFolder(tmp_path)
    before = b"".join(b"line %d\r\n" % number for number in range(100))
    trace = b"".join(b"trace %d\r\n" % number for number in range(100))
    for length in (0, 9, len(trace)):
        folder.console_log.write_bytes(before + b"Kernel panic - not syncing: no root\r\n" + trace[:length])
        lines = console_tail(folder).splitlines()
        assert "Kernel panic - not syncing: no root" in lines
        assert "line 99" in lines
        assert len(lines) <= 15
        assert ("trace 0" in lines) == (length > 5)


def test_a_box_that_is_still_being_made_is_not_listed(tmp_path: Path) -> None:
    state = StateDirectory.open(tmp_path / "state", shared=False)
    with staged_folder(state.box("web").path) as path:
        BoxFolder(path).record.write_text("")
        assert state.box_names() == ()
        path.rename(state.box("web").path)
    assert state.box_names() == ("web",)
