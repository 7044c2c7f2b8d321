"""Other programs: how they are started, read, limited and ended."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest

from vmimagemanager import process
from vmimagemanager.errors import DeadlineError, ToolError

SHORT = timedelta(milliseconds=400)


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


def alive(pid: int) -> bool:
    """Say whether a process runs; a zombie that nobody has reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def assert_gone(pid: int) -> None:
    end = time.monotonic() + 5
    while alive(pid):
        assert time.monotonic() < end, f"process {pid} lives on"
        time.sleep(0.01)


def test_a_program_that_ends_well_gives_what_it_wrote_apart() -> None:
    finished = process.run(["sh", "-c", "echo out; echo err >&2"])

    assert (finished.status, finished.stdout, finished.stderr) == (0, b"out\n", b"err\n")


def test_words_reach_the_program_as_they_are() -> None:
    words = ["$HOME", "*", "; true", "a b", "'\"", "\n", ""]
    said = process.run([*python("import sys; print(sys.argv[1:])"), *words]).stdout

    assert said.decode().strip() == repr(words)


def test_standard_input_is_empty_unless_it_is_given() -> None:
    assert process.run(["readlink", "/proc/self/fd/0"]).stdout == b"/dev/null\n"
    assert process.run(["cat"], stdin=b"a\0b\xff").stdout == b"a\0b\xff"


def test_input_that_the_program_does_not_read_is_no_error() -> None:
    assert process.run(["true"], stdin=b"x" * 1_000_000).status == 0


def test_much_output_on_both_streams_with_much_input_does_not_block() -> None:
    program = (
        "import sys\n"
        "for _ in range(300): sys.stdout.write('o' * 10000); sys.stderr.write('e' * 10000)\n"
        "sys.stdout.write(sys.stdin.read())"
    )
    finished = process.run(python(program), stdin=b"i" * 1_000_000, limit=timedelta(seconds=60))

    assert (len(finished.stdout), len(finished.stderr)) == (4_000_000, 3_000_000)


def test_the_environment_is_the_callers_in_a_fixed_language(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMIM_ONE", "1")
    monkeypatch.setenv("LC_ALL", "de_DE")
    said = process.run(["sh", "-c", "echo $LC_ALL $VMIM_ONE $VMIM_TWO"], environment={"VMIM_TWO": "2"}).stdout

    assert said == b"C.UTF-8 1 2\n"


def test_a_program_runs_in_the_folder_that_is_named(tmp_path: Path) -> None:
    assert process.run(["pwd"], folder=tmp_path).stdout.decode().strip() == str(tmp_path.resolve())


def test_a_folder_that_is_missing_is_not_taken_for_a_missing_program(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"cannot run in '.*nowhere': No such file"):
        process.run(["true"], folder=tmp_path / "nowhere")


def test_a_failure_is_a_command_to_paste_with_its_last_lines() -> None:
    with pytest.raises(ToolError) as caught:
        process.run(["sh", "-c", "seq 30 >&2; exit 7"])

    assert caught.value.message == "'sh -c 'seq 30 >&2; exit 7'' ended with status 7."
    assert caught.value.detail.splitlines() == [str(number) for number in range(11, 31)]
    assert (caught.value.argv, caught.value.status) == (("sh", "-c", "seq 30 >&2; exit 7"), 7)


def test_a_failure_that_only_speaks_on_standard_output_is_quoted_from_there() -> None:
    with pytest.raises(ToolError) as caught:
        process.run(["sh", "-c", "echo sorry; exit 1"])

    assert caught.value.detail == "sorry"


def test_an_unchecked_failure_is_returned() -> None:
    assert process.run(["false"], check=False).status == 1


@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGSEGV, "SIGSEGV"), (signal.SIGKILL, "SIGKILL"), (40, "signal 40")]
)
def test_a_program_that_a_signal_ended_has_its_negative_status_and_the_name(number: int, name: str) -> None:
    program = f"import os, resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); os.kill(os.getpid(), {number:d})"

    assert process.run(python(program), check=False).status == -number
    with pytest.raises(ToolError, match=f"was ended by {name}"):
        process.run(python(program))


def test_a_missing_program_is_named() -> None:
    with pytest.raises(ToolError, match="'vmim-no-such-program' is not installed"):
        process.run(["vmim-no-such-program"])
    with pytest.raises(ToolError, match="is not installed") as caught:
        process.require("vmim-no-such-program", package="some-package")
    assert caught.value.hint == "apt-get install some-package"


@pytest.mark.skipif(os.getuid() == 0, reason="root may search every folder")
def test_a_missing_program_is_named_as_such_where_a_folder_on_the_path_is_forbidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbidden = tmp_path / "forbidden"
    forbidden.mkdir(mode=0)
    monkeypatch.setenv("PATH", f"{forbidden}:/usr/bin:{forbidden}")

    with pytest.raises(ToolError, match="'vmim-no-such-program' is not installed"):
        process.run(["vmim-no-such-program"])


@pytest.mark.parametrize(("content", "mode"), [("#!/bin/sh\n", 0o644), ("no program", 0o755)])
def test_a_file_that_is_no_program_is_named(tmp_path: Path, content: str, mode: int) -> None:
    program = tmp_path / "tool"
    program.write_text(content)
    program.chmod(mode)

    with pytest.raises(ToolError, match="tool' may not be run"):
        process.run([program])


def test_programs_for_administrators_are_found_on_a_users_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert process.find("vmim-tool") is None
    (tmp_path / "vmim-tool").write_text("")
    (tmp_path / "vmim-tool").chmod(0o755)

    assert process.find("vmim-tool") == tmp_path / "vmim-tool"
    assert process.find("ldconfig") in {Path("/usr/sbin/ldconfig"), Path("/sbin/ldconfig")}


FAMILY = """
import os, signal, sys, time
ignoring, staying = {ignoring}, {staying}
pid = os.fork()
if pid == 0:
    if ignoring: signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)
    os._exit(0)
open(sys.argv[1], "w").write(f"{{os.getpid()}} {{pid}}")
time.sleep(60 if staying else 0)
os._exit(0)
"""


@pytest.mark.parametrize("ignoring", [False, True], ids=["", "that ignores SIGTERM"])
@pytest.mark.parametrize("staying", [False, True], ids=["of a parent that went", "of a parent that stays"])
def test_a_time_limit_ends_the_grandchild_too(tmp_path: Path, ignoring: bool, staying: bool) -> None:
    note = tmp_path / "pids"
    start = time.monotonic()

    with pytest.raises(DeadlineError, match="to end, which did not happen"):
        process.run([*python(FAMILY.format(ignoring=ignoring, staying=staying)), note], limit=SHORT * 2)

    assert time.monotonic() - start < 10
    for pid in note.read_text().split():
        assert_gone(int(pid))


def test_a_program_that_ignores_sigterm_is_killed_after_a_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_GRACE", 0.2)
    program = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    start = time.monotonic()

    with pytest.raises(DeadlineError):
        process.run(python(program), limit=SHORT)

    assert time.monotonic() - start < 10


def test_an_interrupt_ends_the_program(tmp_path: Path) -> None:
    note = tmp_path / "pids"

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.8)
    try:
        with pytest.raises(KeyboardInterrupt):
            process.run([*python(FAMILY.format(ignoring=True, staying=True)), note])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)

    for pid in note.read_text().split():
        assert_gone(int(pid))


def zombie() -> int | None:
    """Reap a child that has ended, and return which one, or None."""
    try:
        return os.waitpid(-1, os.WNOHANG)[0] or None
    except ChildProcessError:
        return None


def test_nothing_is_left_open_and_no_zombie_stays() -> None:
    while zombie() is not None:  # whatever the suite has left so far
        pass
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208
    process.run(["true"])
    process.run(["false"], check=False)
    with pytest.raises(DeadlineError):
        process.run(["sleep", "60"], limit=SHORT)

    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    assert zombie() is None


def test_a_program_on_the_callers_terminal_gives_its_status_and_leaves_the_interrupt_handler() -> None:
    before = signal.getsignal(signal.SIGINT)

    assert process.attached(["sh", "-c", "exit 5"]) == 5
    assert process.attached(python("import os, signal; os.kill(os.getpid(), signal.SIGINT)")) == -signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(ToolError, match="is not installed"):
        process.attached(["vmim-no-such-program"])
    assert signal.getsignal(signal.SIGINT) is before


def test_a_companion_runs_beside_its_caller_and_keeps_a_descriptor() -> None:
    ours, theirs = socket.socketpair()
    program = "import socket, sys; print(socket.socket(fileno=int(sys.argv[1])).recv(9)); sys.stderr.write('said')"
    with (
        ours,
        theirs,
        process.companion([*python(program), str(theirs.fileno())], descriptors=[theirs.fileno()]) as one,
    ):
        theirs.close()
        ours.sendall(b"heard")
        finished = one.finish(timedelta(seconds=20))
    assert (finished.status, finished.stdout, finished.stderr) == (0, b"b'heard'\n", b"said")


def test_a_companion_ends_with_the_block_that_fails_and_at_its_limit() -> None:
    with pytest.raises(KeyError), process.companion(["sleep", "600"]) as one:
        raise KeyError
    assert_gone(one._child.pid)
    with pytest.raises(DeadlineError), process.companion(["sleep", "600"]) as one:
        one.finish(SHORT)
    assert_gone(one._child.pid)
    with pytest.raises(ToolError, match="did not end"), process.companion(["sleep", "600"]) as one:
        pass
    assert_gone(one._child.pid)


def test_the_end_of_what_a_companion_writes_is_kept() -> None:
    with process.companion(python("for i in range(100000): print('x' * 20, i)")) as one:
        finished = one.finish(timedelta(seconds=20))
    assert finished.stdout.endswith(b" 99999\n")
    assert len(finished.stdout) == 64 << 10
