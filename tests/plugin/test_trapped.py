"""The marker of the dependency trap, from outside: a guest of canned answers, and the trap itself as it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.plugin.test_fixture import ROOT, Recorder, Runner
from vmimagemanager.errors import GuestError
from vmimagemanager.manager import Manager
from vmimagemanager.trap import Baseline
from vmimagemanager.trap.block import Settings, Trap

pytest_plugins = "pytester"

MARKED = "import pytest\n@pytest.mark.vmim_trap(baseline='deps.toml')\n"


class Guest(Recorder):
    """A box into whose guest packages can be installed; ``answers`` is how often it may be asked what is in it."""

    def __init__(self) -> None:
        super().__init__()
        self.installed = ["dpkg"]
        self.answers = 2
        self.asked: list[dict[str, object]] = []

    def restore(self, snapshot: str) -> None:
        super().restore(snapshot)
        self.installed = ["dpkg"]

    def install(self, package: str) -> None:
        self.calls.append(f"install {package}")
        self.installed.append(package)

    @contextmanager
    def trap(
        self,
        baseline: Path,
        *,
        policy: Path | None = None,
        declared: Sequence[Path] = (),
        since: str | None = None,
        trace: str | None = None,
        expect_clean: bool = False,
    ) -> Iterator[Trap]:
        more = {"since": since, "trace": trace, "expect_clean": expect_clean}
        self.asked.append({"baseline": baseline, "policy": policy, "declared": declared, **more})
        trap = Trap(self._probe, Settings(baseline=baseline, policy=policy, declared=tuple(declared)))
        trap.begin()
        yield trap
        trap.end()

    def _probe(self, script: str) -> bytes:
        self.calls.append("probe")
        self.answers -= 1
        if self.answers < 0:
            raise GuestError("The guest is gone.", hint="Look at its console.")
        mark = script.partition("mark=")[2].split()[0]
        rows = "".join(f"install ok installed\t{name}\tamd64\t1.2\t{name}\tno\t\t\t\t\n" for name in self.installed)
        sections = {"dpkg": rows, "clock": "5\n"}
        parts = [f"\036{mark} {name}\n{content}\036{mark}=0\n" for name, content in sections.items()]
        return "".join([*parts, f"\036{mark}.\n"]).encode()


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Runner:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("COLUMNS", "250")
    guest = Guest()
    monkeypatch.setattr(Manager, "open", lambda: guest)
    Baseline(accepted=frozenset({"dpkg:hello"})).write(pytester.path / "deps.toml")
    return Runner(pytester, guest)


def test_what_the_baseline_accepts_passes_and_what_it_does_not_fails_with_the_findings(run: Runner) -> None:
    source = f"""{MARKED}def test_accepted(box): box.install("hello")
@pytest.mark.vmim_trap(baseline="deps.toml")
def test_trapped(box): box.install("jq")
def test_unmarked(box): box.install("jq")
"""
    guest: Any = run.recorder
    guest.answers = 4
    result = run(source, "--vmim-box=web", "--strict-markers", "--junit-xml=junit.xml")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        ["*test_trapped*", "Trapped: 1 finding that the baseline does not accept.", "  dpkg:jq 1.2, new, *"]
    )
    result.stdout.fnmatch_lines(["FAILED *::test_trapped - *Trapped: 1 finding*"])
    result.stdout.no_fnmatch_line("*trapped.py*")
    assert 'name="vmim_trap" value="sprung"' in (junit := (run.path / "junit.xml").read_text())
    assert junit.count('name="vmim_trap" value="silent"') == 1


def test_the_body_alone_is_inside_the_trap(run: Runner) -> None:
    source = f"""
import pytest
@pytest.fixture
def filled(box):
    box.install("fixtures-own")
    yield box
    box.install("teardowns-own")
{MARKED}def test_one(filled): filled.install("hello")
"""
    run(source, "--vmim-box=web").assert_outcomes(passed=1)
    body = run.recorder.calls[run.recorder.calls.index("install fixtures-own") :]
    assert body[:5] == ["install fixtures-own", "probe", "install hello", "probe", "install teardowns-own"]


def test_a_test_that_fails_and_springs_the_trap_is_told_as_both(run: Runner) -> None:
    result = run(f"{MARKED}def test_one(box):\n    box.install('jq')\n    assert 1 == 2", "--vmim-box=web")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*assert 1 == 2*", "*Dependency trap*", "  dpkg:jq 1.2, new, *"])
    result.stdout.fnmatch_lines(["FAILED *::test_one - assert 1 == 2"])


def test_a_test_that_fails_alone_says_nothing_of_a_trap(run: Runner) -> None:
    result = run(f"{MARKED}def test_one(box): assert 1 == 2", "--vmim-box=web")
    result.assert_outcomes(failed=1)
    result.stdout.no_fnmatch_line("*Dependency trap*")


def test_a_test_that_is_skipped_in_its_body_is_not_judged(run: Runner) -> None:
    run(f"{MARKED}def test_one(box): box.install('jq'); pytest.skip('later')", "--vmim-box=web").assert_outcomes(
        skipped=1
    )
    assert run.recorder.calls.count("probe") == 1


def test_a_trap_that_cannot_be_set_is_an_error_and_the_body_does_not_run(run: Runner) -> None:
    source = "import pytest\n@pytest.mark.vmim_trap(baseline='missing.toml')\ndef test_one(box): box.install('jq')"
    result = run(source, "--vmim-box=web")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["vmimagemanager: *missing.toml*does not exist*"])
    assert "install jq" not in run.recorder.calls
    assert run.recorder.calls[-2:] == ["exit", "exit"]


@pytest.mark.parametrize(("body", "outcomes"), [("pass", {"passed": 1}), ("assert 1 == 2", {"failed": 1})])
def test_a_guest_that_cannot_be_asked_again_is_an_error_beside_what_the_test_is(
    run: Runner, body: str, outcomes: dict[str, int]
) -> None:
    guest: Any = run.recorder
    guest.answers = 1
    result = run(f"{MARKED}def test_one(box): {body}", "--vmim-box=web")
    result.assert_outcomes(errors=1, **outcomes)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_one*", "vmimagemanager: The guest is gone."])
    assert run.recorder.calls[-2:] == ["exit", "exit"]


def test_all_arguments_arrive_and_files_are_looked_for_in_the_rootdir(run: Runner) -> None:
    (run.path / "policy.toml").write_text("format = 1\n[severity]\nnew = 'warning'\n")
    (run.path / "needed").write_text("jq\n")
    source = f"""
import pathlib, pytest
@pytest.mark.vmim_trap(
    baseline="deps.toml", policy="policy.toml", declared=["needed", pathlib.Path({str(run.path / "needed")!r})],
    since="clean", trace="atime",
)
def test_one(box): box.install("jq")
"""
    run(source, "--vmim-box=web").assert_outcomes(passed=1)
    guest: Any = run.recorder
    [asked] = guest.asked
    assert asked == {
        "baseline": run.path / "deps.toml",
        "policy": run.path / "policy.toml",
        "declared": [run.path / "needed"] * 2,
        "since": "clean",
        "trace": "atime",
        "expect_clean": False,
    }


@pytest.mark.parametrize(
    ("marker", "argument", "said"),
    [
        (
            "vmim_trap('deps.toml')",
            "box",
            "it takes the keywords baseline, policy, declared, since, trace and expect_clean only",
        ),
        ("vmim_trap(baseline='deps.toml', box='web')", "box", "it takes the keywords"),
        ("vmim_trap(policy='deps.toml')", "box", "it needs a baseline"),
        ("vmim_trap(baseline='deps.toml', expect_clean=True)", "box", "it needs a baseline"),
        ("vmim_trap(expect_clean=1)", "box", "expect_clean is True or False"),
        ("vmim_trap(baseline=1)", "box", "baseline and policy are paths"),
        ("vmim_trap(baseline='deps.toml', declared='needed')", "box", "declared is a list of paths"),
        ("vmim_trap(baseline='deps.toml', declared=[1])", "box", "declared is a list of paths"),
        ("vmim_trap(baseline='deps.toml', declared=1)", "box", "declared is a list of paths"),
        ("vmim_trap(baseline='deps.toml')", "tmp_path", "the test does not use the fixture 'box'"),
    ],
)
def test_a_wrong_marker_ends_the_run_with_one_usage_error(run: Runner, marker: str, argument: str, said: str) -> None:
    result = run(f"import pytest\n@pytest.mark.{marker}\ndef test_one({argument}): pass", "--vmim-box=web")
    assert result.ret is pytest.ExitCode.USAGE_ERROR
    shown = [line for line in result.stderr.lines + result.stdout.lines if "vmim_trap" in line]
    assert len(shown) == 1
    assert shown[0].startswith("ERROR: ")
    assert "::test_one: the marker 'vmim_trap' cannot be understood: " in shown[0]
    assert said in shown[0]
    assert run.recorder.calls == []


def test_a_wrong_marker_of_a_test_that_is_not_run_harms_nobody(run: Runner) -> None:
    source = "import pytest\n@pytest.mark.vmim_trap\ndef test_one(box): pass\ndef test_two(): pass"
    run(source, "--vmim-box=web", "-k", "test_two").assert_outcomes(passed=1, deselected=1)


def test_the_marker_is_in_the_help_and_in_the_man_page(run: Runner) -> None:
    assert "@pytest.mark.vmim_trap(" in run("", "--markers").stdout.str()
    assert "@pytest.mark.vmim_trap(" in (ROOT / "man" / "vmimagemanager-pytest.7.rst").read_text()
