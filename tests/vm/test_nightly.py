"""Nightly runs on a real guest: whose fault it is when one does not pass, and that nothing is left running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.vm.conftest import Testbed
from tests.vm.deaths import deaths
from vmimagemanager import Box, Manager, nightly
from vmimagemanager.boxes.fork import clones_of
from vmimagemanager.config import Channel
from vmimagemanager.deadline import Deadline
from vmimagemanager.errors import BoxHeldError, DeadlineError, GuestError, SnapshotError, TransferError, VmimError
from vmimagemanager.nightly import Job, Outcome, Run, StepRun
from vmimagemanager.report import nightlyfiles
from vmimagemanager.trap import Baseline

PROGRAM = [sys.executable, "-c", "import sys; from vmimagemanager.cli import main; sys.exit(main())"]
LIMIT = timedelta(minutes=1)
SNEAKED = "/usr/local/bin/sneaked"

Write = Callable[..., Job]


@pytest.fixture
def resting(box: Box, manager: Manager) -> Box:
    """The box, switched off, and without runs on it."""
    box.kill()
    for run in nightly.runs_of(manager).list():
        nightly.runs_of(manager).remove(run)
    return box


@pytest.fixture
def write(resting: Box, tmp_path: Path) -> Write:
    """Write a job of steps, each a text, for the box and its snapshot 'clean'."""

    def make(*steps: str, more: str = "", snapshot: str = 'snapshot = "clean"') -> Job:
        path = tmp_path / "hello.toml"
        head = f'format = 1\nbox = "{resting.name}"\n{snapshot}\n{more}\n'
        path.write_text(head + "".join(f"[[step]]\nname = 'step-{n}'\n{step}\n" for n, step in enumerate(steps, 1)))
        return Job.read(path)

    return make


def run_of(output: str) -> str:
    """Return the name of the run that has just ended, by what was printed."""
    return output.rpartition("runs/hello/")[2].strip()


def outcomes(run: Run) -> list[str]:
    return [step.outcome.value for step in run.steps]


def runs_now(manager: Manager, box: Box) -> bool:
    return manager.site.domain(box.name) is not None


def sneaking(trap: str) -> str:
    return f"command = ['touch', '{SNEAKED}']\ntrap = {trap}"


def test_the_steps_of_a_job_are_done_on_a_clean_box_which_is_off_again(
    resting: Box, manager: Manager, write: Write, tmp_path: Path
) -> None:
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "one").write_text("in\n")
    (tmp_path / "build.sh").write_bytes(
        b"cat /root/sources/one /etc/laid; echo out >/root/out; echo oops >&2; printf '\xff\r\n'\n"
    )
    (tmp_path / "laid").write_text("laid\n")
    job = write(
        "put = 'sources'\nto = '/root/sources'",
        "insert = ['./laid']\nto = '/etc'",
        "script = 'build.sh'",
        "command = ['cat', '/root/out']",
        "get = '/root/out'",
        "get = '/root/sources'",
    )
    told: list[str] = []
    run = nightly.run(manager, job, ended=lambda step: told.append(step.name))
    assert run.outcome is Outcome.PASSED, run
    assert outcomes(run) == ["passed"] * 6
    assert told == [f"step-{number}" for number in range(1, 7)]
    assert sorted(run.log(3, "step-3").read_bytes().split(b"\n")) == [b"", b"in", b"laid", b"oops", b"\xff\r"]
    assert (run.artefacts / "step-5" / "out").read_text() == "out\n"
    assert (run.artefacts / "step-6" / "sources" / "one").read_text() == "in\n"
    assert not runs_now(manager, resting)
    assert set(run.inputs) == {"job", "image", "snapshot", "sources", "laid", "build.sh"}
    resting.restore("clean")
    assert resting.run(["test", "-e", "/root/out"], check=False).status == 1
    again = nightly.run(manager, job)
    assert (again.outcome, again.changed, again.compared) == (Outcome.PASSED, (), run.name)
    assert runs_now(manager, resting)  # as it was before


def test_a_failure_skips_the_rest_but_what_is_done_always_and_says_what_has_changed(
    resting: Box, manager: Manager, write: Write, tmp_path: Path
) -> None:
    (tmp_path / "build.sh").write_text("exit 0\n")
    steps = ("script = 'build.sh'", "command = ['true']", "get = '/etc/hostname'\nalways = true")
    passed = nightly.run(manager, write(*steps))
    (tmp_path / "build.sh").write_text("echo because; exit 7\n")
    run = nightly.run(manager, write(*steps))
    assert (run.outcome, outcomes(run)) == (Outcome.FAILED, ["failed", "skipped", "passed"])
    assert (run.steps[0].status, run.steps[0].message) == (7, "status 7")
    assert (run.compared, run.changed) == (passed.name, ("build.sh",))
    assert (run.artefacts / "step-3" / "hostname").exists()
    assert run.console_log.exists()
    assert not passed.console_log.exists()
    lost = nightly.run(manager, write("get = '/root/nothing'", *steps[1:]))
    assert (lost.outcome, lost.steps[0].message) == (Outcome.FAILED, "'/root/nothing' is not there")
    assert lost.changed == ("build.sh", "job")
    assert not runs_now(manager, resting)


def test_a_trap_as_a_step_is_sprung_accepted_and_silent(
    resting: Box, manager: Manager, write: Write, tmp_path: Path
) -> None:
    Baseline().write(tmp_path / "deps.toml")
    job = write(sneaking("{ baseline = 'deps.toml', since = 'clean' }"), "command = ['true']")
    first = nightly.run(manager, job)
    assert (first.outcome, outcomes(first), first.exit_code) == (Outcome.TRAPPED, ["trapped", "passed"], 100)
    trapped = nightly.runs_of(manager).get("hello").steps[0].trapped
    assert trapped is not None
    (found,) = trapped.findings.values()
    assert (found.item, found.rule) == (f"file:{SNEAKED}", "program")
    second = nightly.run(manager, job)
    assert second.steps[0].told is not None
    (again,) = [one for one in second.steps[0].told.verdict.findings if one.counts]
    assert (again.label, again.since) == ("outstanding", found.since)
    accepted = nightly.run(manager, job, accept=True)
    assert accepted.outcome is Outcome.PASSED
    assert accepted.steps[0].accepted == (f"file:{SNEAKED}",)
    assert nightly.run(manager, job).outcome is Outcome.PASSED
    failing = write(
        f"command = ['sh', '-c', 'touch {SNEAKED} /usr/local/bin/more; exit 3']\ntrap = {{ baseline = 'deps.toml' }}"
    )
    both = nightly.run(manager, failing, accept=True)
    assert (both.outcome, both.exit_code, both.steps[0].status) == (Outcome.TRAPPED_AND_FAILED, 101, 3)
    assert "more" not in (tmp_path / "deps.toml").read_text()
    assert not runs_now(manager, resting)


def test_a_command_that_hangs_has_failed_and_a_guest_that_dies_is_an_error(
    resting: Box, manager: Manager, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMIM_TIMEOUT_FACTOR", "2")
    hung = write("command = ['sleep', '1000']\ntimeout = '2s'\ntrap = { expect-clean = true }", "command = ['true']")
    run = nightly.run(manager, hung)
    assert (run.outcome, outcomes(run)) == (Outcome.FAILED, ["failed", "skipped"])
    assert run.steps[0].message == "it did not end within 4s"
    dying = write(
        "command = ['sh', '-c', 'echo last words; echo o >/proc/sysrq-trigger; sleep 100']", "command = ['a']"
    )
    with pytest.raises(GuestError):
        nightly.run(manager, dying)
    kept = nightly.runs_of(manager).get("hello")
    assert (kept.outcome, outcomes(kept)) == (Outcome.ERROR, ["error", "skipped"])
    assert kept.exit_code == GuestError.exit_code
    assert kept.steps[0].log is not None
    assert kept.steps[0].log.read_text() == "last words\n"
    assert kept.message
    assert not runs_now(manager, resting)


def test_nothing_waits_for_a_silent_guest_without_an_end(
    resting: Box, manager: Manager, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMIM_TIMEOUT_FACTOR", "1")
    (tmp_path / "one").write_bytes(bytes(8 << 20))
    for deed in ("put = 'one'\nto = '/root/one'", "get = '/etc/hostname'"):
        job = write("command = ['true']", f"{deed}\ntimeout = '1s'")

        def silence(step: StepRun) -> None:
            if step.name == "step-1":
                domain = manager.site.domain(resting.name)
                assert domain is not None
                domain.suspend()

        with pytest.raises((DeadlineError, GuestError)):
            nightly.run(manager, job, ended=silence)
        run = nightly.runs_of(manager).get("hello")
        assert outcomes(run) == ["passed", "error"]
        assert run.seconds < 60
    assert not runs_now(manager, resting)


def test_what_is_done_always_is_done_after_an_error_too_and_the_rest_is_skipped(
    resting: Box, manager: Manager, write: Write, tmp_path: Path
) -> None:
    (tmp_path / "one").touch()
    job = write(
        "command = ['mkfifo', '/root/fifo']",
        "put = 'one'\nto = '/no/such/folder/one'",
        "command = ['true']",
        "get = '/root/fifo'\nalways = true",
        "get = '/etc/hostname'\nalways = true",
    )
    over: list[Run] = []
    with pytest.raises(TransferError, match="no/such"):
        nightly.run(manager, job, over=over.append)
    (run,) = over
    assert outcomes(run) == ["passed", "error", "skipped", "failed", "passed"]
    assert (run.outcome, run.exit_code) == (Outcome.ERROR, TransferError.exit_code)
    assert (run.artefacts / "step-5" / "hostname").exists()
    assert not runs_now(manager, resting)
    lost = write("command = ['true']", snapshot="snapshot = 'nothing'", more="hold = '1h'")
    with pytest.raises(SnapshotError):
        nightly.run(manager, lost)
    assert resting.show().held_by is None


def test_a_run_that_did_not_pass_leaves_its_box_held_and_no_run_takes_it(
    resting: Box, manager: Manager, write: Write
) -> None:
    job = write("command = ['sh', '-c', 'touch /root/evidence; false']", more='hold = "1h"')
    run = nightly.run(manager, job)
    hold = resting.show().held_by
    assert hold is not None
    assert hold.reason == f"nightly run {run.address}: failed"
    with pytest.raises(BoxHeldError, match="a nightly run would restore it"):
        nightly.run(manager, job)
    assert nightly.runs_of(manager).get("hello").exit_code == BoxHeldError.exit_code
    manager.gc(remove=True)
    assert runs_now(manager, resting)
    resting.run(["test", "-e", "/root/evidence"])  # whoever looks makes it his own
    resting.unlock()
    manager.gc(remove=True)
    assert runs_now(manager, resting)
    resting.kill()
    other = nightly.run(manager, write("command = ['false']", more='hold = "1h"'))
    assert other.outcome is Outcome.FAILED
    resting.unlock()
    assert [one.what for one in manager.gc()] == [
        f"the guest of '{resting.name}', which was off before a run that is over"
    ]
    manager.gc(remove=True)
    assert not runs_now(manager, resting)


def test_a_run_without_a_snapshot_starts_from_the_image_and_one_of_a_box_that_was_off_boots_it(
    define: Callable[..., Box], manager: Manager, tmp_path: Path
) -> None:
    fresh = define(channel=Channel.AGENT)
    fresh.snapshot("off")
    path = tmp_path / "fresh.toml"
    head = f"format = 1\nbox = '{fresh.name}'\n"
    path.write_text(f"{head}[[step]]\nname = 'one'\ncommand = ['touch', '/root/made']")
    assert nightly.run(manager, Job.read(path)).outcome is Outcome.PASSED
    path.write_text(f"{head}snapshot = 'off'\n[[step]]\nname = 'one'\ncommand = ['test', '!', '-e', '/root/made']")
    assert nightly.run(manager, Job.read(path)).outcome is Outcome.PASSED
    assert not runs_now(manager, fresh)


def test_the_command_line_runs_lists_shows_and_removes(
    resting: Box, testbed_box: Testbed, write: Write, tmp_path: Path
) -> None:
    def vmim(*words: str) -> tuple[int, str, str]:
        ended = subprocess.run(
            [*PROGRAM, *words],
            env={**os.environ, **testbed_box.environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        return ended.returncode, ended.stdout, ended.stderr

    job = write(sneaking("{ baseline = 'deps.toml' }"), "command = ['sh', '-c', 'echo because; exit 4']")
    status, _, said = vmim("nightly", "run", str(job.path))
    assert status == 2
    assert f"try: vmimagemanager nightly run {job.path} --accept" in said
    assert vmim("nightly", "remove", "hello")[1].count("removed") == 1
    Baseline().write(tmp_path / "deps.toml")
    files = {name: tmp_path / name for name in ("junit", "markdown", "result")}
    for path in files.values():
        path.write_text("of an earlier run")
    assert vmim("nightly", "run", "nothing.toml", "--junit", str(files["junit"]))[0] == 2
    assert not files["junit"].exists()
    (tmp_path / "link").symlink_to("/dev/null")
    for nowhere in ("/nothing/junit", str(tmp_path / "link"), str(tmp_path)):
        assert vmim("nightly", "run", str(job.path), "--junit", nowhere)[0] == 2
    assert (tmp_path / "link").is_symlink()
    status, out, said = vmim(
        "nightly", "run", str(job.path), *(word for name, path in files.items() for word in (f"--{name}", str(path)))
    )
    assert (status, said) == (101, "")
    assert "trapped    step-1, " in out
    assert f"    file:{SNEAKED}" in out
    assert f"To accept it: vmimagemanager nightly run {job.path} --accept" in out
    assert "failed     step-2, " in out
    assert "\n    because\n" in out
    cases = ET.parse(files["junit"]).getroot().findall(".//testcase")
    assert [case.get("name") for case in cases[:2]] == ["step-1", "step-2"]
    assert all(case.find("failure") is not None for case in cases[:2])
    assert f"`file:{SNEAKED}`" in files["markdown"].read_text()
    told = json.loads(files["result"].read_text())
    assert (told["outcome"], told["exit_code"], told["run"]["outcome"]) == ("ended", 101, "trapped and failed")
    assert told["run"]["steps"][0]["trap"]["trapped"] is True

    clean = write("command = ['touch', '/etc/left']\ntrap = { expect-clean = true }")
    status, out, _ = vmim("nightly", "run", str(clean.path))
    assert (status, "To accept" in out) == (100, False)
    assert vmim("nightly", "remove", f"hello/{run_of(out)}")[0] == 0
    lost = write("command = ['true']", snapshot="snapshot = 'nothing'")
    status, out, _ = vmim("--json", "nightly", "run", str(lost.path), "--result", str(files["result"]))
    document = json.loads(out)
    assert (status, document["kind"], document["family"], document["run"]["outcome"]) == (
        113,
        "error",
        "snapshot",
        "error",
    )
    assert json.loads(files["result"].read_text())["run"] == document["run"]
    assert vmim("nightly", "remove", f"hello/{document['run']['run']}")[0] == 0

    status, out, _ = vmim("--json", "nightly", "list", "hello")
    (listed,) = json.loads(out)["runs"]
    assert status == 0
    assert (listed["outcome"], listed["exit_code"]) == ("trapped and failed", 101)
    assert listed["steps"][0]["trap"]["findings"][0]["item"] == f"file:{SNEAKED}"
    assert "step-1, step-2\n" in vmim("nightly", "list")[1]
    status, out, _ = vmim("nightly", "show", "hello")
    assert f"  file:{SNEAKED}, program, since" in out
    assert "\n    because\n" in out
    assert f"Kept in: {listed['folder']}" in out
    assert vmim("nightly", "show", "nothing")[0] == 2
    assert vmim("nightly", "remove", f"hello/{listed['run']}", "hello")[1] == f"hello/{listed['run']}: removed\n"
    assert vmim("nightly", "list")[1] == "There are no runs.\n"
    assert not Path(listed["folder"]).exists()


def test_an_interrupted_run_says_so_and_powers_its_box_off(
    resting: Box, manager: Manager, testbed_box: Testbed, write: Write
) -> None:
    job = write("command = ['sh', '-c', 'echo began; sleep 1000']", more='hold = "1h"')
    environment = {**os.environ, **testbed_box.environment}
    runs = nightly.runs_of(manager)

    def begun() -> bool:
        found = runs.list()
        return bool(found) and found[-1].log(1, "step-1").exists() and bool(found[-1].log(1, "step-1").read_bytes())

    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)):
        with subprocess.Popen([*PROGRAM, "nightly", "run", str(job.path)], env=environment) as running:
            Deadline(LIMIT).wait_for("the step to begin", begun)
            running.send_signal(number)
            assert running.wait(LIMIT.total_seconds()) == code
        run = runs.get("hello")
        assert (run.outcome, outcomes(run)) == (Outcome.INTERRUPTED, ["interrupted"])
        assert not runs_now(manager, resting)
        assert resting.show().held_by is None
        runs.remove(run)


def test_a_run_may_die_at_every_step(resting: Box, manager: Manager, environment: dict[str, str], write: Write) -> None:
    job = write(f"command = ['touch', '{SNEAKED}']")
    for step in deaths(environment, "nightly", "run", str(job.path)):
        manager.gc(remove=True)
        assert not runs_now(manager, resting), step
        assert not manager.fsck().findings, step
        assert not clones_of(manager.site, resting.name)
        for run in nightly.runs_of(manager).list():
            assert run.outcome in {Outcome.DIED, Outcome.PASSED}, step
    assert nightly.run(manager, job).outcome is Outcome.PASSED
    assert not runs_now(manager, resting)


def test_a_box_that_is_not_leased_cannot_be_borrowed(resting: Box) -> None:
    with pytest.raises(ValueError, match="is not leased"), resting.borrowed():
        pytest.fail("the block was entered")


def test_what_keeps_a_run_from_being_done_is_kept_and_told(manager: Manager, tmp_path: Path) -> None:
    path = tmp_path / "lost.toml"
    path.write_text("format = 1\nbox = 'vmimtest-nobody'\n[[step]]\nname = 'one'\ncommand = ['true']")
    over: list[Run] = []
    with pytest.raises(VmimError, match="There is no box 'vmimtest-nobody'"):
        nightly.run(manager, Job.read(path), over=over.append)
    run = nightly.runs_of(manager).get("lost")
    assert [one.address for one in over] == [run.address]
    assert (run.outcome, run.exit_code, run.steps) == (Outcome.ERROR, 120, ())
    (case,) = ET.fromstring(nightlyfiles.junit(run)).findall(".//testcase")
    assert case.get("name") == "the run itself"
    assert case.find("error") is not None
    nightly.runs_of(manager).remove(run)
