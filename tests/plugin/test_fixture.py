"""The pytest plugin, from outside: pytest runs with it, over boxes that only write down what is done to them."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from vmimagemanager.errors import LeaseError, SnapshotError, VmimError
from vmimagemanager.manager import Manager

pytest_plugins = "pytester"

ROOT = Path(__file__).parents[2]
ARGUMENTS = ("-p", "no:cacheprovider", "-p", "vmimagemanager.pytest_plugin")
USES_BOX = "def test_uses_it(box): assert box.name"


@pytest.fixture(autouse=True)
def _no_other_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load ours by name alone: a run in this process would import every installed plugin anew, for a second."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


class Recorder:
    """A manager, and the one box of it, that write down their calls; ``refusal`` is raised by the call it is for."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.waits: list[timedelta | None] = []
        self.refusals: dict[str, VmimError] = {}
        self.name = ""
        self.console = b"Booting.\n\x1b[1mlogin:\x1b[0m \n"

    def _note(self, call: str) -> None:
        self.calls.append(call)
        refusal = self.refusals.get(call.partition(" ")[0])
        if refusal is not None:
            raise refusal

    def lease(self, name: str, *, wait: timedelta | None = None) -> Recorder:
        self.name = name
        self.waits.append(wait)
        self._note(f"lease {name}")
        self.calls.append("enter")
        return self

    def restore(self, snapshot: str) -> None:
        self._note(f"restore {snapshot}")

    def console_log(self) -> bytes:
        self._note("console")
        return self.console

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.calls.append("exit")


class Runner:
    """Runs pytest on a test file with this plugin and a recorder for a manager."""

    def __init__(self, pytester: pytest.Pytester, recorder: Recorder) -> None:
        self._pytester = pytester
        self.recorder = recorder
        self.path = pytester.path

    def __call__(self, source: str, *options: str) -> pytest.RunResult:
        self._pytester.makepyfile(source)
        return self._pytester.runpytest_inprocess(*ARGUMENTS, *options)


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Runner:
    recorder = Recorder()
    monkeypatch.setattr(Manager, "open", lambda: recorder)
    return Runner(pytester, recorder)


def test_a_box_is_leased_restored_and_released_for_each_test(run: Runner) -> None:
    result = run("def test_one(box): pass\ndef test_two(box): pass", "--vmim-box", "web")

    result.assert_outcomes(passed=2)
    once = ["lease web", "enter", "restore clean", "exit"]
    assert run.recorder.calls == [*once, *once, "exit"]


def test_a_box_is_released_after_a_failure(run: Runner) -> None:
    run("def test_one(box): assert False", "--vmim-box", "web").assert_outcomes(failed=1)
    assert run.recorder.calls == ["lease web", "enter", "restore clean", "console", "exit", "exit"]


def test_a_run_that_does_not_use_the_fixture_opens_nothing(run: Runner) -> None:
    run("def test_one(): pass", "--vmim-box", "web").assert_outcomes(passed=1)
    assert run.recorder.calls == []


def test_the_ini_file_names_box_and_snapshot(run: Runner, pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nvmim_box = db\nvmim_snapshot = filled")
    run(USES_BOX).assert_outcomes(passed=1)
    assert run.recorder.calls[:3] == ["lease db", "enter", "restore filled"]


def test_an_option_wins_over_the_ini_file(run: Runner, pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nvmim_box = db\nvmim_snapshot = filled")
    run(USES_BOX, "--vmim-box=web", "--vmim-snapshot=empty").assert_outcomes(passed=1)
    assert run.recorder.calls[:3] == ["lease web", "enter", "restore empty"]


def test_a_marker_wins_over_an_option_and_the_nearest_marker_over_others(run: Runner) -> None:
    source = """
        import pytest
        pytestmark = pytest.mark.vmim(box="mail")

        def test_of_the_module(box): pass

        @pytest.mark.vmim(box="db", snapshot="filled")
        def test_of_its_own(box): pass
    """
    run(source, "--vmim-box=web", "--strict-markers").assert_outcomes(passed=2)
    restored = [call for call in run.recorder.calls if call.startswith(("lease", "restore"))]
    assert restored == ["lease mail", "restore clean", "lease db", "restore filled"]


@pytest.mark.parametrize(
    ("options", "wait"), [((), None), (("--vmim-wait", "1m30s"), timedelta(seconds=90))], ids=["default", "given"]
)
def test_the_wait_for_a_lease_is_the_configured_one_or_the_given(
    run: Runner, options: tuple[str, ...], wait: timedelta | None
) -> None:
    run(USES_BOX, "--vmim-box=web", *options).assert_outcomes(passed=1)
    assert run.recorder.waits == [wait]


def test_without_a_box_the_message_says_how_to_name_one(run: Runner) -> None:
    result = run(USES_BOX)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*does not know which box to use*--vmim-box NAME*vmim_box*"])
    assert not any(call.startswith("lease") for call in run.recorder.calls)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--vmim-wait", "soon"), "*--vmim-wait: 'soon' is not a duration*"),
        (("--vmim-box", "../web"), "*--vmim-box*'../web' is not a box name*"),
        (("--vmim-snapshot", "a b"), "*--vmim-snapshot*'a b' is not a snapshot name*"),
    ],
)
def test_a_wrong_option_ends_the_run_before_any_test(run: Runner, options: tuple[str, ...], said: str) -> None:
    result = run(USES_BOX, *options)
    assert result.ret is pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([said])


@pytest.mark.parametrize("marker", ["vmim('web')", "vmim(bocks='web')"])
def test_a_wrong_marker_is_refused(run: Runner, marker: str) -> None:
    result = run(f"import pytest\n@pytest.mark.{marker}\n{USES_BOX}", "--vmim-box=web")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*takes the keywords 'box' and 'snapshot' only*"])


def test_a_box_that_somebody_else_has_is_an_error_with_the_hint_and_no_traceback(run: Runner) -> None:
    run.recorder.refusals["lease"] = LeaseError("The box 'web' is leased by eve.", hint="--wait")
    result = run(USES_BOX, "--vmim-box=web")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*vmimagemanager: The box 'web' is leased by eve.", "*Wait longer with --vmim-wait*"])
    for unwanted in ("*pytest_plugin.py*", "*exception*"):
        result.stdout.no_fnmatch_line(unwanted)


def test_a_box_that_cannot_be_restored_is_released(run: Runner) -> None:
    run.recorder.refusals["restore"] = SnapshotError("There is no snapshot 'clean'.", detail="the last line")
    result = run(USES_BOX, "--vmim-box=web")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*There is no snapshot 'clean'.", "*the last line"])
    assert run.recorder.calls == ["lease web", "enter", "restore clean", "exit", "exit"]


def test_the_last_console_lines_are_shown_below_a_failure(run: Runner) -> None:
    run.recorder.console = b"".join(b"line %d\r\n" % number for number in range(1000))
    run.recorder.console += b"\x1bM\r\x1b[K[\x1b[0;32m  OK  \x1b[0m] Started \x07login.\n"
    result = run("def test_one(box): assert False", "--vmim-box=web")
    result.stdout.fnmatch_lines(["*Console of the guest 'web', last lines*", "line 999", "[[]  OK  ] Started login."])
    result.stdout.no_fnmatch_line("line 900")
    assert "\x07" not in result.stdout.str()


@pytest.mark.parametrize(
    "body", ["pass", "import pytest; pytest.skip('later')", "import pytest; pytest.xfail('known')"]
)
def test_no_console_is_shown_below_what_did_not_fail(run: Runner, body: str) -> None:
    result = run(f"def test_one(box): {body}", "--vmim-box=web")
    result.stdout.no_fnmatch_line("*Console of the guest*")
    assert "console" not in run.recorder.calls


def test_a_console_that_cannot_be_read_does_not_hide_the_failure(run: Runner) -> None:
    run.recorder.refusals["console"] = VmimError("It is gone.")
    result = run("def test_one(box): assert 1 == 2", "--vmim-box=web")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*assert 1 == 2*"])


def test_options_and_marker_are_in_the_help_of_pytest(run: Runner) -> None:
    said = run("", "--help").stdout.str() + run("", "--markers").stdout.str()
    for word in ("--vmim-box", "--vmim-snapshot", "--vmim-wait", "vmim_box", "vmim_snapshot", "@pytest.mark.vmim("):
        assert word in said


def test_every_option_is_described_in_the_man_page() -> None:
    page = (ROOT / "man" / "vmimagemanager-pytest.7.rst").read_text()
    for word in ("--vmim-box", "--vmim-snapshot", "--vmim-wait", "vmim_box", "vmim_snapshot", "@pytest.mark.vmim("):
        assert word in page


def test_loading_the_plugin_loads_nothing_foreign(pytester: pytest.Pytester) -> None:
    foreign = {"libvirt", "lxml", "paramiko", "rich", "click", "cryptography"}
    pytester.makepyfile(f"import sys\ndef test_one(): assert not {foreign} & sys.modules.keys()")
    command = [sys.executable, "-m", "pytest", *ARGUMENTS, str(pytester.path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
