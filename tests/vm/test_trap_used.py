"""What is used and not declared, and its proof: a build that uses jq from the base, and probes for ccache."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from tests.vm.conftest import Testbed
from vmimagemanager import Box, Manager, nightly
from vmimagemanager.boxes.fork import clones_of
from vmimagemanager.errors import CommandFailedError, SnapshotError, UsageError
from vmimagemanager.proof import Question, prove
from vmimagemanager.report import nightly as report
from vmimagemanager.trap import Baseline, Finding, Rule, Severity

# As Debian 12 has them, 2026-11; what is in them was written here.
PACKAGES = {
    "jq": ("1.6-2.1+deb12u1", "Depends: libjq1 (= 1.6-2.1+deb12u1)\n"),
    "libjq1": ("1.6-2.1+deb12u1", "Depends: libonig5 (>= 6.8.1)\n"),
    "libonig5": ("6.9.8-1", ""),
    "ccache": ("4.8+really4.7.5-1", ""),
    "make": ("4.3-4.1", ""),
    "ncal": ("12.1.8", ""),
    "cowsay": ("3.03+dfsg2-8", ""),
}
FILES = {
    "jq": ("usr/bin/jq", "#!/bin/sh\nread one </usr/lib/libjq.so.1 && tr -d ' \\n'\n"),
    "libjq1": ("usr/lib/libjq.so.1", "one\n"),
    "libonig5": ("usr/lib/libonig.so.5", "onig\n"),
    "ccache": ("usr/bin/ccache", '#!/bin/sh\nexec "$@"\n'),
    "make": ("usr/bin/make", "#!/bin/sh\nset -e\n. ./Makefile\n"),
    "ncal": ("usr/bin/ncal", "#!/bin/sh\n"),
    "cowsay": ("usr/games/odd name's \\100%d", "#!/bin/sh\n"),
}
MAKEFILE = """\
mkdir -p /root/out
jq . <data.json >/root/out/data
ncal >/dev/null || :
cat /proc/sys/kernel/random/uuid >/root/out/random
if command -v ccache >/dev/null; then echo ccache; else echo cc; fi >/root/out/compiler
"""
BUILD = ["sh", "-c", "cd /root/source && make"]
ARTEFACT = PurePosixPath("/root/out")
PROGRAM = [sys.executable, "-c", "import sys; from vmimagemanager.cli import main; sys.exit(main())"]


def made(folder: Path, name: str) -> Path:
    version, relations = PACKAGES[name]
    tree = folder / name
    path, text = FILES[name]
    (tree / path).parent.mkdir(parents=True)
    (tree / path).write_text(text)
    (tree / path).chmod(0o755)
    (tree / "DEBIAN").mkdir()
    control = f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\n"
    (tree / "DEBIAN" / "control").write_text(f"{control}{relations}Description: made by a test\n")
    for one in (tree, *(one for one in tree.rglob("*") if one.is_dir())):
        one.chmod(0o755)
    target = folder / "debs" / f"{name}.deb"
    target.parent.mkdir(exist_ok=True)
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(target)],
        check=True,
        capture_output=True,
    )
    return target


@pytest.fixture(scope="module")
def source(booted: Box, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of a snapshot whose guest has the packages and what is to be built."""
    folder = tmp_path_factory.mktemp("used")
    for name in PACKAGES:
        made(folder, name)
    (folder / "source").mkdir()
    (folder / "source" / "Makefile").write_text(MAKEFILE)
    (folder / "source" / "data.json").write_text('{"one": 1}\n')
    booted.restore("clean")
    booted.put(folder / "debs", "/root/debs")
    booted.put(folder / "source", "/root/source")
    booted.script("dpkg --install /root/debs/*.deb && rm -r /root/debs")
    booted.snapshot("source")
    yield "source"
    booted.remove_snapshot("source")
    shutil.rmtree(folder)


@pytest.fixture
def builder(booted: Box, source: str) -> Iterator[Box]:
    booted.restore(source)
    yield booted
    booted.disconnect()


@pytest.fixture
def declared(tmp_path: Path) -> Path:
    path = tmp_path / "needed"
    path.write_text("make\n")
    return path


def baseline(folder: Path, *items: str) -> Path:
    path = folder / "deps.toml"
    Baseline(accepted=frozenset(items)).write(path)
    return path


def used(findings: tuple[Finding, ...]) -> dict[str, Finding]:
    return {finding.item: finding for finding in findings if finding.rule is Rule.USED}


@pytest.mark.parametrize("trace", ["atime", "fanotify"])
def test_a_tool_of_the_base_that_nobody_declared_is_trapped_when_it_is_used(
    builder: Box, tmp_path: Path, declared: Path, trace: str
) -> None:
    mounts = builder.run(["cat", "/proc/self/mounts"]).text
    with builder.trap(baseline(tmp_path), declared=[declared], trace=trace) as trap:
        builder.run(BUILD)
    found = used(trap.verdict.findings)
    assert found.keys() == {"used:dpkg:jq", "used:dpkg:ncal"}
    finding = found["used:dpkg:jq"]
    assert finding.counts
    assert finding.explanation is not None
    assert finding.explanation.brings == ("dpkg:libjq1",)
    by = " by /usr/bin/make" if trace == "fanotify" else ""
    assert finding.detail == f"/usr/bin/jq{by}"
    assert builder.run(["cat", "/proc/self/mounts"]).text == mounts
    assert "vmimagemanager-" not in builder.run(["ls", "/run"]).text.replace("vmimagemanager-token", "")
    assert builder.run(["pgrep", "perl"], check=False).text == ""


def test_a_command_that_does_nothing_uses_nothing(builder: Box, tmp_path: Path, declared: Path) -> None:
    with builder.trap(baseline(tmp_path), declared=[declared], trace="atime") as trap:
        builder.run(["true"])
    assert trap.verdict.findings == ()


def test_what_is_used_is_accepted_by_the_baseline_as_anything_else(
    builder: Box, tmp_path: Path, declared: Path
) -> None:
    path = baseline(tmp_path, "used:dpkg:ncal", "used:dpkg:cowsay")
    with builder.trap(path, declared=[declared], trace="atime") as trap:
        builder.run(BUILD)
    assert [finding.item for finding in trap.verdict.findings if finding.counts] == ["used:dpkg:jq"]
    assert trap.verdict.stale == ("used:dpkg:cowsay",)
    trap.accept()
    assert "used:dpkg:jq" in Baseline.read(path).accepted


def test_a_block_that_fails_leaves_the_mounts_as_they_were(builder: Box, tmp_path: Path, declared: Path) -> None:
    mounts = builder.run(["cat", "/proc/self/mounts"]).text
    trap = builder.trap(baseline(tmp_path), declared=[declared], trace="atime")
    with pytest.raises(CommandFailedError), trap:
        builder.run(["sh", "-c", "grep noatime /proc/self/mounts && exit 0; exit 5"])
    assert builder.run(["cat", "/proc/self/mounts"]).text == mounts


def test_hiding_proves_what_is_needed_even_when_it_is_only_probed_for(
    builder: Box, manager: Manager, tmp_path: Path, declared: Path, source: str
) -> None:
    with builder.trap(baseline(tmp_path), declared=[declared], trace="atime") as trap:
        builder.run(BUILD)
    with manager.lease(builder.name) as held:
        question = Question(snapshot=source, command=BUILD, artefacts=(ARTEFACT,))
        proof = prove(held, question, trap, cache=tmp_path / "proofs")
        again = prove(held, question, trap, cache=tmp_path / "proofs")
    assert dict(proof.needed) == {
        "dpkg:ccache": "without it '/root/out/compiler' is another one",
        "dpkg:jq": "without it the command ends with status 127",
    }
    assert proof.unstable == ("/root/out/random",)
    assert {"dpkg:ncal", "dpkg:cowsay"} <= proof.cleared
    assert not proof.cleared & {"dpkg:jq", "dpkg:libjq1", "dpkg:make", "dpkg:libc6", "dpkg:openssh-server"}
    found = used(trap.verdict.findings)
    assert {item: finding.severity for item, finding in found.items()} == {
        "used:dpkg:ccache": Severity.ERROR,
        "used:dpkg:jq": Severity.ERROR,
        "used:dpkg:ncal": Severity.INFO,
    }
    assert (again.needed, again.trials) == (proof.needed, 0)
    assert again.remembered == proof.trials + proof.remembered


def test_a_proof_says_when_it_cannot_be_one(
    builder: Box, manager: Manager, tmp_path: Path, declared: Path, source: str
) -> None:
    fails = ["sh", "-c", "echo nothing to build >&2; exit 3"]
    with manager.lease(builder.name) as held:
        with held.trap(baseline(tmp_path), declared=[declared]) as untraced:
            pass
        with pytest.raises(UsageError, match="only when it was traced"):
            prove(held, Question(snapshot=source, command=fails), untraced, cache=tmp_path)
        with held.trap(baseline(tmp_path), declared=[declared], trace="atime") as trap:
            pass
        with pytest.raises(SnapshotError, match="with nothing missing, the command ends with status 3") as raised:
            prove(held, Question(snapshot=source, command=fails, jobs=1), trap, cache=tmp_path)
        assert raised.value.detail == "nothing to build"
        with pytest.raises(UsageError, match="The trap was not set on the snapshot 'clean'"):
            prove(held, Question(snapshot="clean", command=["true"], jobs=1), trap, cache=tmp_path)
    assert not [name for name in manager.boxes() if name.startswith(f"{builder.name}-")]


def test_the_command_line_traps_explains_and_proves(
    builder: Box, testbed_box: Testbed, tmp_path: Path, declared: Path
) -> None:
    path = baseline(tmp_path)
    argv = [*PROGRAM, "trap", builder.name, "--baseline", str(path), "--declared", str(declared), "--prove"]
    argv += ["--artefact", "/root/out/data", "--result", str(tmp_path / "result"), "-n", "--", *BUILD]
    builder.disconnect()
    ended = subprocess.run(argv, env=testbed_box.environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 100, ended.stderr
    assert (
        "used:dpkg:jq /usr/bin/jq, without it the command ends with status 127, used, undeclared, brings dpkg:libjq1"
        in ended.stderr
    )
    assert "Compared: the exit status and 1 file." in ended.stderr
    told = json.loads((tmp_path / "result").read_text())
    assert list(told["verdict"]["proof"]["needed"]) == ["dpkg:jq"]
    assert told["exit_code"] == 100


def test_a_nightly_run_traps_and_proves_what_its_job_did_not_declare(
    builder: Box, manager: Manager, source: str, tmp_path: Path, declared: Path
) -> None:
    baseline(tmp_path)
    path = tmp_path / "build.toml"
    path.write_text(f"""\
format = 1
box = "{builder.name}"
snapshot = "{source}"
[[step]]
name = "build"
command = {json.dumps(BUILD)}
trap = {{ baseline = "deps.toml", declared = ["{declared.name}"], prove = true, artefacts = ["/root/out/data"] }}
""")
    builder.disconnect()
    run = nightly.run(manager, nightly.Job.read(path))
    assert (run.outcome, run.exit_code) == (nightly.Outcome.TRAPPED, 100)
    (step,) = run.steps
    assert step.proof is not None
    assert list(step.proof.needed) == ["dpkg:jq"]
    assert step.trapped is not None
    assert [seen.item for seen in step.trapped.findings.values()] == ["used:dpkg:jq"]
    assert list(builder.proofs(source).iterdir())
    assert "Proven in" in "\n".join(report.step_lines(step, path))
    assert not clones_of(manager.site, builder.name, source)
    nightly.runs_of(manager).remove(run)


def test_nothing_may_be_left_behind_when_that_is_asked_for(builder: Box, testbed_box: Testbed, tmp_path: Path) -> None:
    with builder.trap(expect_clean=True) as clean:
        builder.script("touch /etc/passing && rm /etc/passing")
    assert not clean.verdict.trapped
    builder.disconnect()
    remove = "dpkg --purge ncal && useradd --system left && touch /etc/left.conf"
    argv = [*PROGRAM, "trap", builder.name, "--expect-clean", "-n", "--", "sh", "-c", remove]
    ended = subprocess.run(argv, env=testbed_box.environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 100, ended.stderr
    for left in ("file:/etc/left.conf", "user:left", "group:left", "dpkg:ncal 12.1.8, gone"):
        assert left in ended.stderr
    assert "of what was left behind" in ended.stderr
