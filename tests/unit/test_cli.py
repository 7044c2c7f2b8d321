"""The command line, as far as it needs no hypervisor: what it understands, prints, and ends with."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import click
import pytest

from vmimagemanager import errors
from vmimagemanager.box import Box
from vmimagemanager.boxes.life import Down
from vmimagemanager.cli import failures, several
from vmimagemanager.cli.definition import define
from vmimagemanager.cli.invocation import Invocation
from vmimagemanager.cli.program import PROGRAM, SECTIONS
from vmimagemanager.cli.run import run
from vmimagemanager.cli.several import Task, for_each
from vmimagemanager.cli.verb import Verb
from vmimagemanager.config import BOX_KEYS
from vmimagemanager.errors import BoxError, LeaseError, SnapshotError, VmimError
from vmimagemanager.manager import Manager

CLI = Path(several.__file__).parent


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty state directory, and a current folder without a configuration."""
    folder = tmp_path / "state"
    monkeypatch.setenv("VMIM_STATE_DIR", str(folder))
    monkeypatch.setenv("VMIM_CONFIG", "/dev/null")
    monkeypatch.setenv("VMIM_URI", "test:///default")  # libvirt's own test driver: no daemon is asked
    monkeypatch.chdir(tmp_path)
    return folder


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = run(words)
    output = capsys.readouterr()
    return code, output.out, output.err


def imported(*words: str) -> set[str]:
    """Return the modules that a run of the program has loaded at its end."""
    code = "import sys; from vmimagemanager.cli.run import run; run(sys.argv[1:]); print('\\0', *sys.modules)"
    finished = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    return set(finished.stdout.rpartition("\0")[2].split())


# -- what is loaded --------------------------------------------------------------------------------------------------


def test_help_loads_no_verb_and_nothing_slow() -> None:
    loaded = imported("--help")
    slow = {"libvirt", "lxml", "paramiko", "rich", "cryptography", "platformdirs", "importlib.metadata"}
    assert loaded & slow == set()
    verbs = {f"vmimagemanager.cli.{entry.module}" for entries in SECTIONS.values() for entry in entries}
    assert loaded & verbs == set()


@pytest.mark.parametrize("verb", [entry.name for entries in SECTIONS.values() for entry in entries])
def test_the_help_of_a_verb_needs_no_libvirt(verb: str) -> None:
    assert imported(verb, "--help") & {"libvirt", "paramiko", "rich"} == set()


def test_every_entry_of_the_table_is_the_verb_of_that_name() -> None:
    context = click.Context(PROGRAM)
    for entries in SECTIONS.values():
        for entry in entries:
            command = PROGRAM.get_command(context, entry.name)
            assert command is not None
            assert command.name == entry.name
            assert command.help


# -- options -----------------------------------------------------------------------------------------------------------


def test_define_has_an_option_for_every_key_of_a_box_but_its_hooks() -> None:
    names = {parameter.name for parameter in define.params if isinstance(parameter, click.Option)}
    keys = {key.replace("-", "_") for key in BOX_KEYS if key != "hooks"}
    assert keys - names == set()


@pytest.mark.parametrize("words", [("--json", "list"), ("list", "--json"), ("list", "--free", "--json", "-v")])
def test_json_is_accepted_before_and_after_the_verb(
    state: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    code, out, _ = said(capsys, *words)
    assert code == 0
    assert json.loads(out) == {"format": 1, "kind": "list", "boxes": [], "damaged": {}}


def test_shared_options_are_accepted_on_both_sides_and_add_up() -> None:
    seen: list[Invocation] = []

    @click.command("probe", cls=Verb)
    @click.pass_obj
    def probe(invocation: Invocation) -> None:
        seen.append(invocation)

    group = click.Group("group", commands={"probe": probe}, params=PROGRAM.params)
    words = ["-v", "--wait", "5m", "probe", "-v", "--wait", "0s", "--uri", "test:///default", "--no-hooks"]
    with group.make_context("group", words, obj=Invocation()) as context:
        group.invoke(context)
    assert seen == [Invocation(verbose=2, wait=timedelta(0), uri="test:///default", no_hooks=True)]


def test_json_is_refused_by_a_verb_that_prints_no_document(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("--json", "completion", "bash"), ("completion", "bash", "--json")):
        code, out, err = said(capsys, *words)
        assert (code, out) == (2, "")
        assert "prints no JSON" in err


# -- bad input ---------------------------------------------------------------------------------------------------------

BAD_NAMES = ("a/b", "..", "../x", "a'b", 'a"b', "a b", "", "a\nb", "a\x1b[31mb", "-" * 3 + "x", "x" * 64, "é", "a@b")


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("words", [("show",), ("up",), ("define",), ("undefine", "--yes"), ("logs",), ("snapshots",)])
def test_a_bad_name_is_one_clear_error_that_is_safe_to_print(
    state: Path, capsys: pytest.CaptureFixture[str], name: str, words: tuple[str, ...]
) -> None:
    code, out, err = said(capsys, *words, name)
    assert (code, out) == (2, "")
    assert err.startswith("vmimagemanager: ")
    assert err.count("vmimagemanager: ") == 1
    assert "Traceback" not in err
    assert all(character.isprintable() or character == "\n" for character in err)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("upp", "web"), 2, "There is no verb 'upp'. Did you mean 'up'?"),
        (("image", "lits"), 2, "There is no verb 'lits'. Did you mean 'list'?"),
        (("zzz",), 2, "There is no verb 'zzz'."),
        (("image",), 2, "Usage:"),
        (("--bogus",), 2, "No such option"),
        (("define", "x", "--imaeg", "y"), 2, "--image"),
        (("show",), 2, "Missing argument 'BOX'."),
        (("show", "web"), 120, "There is no box 'web'."),
        (("up", "web", "db"), 120, "There is no box 'db'."),
        (("restore", "web"), 2, "'web' is not the address of a snapshot"),
        (("restore", "web@"), 2, "'web@' is not the address of a snapshot"),
        (("restore", "web@a/b"), 2, "'a/b' is not a snapshot name"),
        (("restore", "web@clean"), 120, "There is no box 'web'."),
        (("restore", "web@a", "web@b"), 2, "one snapshot only"),
        (("image", "show", "debian-12"), 112, "There is no image 'debian-12'."),
        (("image", "show", "../x"), 2, "is not the name of an image"),
        (("image", "build", "debian-99"), 112, "There is no recipe"),
        (("image", "remove", "debian-12", "--yes"), 112, "There is no image 'debian-12'."),
        (("define", "web"), 2, "No image is given"),
        (("define", "web", "--image", "debian-12"), 112, "There is no image 'debian-12'."),
        (("define", "web", "--ram", "3Q"), 2, "The option 'ram' is '3Q'"),
        (("define", "web", "--cpus", "many"), 2, "'many' is not a valid integer"),
        (("define", "web", "--network", "lan"), 2, "The option 'network' is 'lan'"),
        (("define", "web", "--engines", "live,fast"), 2, "engines"),
        (("define", "web", "--boot-timeout", "5"), 2, "The option 'boot-timeout' is '5'"),
        (("define", "--update", "web"), 120, "There is no box 'web'."),
        (("run", "web", "ls"), 2, "The guest's command begins after '--'."),
        (("run", "web", "ls", "-l"), 2, "The guest's command begins after '--'."),
        (("run", "web"), 2, "The guest's command is missing"),
        (("run", "web", "--"), 2, "The guest's command is missing"),
        (("run", "--", "ls"), 2, "Missing argument 'BOX'."),
        (("run", "web", "--timeout", "5", "--", "ls"), 2, "'5' is not a duration"),
        (("run", "web", "--", "ls"), 120, "There is no box 'web'."),
        (("trap", "web", "--", "ls"), 2, "Expected --baseline FILE, or --expect-clean"),
        (("trap", "web", "--expect-clean", "--baseline", "x", "--", "ls"), 2, "goes by no baseline"),
        (("trap", "web", "--expect-clean", "--accept", "--", "ls"), 2, "writes none"),
        (("trap", "web", "--baseline", "x", "--prove", "--", "ls"), 2, "expected --declared FILE"),
        (("trap", "web", "--baseline", "x", "--trace", "strace", "--", "ls"), 2, "'atime', 'fanotify'"),
        (("trap", "web", "--baseline", "x", "--jobs", "2", "--", "ls"), 2, "expected --prove"),
        (
            ("trap", "web", "--baseline", "x", "--declared", "d", "--prove", "--artefact", "out", "--", "ls"),
            2,
            "expected an absolute path in the guest",
        ),
        (("script", "web", "/nowhere/x"), 2, "cannot be read"),
        (("lock", "web"), 2, "--for"),
        (("lock", "--for", "2h"), 2, "--any"),
        (("lock", "web", "--for", "2 parsecs"), 2, "is not a duration"),
        (("lock", "web", "--for", "0s"), 2, "above zero"),
        (("--wait", "0s", "lock", "--any", "--for", "2h"), 115, "No box became free"),
        (("--wait", "soon", "list"), 2, "'soon' is not a duration"),
        (("--config", "/nowhere.toml", "list"), 2, "does not exist"),
        (("--config", "", "list"), 2, "--config"),
        (("--uri", "nonsense", "list"), 2, "The option 'uri' is 'nonsense'"),
        (("--state-dir", "/proc/nowhere", "list"), 121, "/proc/nowhere"),
        (("logs", "web", "--tail", "-1"), 2, "--tail"),
        (("completion", "tcsh"), 2, "tcsh"),
        (("config", "show", "a/b"), 2, "is not a box name"),
    ],
)
def test_what_is_wrong_is_said_in_one_error_with_its_exit_code(
    state: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int, message: str
) -> None:
    ended, out, err = said(capsys, *words)
    assert (ended, out) == (code, "")
    assert message in err
    assert "Traceback" not in err


def test_an_error_has_its_prefix_its_detail_and_the_next_command(capsys: pytest.CaptureFixture[str]) -> None:
    failures.tell(BoxError("It is off.", detail="first\nsec\x1bond", hint="vmimagemanager up web"))
    assert capsys.readouterr().err == (
        "vmimagemanager: It is off.\n    first\n    sec\\x1bond\n  try: vmimagemanager up web\n"
    )


def test_an_error_is_a_document_with_json(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = said(capsys, "show", "web", "--json")
    document = json.loads(out)
    assert code == document["exit_code"] == 120
    assert (document["format"], document["kind"], document["family"]) == (1, "error", "box")
    assert document["message"] in err


# -- how it ends -------------------------------------------------------------------------------------------------------


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(manager: Manager) -> tuple[str, ...]:
        raise error

    monkeypatch.setattr(Manager, "boxes", fail)


def test_an_unexpected_exception_is_one_line_and_125(
    state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, RuntimeError("the moon"))
    code, out, err = said(capsys, "list")
    assert (code, out) == (125, "")
    assert err == "vmimagemanager: internal error: RuntimeError: the moon; run again with --debug\n"


@pytest.mark.parametrize("error", [RuntimeError("the moon"), BoxError("the moon")])
def test_the_traceback_is_shown_with_debug(
    state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    failing(monkeypatch, error)
    assert "Traceback" in said(capsys, "list", "--debug")[2]


def test_an_interrupt_is_one_line_and_130(
    state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, KeyboardInterrupt())
    assert said(capsys, "list") == (130, "", "vmimagemanager: interrupted\n")


@pytest.mark.parametrize("family", [cls for cls in errors.families() if cls.__init__ is VmimError.__init__])
def test_each_family_of_errors_ends_with_its_code(
    state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, family: type[VmimError]
) -> None:
    failing(monkeypatch, family("Something happened."))
    assert said(capsys, "list") == (family.exit_code, "", "vmimagemanager: Something happened.\n")


def test_sigterm_cleans_up_and_ends_with_143(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from vmimagemanager.cli import run\n"
        "from vmimagemanager.manager import Manager\n"
        "def boxes(manager):\n"
        "    try:\n"
        "        print('there\\n', end='', flush=True)\n"
        "        time.sleep(30)\n"
        "    finally:\n"
        "        print('cleaned\\n', end='', flush=True)\n"
        "Manager.boxes = boxes\n"
        "sys.exit(run.run(['list']))\n"
    )
    environment = {**os.environ, "VMIM_STATE_DIR": str(tmp_path / "state"), "VMIM_CONFIG": "/dev/null"}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"there\n"
        child.send_signal(signal.SIGTERM)
        out, err = child.communicate(timeout=20)
    assert (child.returncode, out, err) == (143, b"cleaned\n", b"vmimagemanager: interrupted\n")


def test_a_reader_that_goes_away_is_no_error() -> None:
    shell = f"{sys.executable} -c 'from vmimagemanager.cli.run import run; import sys; sys.exit(run([\"--help\"]))'"
    finished = subprocess.run(["bash", "-c", f"set -o pipefail; {shell} | true"], capture_output=True, check=False)
    assert finished.stderr == b""
    assert finished.returncode in {0, 141}


def test_a_full_disk_under_standard_output_is_said(state: Path) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-c", "import sys; from vmimagemanager.cli import main; sys.exit(main())", "list"]
        finished = subprocess.run([*command, "--json"], stdout=full, stderr=subprocess.PIPE, check=False)
    assert finished.stderr == b"vmimagemanager: Standard output cannot be written: the disk is full.\n"
    assert finished.returncode == 116


def test_closed_standard_streams_are_survived(state: Path) -> None:
    command = f"{sys.executable} -c 'import sys; from vmimagemanager.cli import main; sys.exit(main())' list"
    finished = subprocess.run(["bash", "-c", f"{command} <&- >&- 2>&-"], check=False)
    assert finished.returncode == 0


# -- reading verbs -----------------------------------------------------------------------------------------------------


def test_an_empty_state_directory_has_no_boxes_and_no_images(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "list") == (0, "", "There are no boxes yet.\n")
    assert said(capsys, "list", "-q") == (0, "", "")
    code, out, err = said(capsys, "image", "list")
    assert (code, out) == (0, "")
    assert "There are no images yet" in err


def test_config_show_prints_a_configuration(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "config", "show", "--state-dir", "/var/tmp/elsewhere")
    assert code == 0
    assert 'state-dir = "/var/tmp/elsewhere"' in out
    document = json.loads(said(capsys, "config", "show", "web", "--json")[1])
    assert (document["format"], document["kind"]) == (1, "config")
    assert list(document["boxes"]) == ["web"]


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "--version")
    assert code == 0
    assert out.startswith("vmimagemanager 2.")


def test_without_a_verb_the_help_is_printed_and_nothing_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = said(capsys)
    assert (code, out) == (2, "")
    assert "restore" in err


def test_a_damaged_box_does_not_hide_the_others(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (state / "boxes" / "web").mkdir(parents=True)
    with Manager.open():
        pass
    (state / "boxes" / "web" / "box.toml").write_text("nonsense")
    code, out, err = said(capsys, "list")
    assert code == 121
    assert out.splitlines()[1].split()[:2] == ["web", "damaged"]
    assert err.startswith("vmimagemanager: ")


# -- several boxes -----------------------------------------------------------------------------------------------------


class Stub(Box):
    """A box without anything behind it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def release(self) -> None:
        pass


def stub(monkeypatch: pytest.MonkeyPatch, deed: Callable[[Box], Down]) -> None:
    monkeypatch.setattr(Manager, "box", lambda _, name: Stub(name))
    monkeypatch.setattr(Box, "down", deed)


def off(box: Box) -> Down:
    return Down(was_up=True, forced=False, seconds=0.0)


def test_several_boxes_are_reported_in_the_order_of_the_command_line(
    state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"box-{number}" for number in range(20, 0, -1)]
    stub(monkeypatch, off)
    code, out, _ = said(capsys, "down", *names, names[0])
    assert code == 0
    assert [line.split(":")[0] for line in out.splitlines()] == names
    results = json.loads(said(capsys, "down", *names, "--json")[1])["results"]
    assert [(result["name"], result["outcome"]) for result in results] == [(name, "done") for name in names]


@pytest.mark.parametrize(
    ("kinds", "code"),
    [({"b": LeaseError}, 115), ({"a": LeaseError, "c": LeaseError}, 115), ({"a": LeaseError, "c": SnapshotError}, 123)],
)
def test_errors_of_some_do_not_stop_the_others_and_decide_the_code(
    state: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    kinds: dict[str, type[VmimError]],
    code: int,
) -> None:
    def deed(box: Box) -> Down:
        if box.name in kinds:
            raise kinds[box.name](f"No {box.name}.")
        return off(box)

    stub(monkeypatch, deed)
    ended, out, err = said(capsys, "down", "a", "b", "c")
    assert ended == code
    assert len(out.splitlines()) == 3 - len(kinds)
    assert err.splitlines() == [f"vmimagemanager: No {name}." for name in kinds]
    results = json.loads(said(capsys, "down", "a", "b", "c", "--json")[1])["results"]
    assert [result["name"] for result in results if result["outcome"] == "failed"] == list(kinds)


def test_an_internal_error_of_one_box_is_one_of_the_run(
    state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def deed(box: Box) -> Down:
        raise RuntimeError("the moon")

    stub(monkeypatch, deed)
    assert said(capsys, "down", "a", "b")[0] == 125


def test_an_interrupt_reaches_the_work_on_every_box(state: Path) -> None:
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it\n"
        "from vmimagemanager.box import Box\n"
        "from vmimagemanager.cli import run\n"
        "from vmimagemanager.manager import Manager\n"
        "def down(box):\n"
        "    try:\n"
        "        print('there\\n', end='', flush=True)\n"
        "        for _ in range(3000): time.sleep(0.01)\n"
        "    finally:\n"
        "        print('cleaned\\n', end='', flush=True)\n"
        "Manager.box = lambda manager, name: object.__new__(Box)\n"
        "Box.down, Box.release = down, lambda box: None\n"
        "sys.exit(run.run(['down', 'a', 'b']))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert [child.stdout.readline(), child.stdout.readline()] == [b"there\n"] * 2
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=20)
    assert (child.returncode, out, err) == (130, b"cleaned\n" * 2, b"vmimagemanager: interrupted\n")


def test_jobs_of_one_box_are_done_in_their_order(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub(monkeypatch, off)
    done: dict[str, list[int]] = {"web": [], "db": []}

    def job(box: str, number: int) -> Task[bool]:
        def deed(held: Box) -> bool:
            done[held.name].append(number)
            return True

        return Task(title=f"{box}@{number}", box=box, deed=deed)

    jobs = [job(box, number) for number in range(5) for box in done]
    assert for_each(Invocation(quiet=True), "probe", jobs, lines=lambda *_: [], document=lambda _: {}) == 0
    assert done == {"web": [0, 1, 2, 3, 4], "db": [0, 1, 2, 3, 4]}


# -- completion --------------------------------------------------------------------------------------------------------


def completed(state: Path, *words: str) -> list[str]:
    variables = {"_VMIM_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    code = "import sys; sys.argv[0] = 'vmim'; from vmimagemanager.cli import main; sys.exit(main())"
    finished = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **variables}, capture_output=True, text=True, check=True
    )
    assert finished.stderr == ""
    return [line.partition(",")[2] for line in finished.stdout.splitlines() if line]


@pytest.fixture
def furnished(state: Path) -> Path:
    """A state directory with the names of boxes, snapshots and images, and nothing behind them."""
    for file in ("boxes/web/box.toml", "boxes/db/box.toml", "boxes/web/snapshots/clean/manifest.toml"):
        (state / file).parent.mkdir(parents=True, exist_ok=True)
        (state / file).touch()
    (state / "images" / "debian-12" / "1").mkdir(parents=True)
    return state


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("vmim", "snapshot"), ["snapshot", "snapshots", "snapshot-export", "snapshot-import", "snapshot-remove"]),
        (("vmim", "up", ""), ["db", "web"]),
        (("vmim", "up", "w"), ["web"]),
        (("vmim", "restore", "w"), ["web@clean"]),
        (("vmim", "snapshot", "w"), ["web@"]),
        (("vmim", "image", "show", ""), ["debian-12"]),
        (
            ("vmim", "image", "build", ""),
            [
                "debian-12",
                "debian-13",
                "debian-12-uefi",
                "debian-13-uefi",
                "debian-12-bios",
                "debian-13-bios",
                "ubuntu-24.04",
            ],
        ),
        (("vmim", "define", "x", "--image", "d"), ["debian-12"]),
        (("vmim", "completion", "z"), ["zsh"]),
        (("vmim", "list", "--lo"), ["--locked"]),
    ],
)
def test_a_shell_completes_verbs_options_and_names(
    furnished: Path, words: tuple[str, ...], expected: list[str]
) -> None:
    assert completed(furnished, *words) == expected


def test_completion_is_quiet_about_a_broken_configuration(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMIM_CONFIG", "/nowhere.toml")
    assert completed(state, "vmim", "up", "") == []
    assert not state.exists()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_names_both_programs(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    code, out, _ = said(capsys, "completion", shell)
    assert code == 0
    assert "_VMIM_COMPLETE" in out
    assert "_VMIMAGEMANAGER_COMPLETE" in out


# -- the shape of the code ---------------------------------------------------------------------------------------------


def test_a_broad_except_stands_only_where_a_run_ends_or_a_thread_does() -> None:
    found = []
    for module in CLI.glob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            kind = node.type if isinstance(node, ast.ExceptHandler) else None
            if isinstance(kind, ast.Name) and kind.id in {"Exception", "BaseException"}:
                found.append(module.name)
    assert sorted(found) == ["run.py", "several.py"]


# -- images -----------------------------------------------------------------------------------------------------------


def test_an_image_is_imported_and_shown(state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disk = tmp_path / "disk.vmdk"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vmdk", disk, "16M"], check=True)
    digest = hashlib.sha256(disk.read_bytes()).hexdigest()
    words = ("image", "import", "mine", str(disk), "--sha256", digest.upper(), "--user", "me", "--firmware", "uefi")
    code, output, _ = said(capsys, *words, "--json")
    found = json.loads(output)["image"]
    assert (code, found["name"], found["user"], found["firmware"]) == (0, "mine", "me", "uefi")
    code, _, error = said(capsys, "image", "import", "mine", str(disk), "--sha256", "0" * 64)
    assert code == 112
    assert "is not what was expected" in error
    assert str(state) not in error
    for wrong in (("--sha256", "abc"), ("--format", "qed"), ("--size", "large")):
        assert said(capsys, "image", "import", "mine", str(disk), *wrong)[0] == 2
