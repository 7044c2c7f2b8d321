"""Jobs as people write them, and the runs that are kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree as ET

import pytest

from vmimagemanager.errors import ConfigError, LeaseError, UsageError
from vmimagemanager.nightly import Job, Outcome, Run, Runs, StepRun, inputs
from vmimagemanager.nightly.job import Command, Get, Insert, Put, Script, Trace, Trapping
from vmimagemanager.nightly.output import MOST, Output, output, tail
from vmimagemanager.report import nightly as report
from vmimagemanager.report import nightlyfiles
from vmimagemanager.state import StateDirectory
from vmimagemanager.trap import Baseline, History
from vmimagemanager.trap.history import Seen

WHOLE = Path(__file__).parents[1] / "corpus" / "job" / "whole.toml"
LEAST = 'format = 1\nbox = "web"\n[[step]]\nname = "one"\n'


def job(text: str, source: Path = Path("/etc/jobs/hello.toml")) -> Job:
    return Job.parse(text.encode(), source=source)


def test_a_job_is_read_with_its_paths_starting_at_its_folder() -> None:
    whole = job(WHOLE.read_text())
    assert (whole.name, whole.box, whole.snapshot, whole.keep, whole.hold) == (
        "hello",
        "web",
        "clean",
        14,
        timedelta(hours=8),
    )
    assert [step.deed for step in whole.steps] == [
        Put(source=Path("/etc/jobs/dist"), target=PurePosixPath("/root/dist")),
        Insert(sources=("certificates", "/etc/jobs/files"), folder=PurePosixPath("/etc")),
        Command(argv=("make", "-C", "/root/dist")),
        Script(path=Path("/etc/jobs/purge.sh")),
        Get(source=PurePosixPath("/root/dist/results")),
    ]
    assert [step.always for step in whole.steps] == [False, False, False, False, True]
    assert whole.steps[2].timeout == timedelta(minutes=30)
    assert whole.steps[2].trap == Trapping(
        baseline=Path("/etc/jobs/deps.toml"),
        policy=Path("/etc/jobs/trap.toml"),
        declared=(Path("/etc/jobs/debian/control"),),
        since="clean",
        trace=Trace.ATIME,
        prove=True,
        artefacts=(PurePosixPath("/root/dist/hello.deb"),),
        jobs=2,
    )
    assert whole.steps[3].trap == Trapping(expect_clean=True)


def test_a_job_without_a_name_has_that_of_its_file() -> None:
    assert job(f"{LEAST}command = ['true']").name == "hello"
    with pytest.raises(ConfigError, match="'name' is '-x': expected a name"):
        job(f"{LEAST}command = ['true']", Path("/etc/-x.toml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("box = 'web'", "'format' is missing"),
        ("format = 2\nbox = 'web'", "'format' is 2: expected the number 1"),
        ("format = 1", "'box' is missing: expected box = 'NAME'"),
        ("format = 1\nbox = 'web'", r"'step' is missing: expected at least one \[\[step\]\]"),
        ("format = 1\nbox = 'web'\nsteps = []", "'steps' is not a known key: .*the nearest is 'step'"),
        ("format = 1\nbox = '../web'", "'box' is '../web': expected a name"),
        (LEAST, r"'step\[1\]' needs one of 'command', 'script', 'put', 'insert', 'get'"),
        (f"{LEAST}command = ['true']\nget = '/x'", r"'step\[1\]' needs one of"),
        (f"{LEAST}command = 'true'", r"'step\[1\].command' is 'true': expected a list of words"),
        (f"{LEAST}get = 'out'", r"'step\[1\].get' is 'out': expected an absolute path of the guest"),
        (f"{LEAST}get = '/x'\nto = '/y'", r"'step\[1\].to' is '/y': expected it beside 'put' or 'insert' only"),
        (f"{LEAST}put = 'x'", r"'step\[1\]' has no 'to'"),
        (f"{LEAST}insert = []", r"'step\[1\].insert' is an empty list: expected a list of at least one"),
        (f"{LEAST}insert = ['a b']", r"'step\[1\].insert\[1\]' .*the name of an insert, or a path with a '/'"),
        (f"{LEAST}command = ['a']\n[[step]]\ncommand = ['b']", r"'step\[2\]' has no 'name'"),
        (
            f"{LEAST}command = ['a']\n[[step]]\nname = 'one'\ncommand = ['b']",
            r"'step\[2\].name' is 'one': expected a name that no step before it has",
        ),
        (f"{LEAST}command = ['a']\ntrap = {{}}", r"'step\[1\].trap' needs either 'baseline' or 'expect-clean'"),
        (
            f"{LEAST}command = ['a']\ntrap = {{ baseline = 'b', expect-clean = true }}",
            "needs either 'baseline' or 'expect-clean'",
        ),
        (
            f"{LEAST}command = ['a']\ntrap = {{ expect-clean = true, trace = 'atime' }}",
            r"'step\[1\].trap' has no 'declared'",
        ),
        (f"{LEAST}command = ['a']\ntrap = {{ expect-clean = true, jobs = 2 }}", "'jobs' belong to 'prove'"),
        (
            f"{LEAST}command = ['a']\ntrap = {{ expect-clean = true, prove = true, declared = ['x'] }}",
            r"'step\[1\].trap.prove' is true: expected a job with a 'snapshot'",
        ),
        (
            f"{LEAST}get = '/a'\ntrap = {{ expect-clean = true, prove = true, declared = ['x'] }}",
            r"'step\[1\].trap.prove' is true: expected a step with a 'command'",
        ),
        (f"{LEAST}command = ['a']\ntrap = {{ baselin = 'b' }}", r"'step\[1\].trap.baselin' .*nearest is 'baseline'"),
        (
            f"{LEAST}get='/a'\ntrap={{baseline='b'}}\n[[step]]\nname='two'\nget='/a'\ntrap={{baseline='./b'}}",
            r"'step\[2\].trap.baseline' .*expected a file that no step before it writes",
        ),
        (f"{LEAST}get = '/'", r"'step\[1\].get' is '/'"),
        ("format = 1\nformat = 1", "is not TOML"),
        ("\0", "is not TOML"),
    ],
)
def test_nonsense_in_a_job_is_refused_with_file_key_and_what_was_expected(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        job(text)
    assert "/etc/jobs/hello.toml" in raised.value.message
    assert "man vmimagemanager-job" in raised.value.hint


def test_a_job_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"The job '.*none.toml' cannot be read: No such file"):
        Job.read(tmp_path / "none.toml")


def test_what_a_job_needs_is_looked_for_before_anything_is_done(tmp_path: Path) -> None:
    text = f"{LEAST}put = 'dist'\nto = '/root'\n[[step]]\nname = 'two'\ncommand = ['a']\n"
    text += "trap = { baseline = 'deps.toml', policy = 'trap.toml' }"
    wanted = job(text, tmp_path / "hello.toml")
    for name in ("dist", "trap.toml"):
        with pytest.raises(ConfigError, match=f"needs '{tmp_path}/{name}', which does not exist"):
            inputs.require(wanted, accept=False)
        (tmp_path / name).write_text("format = 1\n")
    with pytest.raises(ConfigError, match=r"deps.toml' of the step 'two' does not exist") as raised:
        inputs.require(wanted, accept=False)
    assert raised.value.hint == f"vmimagemanager nightly run {tmp_path}/hello.toml --accept"
    inputs.require(wanted, accept=True)
    (tmp_path / "deps.toml").write_text("nonsense")
    with pytest.raises(ConfigError, match="is not TOML"):
        inputs.require(wanted, accept=True)
    Baseline().write(tmp_path / "deps.toml")
    inputs.require(wanted, accept=False)


def test_nothing_can_be_accepted_by_a_job_without_a_baseline() -> None:
    with pytest.raises(ConfigError, match=r"No step of '.*hello.toml' has a trap with a baseline"):
        inputs.require(job(f"{LEAST}command = ['a']\ntrap = {{ expect-clean = true }}"), accept=True)


def test_what_a_step_reads_has_to_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for deed in ("script = 'folder'", "put = 'fifo'\nto = '/root'", "script = 'fifo'"):
        with pytest.raises(ConfigError, match="which is not a file"):
            inputs.require(job(f"{LEAST}{deed}", tmp_path / "hello.toml"), accept=False)
    inputs.require(job(f"{LEAST}put = 'folder'\nto = '/root'", tmp_path / "hello.toml"), accept=False)


def test_an_input_counts_as_changed_when_it_is_another_one_new_or_gone_but_an_unasked_archive_does_not() -> None:
    before = {"job": "1", "dist": "1", "old": "1", "archive a": "1", "archive b": "1"}
    now = {"job": "1", "dist": "2", "new": "1", "archive a": "2", "archive c": "1"}
    assert inputs.changed(before, now) == ("archive a", "dist", "new", "old")
    assert inputs.changed(now, now) == ()


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    return StateDirectory.open(tmp_path / "state", shared=False)


@pytest.fixture
def least() -> Job:
    return replace(job(f"{LEAST}command = ['true']"), keep=2)


@contextmanager
def died(runs: Runs, wanted: Job) -> Iterator[Run]:
    """Yield a run whose process was killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with runs.new(wanted) as run:
            os.write(writing, run.name.encode())
            os._exit(0)
    os.waitpid(child, 0)
    yield runs.get(wanted.name, os.read(reading, 100).decode())
    os.close(reading)
    os.close(writing)


def kept(runs: Runs, wanted: Job, outcome: Outcome) -> Run:
    with runs.new(wanted) as run:
        ended = replace(run, outcome=outcome)
        ended.write()
    return ended


def test_a_run_is_read_as_it_was_written(state: StateDirectory, least: Job) -> None:
    runs = Runs(state)
    with runs.new(least) as run:
        assert runs.get("hello").outcome is Outcome.RUNNING
        with pytest.raises(LeaseError, match="is not over"):
            runs.remove(run)
        seen = Seen(rule="new", item="dpkg:jq", since="2026-11-28")
        step = StepRun(
            name="one",
            outcome=Outcome.TRAPPED_AND_FAILED,
            seconds=1.5,
            status=3,
            message="status 3",
            log=run.log(1, "one"),
            trapped=History(findings={"f": seen}, inputs="i", archive={"a": "today"}),
        )
        ended = replace(
            run,
            outcome=Outcome.TRAPPED_AND_FAILED,
            exit_code=101,
            seconds=2.5,
            inputs={"job": "x"},
            changed=("job",),
            compared="earlier",
            steps=(step,),
        )
        ended.write()
    assert runs.get("hello") == ended
    assert not (run.folder / "lock").exists()
    assert (run.folder.stat().st_mode & 0o777, state.runs.stat().st_mode & 0o777) == (0o700, 0o700)


def test_a_run_whose_process_was_killed_is_known_to_have_died(state: StateDirectory, least: Job) -> None:
    runs = Runs(state)
    with died(runs, least) as run:
        assert (run.outcome, run.message) == (Outcome.DIED, "its process was killed, or could not write how it ended")
        runs.remove(run)
    with pytest.raises(UsageError, match="There is no run of a job 'hello'"):
        runs.list("hello")
    assert runs.list() == ()


def test_the_oldest_runs_make_room_but_not_the_last_that_passed(state: StateDirectory, least: Job) -> None:
    runs = Runs(state)
    runs.make_room(least)
    made = [kept(runs, least, outcome).name for outcome in (Outcome.PASSED, Outcome.PASSED, *[Outcome.FAILED] * 3)]
    assert len(set(made)) == 5
    runs.make_room(least)
    assert [run.name for run in runs.list("hello")] == [made[1], made[4]]
    left = state.runs / "hello" / ".removed-left"
    left.mkdir()
    runs.make_room(least)
    assert not left.exists()


def test_a_run_that_is_not_there_is_told_with_those_that_are(state: StateDirectory, least: Job) -> None:
    runs = Runs(state)
    with pytest.raises(UsageError, match="no run of a job") as raised:
        runs.get("../hello")
    assert raised.value.hint == "vmimagemanager nightly run FILE"
    name = kept(runs, least, Outcome.PASSED).name
    with pytest.raises(UsageError, match="There is no run 'x' of 'hello'") as raised:
        runs.get("hello", "x")
    assert raised.value.hint == f"There are: {name}."


def test_a_damaged_run_is_told_and_can_be_removed_and_does_not_stop_others(state: StateDirectory, least: Job) -> None:
    runs = Runs(state)
    for damage in ("format = 1\n", "", "\0"):
        run = kept(runs, least, Outcome.PASSED)
        (run.folder / "run.toml").write_text(damage)
        whole = kept(runs, least, Outcome.FAILED)
        damaged, other = runs.list("hello")
        assert (damaged.name, damaged.outcome, other.name) == (run.name, Outcome.DAMAGED, whole.name)
        assert "run.toml" in damaged.message
        assert report.row(damaged)[3] == "damaged"
        runs.remove(damaged)
        runs.remove(other)


def test_a_run_with_folders_that_its_guest_made_read_only_can_be_removed(state: StateDirectory, least: Job) -> None:
    runs = Runs(state)
    run = kept(runs, least, Outcome.PASSED)
    folder = run.artefacts_of("one") / "module"
    folder.mkdir()
    (folder / "file").touch()
    (folder / "link").symlink_to(state.path)
    folder.chmod(0o555)
    run.artefacts.chmod(0o555)
    runs.remove(run)
    assert not state.runs.joinpath("hello").exists()
    assert state.path.stat().st_mode & 0o777 == 0o755


def test_the_evidence_of_the_last_run_that_did_not_pass_stays(state: StateDirectory, least: Job) -> None:
    runs = Runs(state)
    with runs.new(least) as run:
        replace(run, outcome=Outcome.FAILED, steps=(StepRun(name="one", outcome=Outcome.FAILED),)).write()
    refused = [kept(runs, least, Outcome.ERROR).name for _ in range(3)]
    runs.make_room(least)
    assert [one.name for one in runs.list("hello")] == [run.name, refused[-1]]


def test_what_was_being_made_when_its_process_was_killed_is_swept_a_minute_later(
    state: StateDirectory, least: Job
) -> None:
    runs = Runs(state)
    run = kept(runs, least, Outcome.PASSED)
    staged = run.folder.with_name(".new-abcd")
    staged.mkdir()
    runs.make_room(least)
    assert staged.exists()
    os.utime(staged, (0, 0))
    runs.make_room(least)
    assert not staged.exists()


def test_the_step_that_was_done_when_its_process_was_killed_is_known(state: StateDirectory, least: Job) -> None:
    runs = Runs(state)
    with runs.new(least) as run:
        replace(run, steps=(StepRun(name="one", outcome=Outcome.RUNNING),)).write()
        assert runs.get("hello").steps[0].outcome is Outcome.RUNNING
    assert [step.outcome for step in runs.get("hello").steps] == [Outcome.DIED]


def test_many_runs_of_a_job_that_begin_at_once_have_a_folder_each(state: StateDirectory, least: Job) -> None:
    runs = Runs(state)

    def begin(_: int) -> str:
        runs.sweep("hello")  # which removes the job's folder while there is nothing in it
        with runs.new(least) as run:
            replace(run, outcome=Outcome.PASSED).write()
            return run.name

    with ThreadPoolExecutor(max_workers=8) as pool:
        names = list(pool.map(begin, range(40)))
    assert len(set(names)) == 40
    assert sorted(names) == sorted(run.name for run in runs.list("hello"))
    assert {run.outcome for run in runs.list("hello")} == {Outcome.PASSED}


def test_the_output_of_a_step_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    with output(log):
        pass
    assert not log.exists()
    with output(log) as printed:
        monkeypatch.setattr(printed, "_room", 10)
        for _ in range(5):
            printed.write(b"abcd")
    assert log.read_text() == f"abcdabcdab\n[what came after {MOST.human()} was left out]\n"
    assert isinstance(printed, Output)
    assert tail(log).endswith(b"left out]\n")
    assert log.stat().st_mode & 0o007 == 0


@pytest.mark.parametrize(
    ("outcomes", "whole", "code"),
    [
        ((Outcome.PASSED, Outcome.SKIPPED), Outcome.PASSED, 0),
        ((Outcome.PASSED, Outcome.TRAPPED), Outcome.TRAPPED, 100),
        ((Outcome.FAILED, Outcome.SKIPPED), Outcome.FAILED, 1),
        ((Outcome.TRAPPED, Outcome.FAILED), Outcome.TRAPPED_AND_FAILED, 101),
        ((Outcome.TRAPPED_AND_FAILED,), Outcome.TRAPPED_AND_FAILED, 101),
    ],
)
def test_a_run_ends_as_its_steps_say(outcomes: tuple[Outcome, ...], whole: Outcome, code: int) -> None:
    assert Outcome.of_all(outcomes) is whole
    assert whole.exit_code == code


def test_every_outcome_has_a_colour() -> None:
    assert set(report.COLOURS) == set(Outcome)


def test_what_a_guest_prints_cannot_break_the_reports(state: StateDirectory, least: Job) -> None:
    with Runs(state).new(least) as run:
        log = run.log(1, "one")
        log.write_bytes(b"\x1b[31mred\x1b[0m \0 ]]> <&> | \xff\n")
    step = StepRun(name="one", outcome=Outcome.FAILED, message="a\x1b[0m|b\n\0<", log=log)
    ended = replace(run, outcome=Outcome.FAILED, steps=(step, StepRun(name="two", outcome=Outcome.SKIPPED)))
    (failure, skipped) = ET.fromstring(nightlyfiles.junit(ended)).findall(".//testcase/*")
    assert failure.get("message") == r"a\x1b[0m|b" + "\n" + r"\x00<"
    assert (failure.text or "").endswith("red  ]]> <&> | \ufffd")
    assert skipped.get("message") == "a step before it failed"
    assert "| one | failed | 0.00 s | a \\[0m\\|b  &lt; |" in nightlyfiles.markdown(ended).decode()
