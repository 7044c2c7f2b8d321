"""The dependency trap on a real guest: packages made on the spot and copied in, no archive needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.conftest import Testbed
from vmimagemanager import Box
from vmimagemanager.errors import ConfigError, TrappedError
from vmimagemanager.trap import Baseline, Reason, Rule

CONTROL = """\
Package: {name}
Version: {version}
Architecture: all
Maintainer: Nobody <nobody@example.org>
Description: made by a test
"""
PROGRAM = [sys.executable, "-c", "import sys; from vmimagemanager.cli import main; sys.exit(main())"]
INSTALL = ["dpkg", "--install", "/root/debs/hello-dep.deb", "/root/debs/hello-lib.deb"]


@pytest.fixture(scope="module")
def debs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages hello-dep, its dependency hello-lib, and a newer one of that."""
    folder = tmp_path_factory.mktemp("debs") / "debs"
    folder.mkdir()
    for file, name, version, more in (
        ("hello-dep", "hello-dep", "1.0", "Depends: hello-lib\n"),
        ("hello-lib", "hello-lib", "1.0", ""),
        ("hello-lib-2", "hello-lib", "2.0", ""),
    ):
        tree = folder.parent / file
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "DEBIAN" / "control").write_text(CONTROL.format(name=name, version=version) + more)
        for path in (tree, tree / "DEBIAN"):
            path.chmod(0o755)
        argv = ["dpkg-deb", "--root-owner-group", "--build", str(tree), str(folder / f"{file}.deb")]
        subprocess.run(argv, check=True, capture_output=True)
    return folder


@pytest.fixture
def supplied(box: Box, debs: Path) -> Iterator[Box]:
    box.put(debs, "/root/debs")
    yield box
    box.disconnect()


def baseline(folder: Path, *items: str) -> Path:
    path = folder / "deps.toml"
    Baseline(accepted=frozenset(items)).write(path)
    return path


def test_an_undeclared_dependency_is_trapped_and_named(supplied: Box, tmp_path: Path) -> None:
    (tmp_path / "needed").write_text("hello-dep  # what the build asks for\n")
    with supplied.trap(baseline(tmp_path, "dpkg:hello-dep"), declared=[tmp_path / "needed"]) as trap:
        supplied.run(INSTALL)
    verdict = trap.verdict
    assert verdict.trapped
    [finding] = [finding for finding in verdict.findings if finding.counts]
    assert finding.explanation is not None
    assert (finding.rule, finding.explanation.reason) == (Rule.NEW, Reason.TRANSITIVE)
    assert finding.explanation.chain == ("dpkg:hello-dep", "dpkg:hello-lib")
    assert [package.item for package in verdict.unexpected] == ["dpkg:hello-lib"]
    assert [package.item for package in verdict.accepted] == ["dpkg:hello-dep"]
    assert (verdict.gone, verdict.changed, verdict.stale) == ((), (), ())
    with pytest.raises(TrappedError, match="does not accept: dpkg:hello-lib"):
        trap.check()


def test_what_was_accepted_is_silent_and_a_leftover_is_told(supplied: Box, tmp_path: Path) -> None:
    path = baseline(tmp_path, "dpkg:never-there")
    with supplied.trap(path) as trap:
        supplied.run(INSTALL)
    trap.accept()
    supplied.restore("clean")
    with supplied.trap(path) as nothing:
        supplied.run(["true"])
    assert not nothing.verdict.trapped
    assert nothing.verdict.stale == ("dpkg:hello-dep", "dpkg:hello-lib", "dpkg:never-there")


def test_a_package_that_was_there_before_and_one_that_changes_are_not_trapped(supplied: Box, tmp_path: Path) -> None:
    supplied.run(INSTALL)
    with supplied.trap(baseline(tmp_path)) as trap:
        supplied.run(["dpkg", "--install", "/root/debs/hello-lib-2.deb"])
        supplied.run(["dpkg", "--remove", "hello-dep"])
    verdict = trap.verdict
    assert not verdict.trapped
    assert [package.item for package in verdict.gone] == ["dpkg:hello-dep"]
    assert [(change.package.item, change.before, change.after) for change in verdict.changed] == [
        ("dpkg:hello-lib", ("1.0",), ("2.0",))
    ]


def test_a_package_that_is_unpacked_and_not_configured_is_trapped_all_the_same(supplied: Box, tmp_path: Path) -> None:
    with supplied.trap(baseline(tmp_path)) as trap:
        assert supplied.run(["dpkg", "--install", "/root/debs/hello-dep.deb"], check=False).status != 0
    assert [package.item for package in trap.verdict.unexpected] == ["dpkg:hello-dep"]


def test_a_missing_baseline_is_told_before_anything_runs(supplied: Box, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"), supplied.trap(tmp_path / "missing.toml"):
        pytest.fail("the block was entered")


def trap_verb(given: Testbed, baseline: Path, *words: str, options: tuple[str, ...] = ()) -> tuple[int, str, str]:
    return program(given, "trap", given.name, "--baseline", str(baseline), *options, "--", *words)


def program(given: Testbed, *words: str) -> tuple[int, str, str]:
    """Run the command line and return its status, its output and its messages."""
    argv = [*PROGRAM, *words]
    environment = {**os.environ, **given.environment}
    result = subprocess.run(
        argv, env=environment, cwd=Path(__file__).parents[2], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    return result.returncode, result.stdout.decode(), result.stderr.decode()


def test_the_verb_ends_with_100_when_trapped_101_when_it_failed_too_and_else_with_the_commands_status(
    supplied: Box, testbed_box: Testbed, tmp_path: Path
) -> None:
    supplied.disconnect()
    path = baseline(tmp_path, "dpkg:hello-lib")
    assert trap_verb(testbed_box, path, "sh", "-c", "echo out; exit 7")[:2] == (7, "out\n")

    junit, sarif = tmp_path / "trap.xml", tmp_path / "trap.sarif"
    reports = ("--junit", str(junit), "--sarif", str(sarif))
    status, _, told = trap_verb(testbed_box, path, *INSTALL, options=reports)
    assert status == 100
    assert "  dpkg:hello-dep 1.0, new, installed on request\n" in told
    assert "--accept" in told
    assert 'name="dpkg:hello-dep"' in junit.read_text()
    assert json.loads(sarif.read_text())["runs"][0]["results"]

    supplied.run(["dpkg", "--purge", "hello-dep", "hello-lib"])
    supplied.disconnect()
    status, out, _ = trap_verb(testbed_box, path, "sh", "-c", f"{' '.join(INSTALL)} && exit 7", options=("--json",))
    assert status == 101
    document = json.loads(out)
    assert (document["status"], document["exit_code"]) == (7, 101)

    supplied.run(["dpkg", "--purge", "hello-dep", "hello-lib"])
    supplied.disconnect()
    assert trap_verb(testbed_box, path, *INSTALL, options=("--accept",))[0] == 0
    supplied.run(["dpkg", "--purge", "hello-dep", "hello-lib"])
    supplied.disconnect()
    assert trap_verb(testbed_box, path, *INSTALL)[0] == 0
    assert Baseline.read(path).accepted == {"dpkg:hello-dep", "dpkg:hello-lib"}
