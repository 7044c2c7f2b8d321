"""The fixture ``box`` on a real guest, in pytest runs of their own."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Protocol

import pytest

from vmimagemanager.manager import Manager
from vmimagemanager.trap import Baseline

pytest_plugins = "pytester"

ARGUMENTS = ("-p", "no:vmimagemanager", "-p", "vmimagemanager.pytest_plugin", "-p", "no:cacheprovider")


class Given(Protocol):
    """A defined box with a snapshot, and the environment variables that lead to it."""

    name: str
    snapshot: str
    environment: dict[str, str]


class Run:
    """Runs pytest with the plugin in a process of its own, as users do."""

    def __init__(self, pytester: pytest.Pytester, given: Given) -> None:
        self._pytester = pytester
        self.given = given

    def __call__(self, source: str, *options: str) -> pytest.RunResult:
        self._pytester.makepyfile(source)
        box = ("--vmim-box", self.given.name, "--vmim-snapshot", self.given.snapshot)
        return self._pytester.runpytest_subprocess(*ARGUMENTS, *box, *options)


@pytest.fixture
def run(pytester: pytest.Pytester, testbed_box: Given, monkeypatch: pytest.MonkeyPatch) -> Run:
    for name, value in testbed_box.environment.items():
        monkeypatch.setenv(name, value)
    return Run(pytester, testbed_box)


def test_each_test_gets_the_box_as_the_snapshot_has_it_and_a_failure_shows_the_console(run: Run) -> None:
    result = run(
        """
        CANARY = "/root/canary-of-the-plugin"
        MEMORY = "/run/canary-of-the-plugin"

        def test_a_dirties_it(box):
            box.script(f"echo dirty >{CANARY}; echo dirty >{MEMORY}; sync")
            assert box.run(["cat", CANARY]).stdout == b"dirty\\n"

        def test_b_finds_it_clean(box):
            for path in (CANARY, MEMORY):
                assert box.run(["test", "-e", path], check=False).status == 1

        def test_c_fails(box):
            box.script("echo a word on the console >/dev/console")
            assert box.run(["true"]).status == 17
        """
    )
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines([f"*Console of the guest '{run.given.name}', last lines*"])
    with Manager.open() as manager, manager.lease(run.given.name):
        pass  # it was released


def test_a_box_that_is_leased_is_not_touched_and_its_holder_is_named(run: Run) -> None:
    with Manager.open() as manager, manager.lease(run.given.name):
        result = run("def test_one(box): pass", "--vmim-wait", "200ms")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"*The box '{run.given.name}' is leased by *process *"])


def test_two_runs_at_once_share_one_box_without_meeting(run: Run, pytester: pytest.Pytester, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    source = f"""
        import os, pathlib, pytest

        @pytest.mark.parametrize("turn", range(2))
        def test_alone(box, turn):
            mark = pathlib.Path({str(marks)!r}, "in-use")
            with mark.open("x"):  # fails where another one is in here
                box.run(["true"])
            mark.unlink()
    """
    pytester.makepyfile(source)
    box = ("--vmim-box", run.given.name, "--vmim-snapshot", run.given.snapshot, "--vmim-wait", "2m")
    command = (*pytester._getpytestargs(), *ARGUMENTS, *box)
    children = [pytester.popen(command, stdin=subprocess.DEVNULL) for _ in range(2)]
    for child in children:
        output, _ = child.communicate()
        assert child.returncode == 0, output.decode()


def test_a_marked_test_is_trapped_for_what_its_body_brings_in_and_for_nothing_else(
    run: Run, pytester: pytest.Pytester
) -> None:
    Baseline(accepted=frozenset({"user:accepted"})).write(pytester.path / "deps.toml")
    result = run(
        f"""
        import pytest

        @pytest.fixture
        def filled(box):
            box.script("install -m 4755 /bin/true /usr/local/bin/of-the-fixture")
            return box

        @pytest.mark.vmim_trap(baseline="deps.toml")
        def test_a_brings_something_in(filled):
            filled.script("useradd --system --no-create-home --no-user-group accepted")
            filled.script("install -m 4755 /bin/true /usr/local/bin/of-the-body")

        @pytest.mark.vmim_trap(baseline="deps.toml", since="{run.given.snapshot}")
        def test_b_brings_nothing_in(box):
            box.run(["true"])
        """
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["Trapped: *", "  setuid:/usr/local/bin/of-the-body *"])
    result.stdout.no_fnmatch_line("*of-the-fixture*")
    result.stdout.no_fnmatch_line("*trapped.py*")
