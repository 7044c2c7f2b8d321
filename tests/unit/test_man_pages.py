"""The man pages: well-formed, and saying what the program does."""

from __future__ import annotations

import re
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from vmimagemanager import config, errors, process
from vmimagemanager.cli import run
from vmimagemanager.cli.program import PROGRAM
from vmimagemanager.config import BOX_KEYS, HOOK_KEYS, HOST_KEYS, BoxSettings, Hook, Moment, plain
from vmimagemanager.config.configuration import VARIABLES
from vmimagemanager.leases import OWNER_VARIABLE
from vmimagemanager.nightly import Job, Outcome, Step
from vmimagemanager.nightly.job import KEYS as JOB_KEYS
from vmimagemanager.nightly.job import STEP_KEYS, TRAP_KEYS, Command
from vmimagemanager.trap import Baseline, Policy
from vmimagemanager.trap.finding import DEFAULTS
from vmimagemanager.trap.policy import EXCEPTION_KEYS, KEYS

MAN = Path(__file__).parents[2] / "man"
CONFIGURATION = MAN / "vmimagemanager.toml.5.rst"
PROGRAM_PAGE = MAN / "vmimagemanager.1.rst"
SECTIONS = {
    "[host]": HOST_KEYS,
    "[defaults] and [box.NAME]": BOX_KEYS,
    "[[defaults.hooks]] and [[box.NAME.hooks]]": HOOK_KEYS,
}


def section(title: str) -> str:
    """Return the text of a section of the configuration's page."""
    found = re.search(rf"(?ms)^{re.escape(title)}\n=+\n(.*?)(?=^[^\n]+\n=+\n|\Z)", CONFIGURATION.read_text())
    assert found is not None, title
    return found[1]


def entries(title: str) -> dict[str, str]:
    """Return the entries of a section, each a key and what is said about it."""
    return dict(re.findall(r"(?m)^``([a-z-]+)`` \([a-z ]+\)\n((?:    .*\n|\n)+)", section(title)))


@pytest.mark.parametrize("page", sorted(MAN.glob("*.rst")), ids=lambda page: page.name)
def test_a_page_is_made_without_a_warning(page: Path, tmp_path: Path) -> None:
    made = tmp_path / page.stem
    finished = process.run([sys.executable, "-m", "docutils", "--writer=manpage", "--strict", page, made])
    assert finished.stderr == b""
    assert made.read_text().startswith(".")


@pytest.mark.parametrize("title", SECTIONS)
def test_every_configuration_key_has_an_entry_and_every_entry_is_a_key(title: str) -> None:
    assert list(entries(title)) == list(SECTIONS[title])


def test_the_defaults_of_a_box_and_of_a_hook_are_the_real_ones() -> None:
    box = {**BoxSettings().to_record(), "engines": None, "hooks": None}
    hook = {key: plain(getattr(Hook(moment=Moment.AFTER_UP), key)) for key in ("where", "timeout")}
    host = {key: plain(setting.value) for key, setting in config.load(Path("/dev/null")).explain_host().items()}
    said = {
        **{key: (text, box.get(key)) for key, text in entries("[defaults] and [box.NAME]").items()},
        **{key: (text, hook.get(key)) for key, text in entries("[[defaults.hooks]] and [[box.NAME.hooks]]").items()},
        **{key: (entries("[host]")[key], host[key]) for key in ("accelerator", "lease-wait")},
    }
    for key, (text, value) in said.items():
        default = re.search(r"Default:\s+``([^`]+)``\.", text)
        shown = tomllib.loads(f"value = {default[1]}")["value"] if default else None
        assert shown == value, key


def test_the_example_is_a_configuration(tmp_path: Path) -> None:
    example = section("EXAMPLE").split("::\n", 1)[1]
    path = tmp_path / "example.toml"
    path.write_text("".join(f"{line[4:]}\n" for line in example.splitlines() if line.startswith(("    ", "\n"))))
    loaded = config.load(path)
    assert loaded.box_names == ("web",)
    assert loaded.box("web").hooks[0].script == tmp_path / "hooks/refresh.sh"


def test_every_environment_variable_of_the_configuration_is_described() -> None:
    text = section("ENVIRONMENT")
    for variable in ("VMIM_CONFIG", *(name for names in VARIABLES.values() for name in names)):
        assert f"``{variable}``" in text


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Yield every verb of the program with its whole name, and the program itself as ''."""
    context = click.Context(command)
    if isinstance(command, click.Group):
        if not path:
            yield "", command
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from commands(found, (*path, name))
    else:
        yield " ".join(path), command


def options(command: click.Command) -> set[str]:
    return {
        name
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.hidden
        for name in (*parameter.opts, *parameter.secondary_opts)
    }


def described_verbs() -> dict[str, set[str]]:
    """Return the verbs of the manual page with the options that their entries describe."""
    found: dict[str, set[str]] = {}
    verb = ""
    for line in part("VERBS").splitlines():
        heading = re.match(r"``([a-z -]+)``", line)
        if heading:
            verb = heading[1]
            found[verb] = set()
        elif line.startswith("    ``-"):
            found[verb] |= set(re.findall(r"``(-[a-z0-9-]+)``", line))
    return found


def part(title: str) -> str:
    """Return the text of a section of the program's page."""
    found = re.search(rf"(?ms)^{re.escape(title)}\n=+\n(.*?)(?=^[^\n]+\n=+\n|\Z)", PROGRAM_PAGE.read_text())
    assert found is not None, title
    return found[1]


def test_every_verb_has_an_entry_and_every_entry_is_a_verb() -> None:
    verbs = [name for name, _ in commands(PROGRAM) if name]
    assert sorted(described_verbs()) == sorted(verbs)


@pytest.mark.parametrize("name", [name for name, _ in commands(PROGRAM) if name])
def test_the_entry_of_a_verb_describes_its_options_and_no_others(name: str) -> None:
    command = dict(commands(PROGRAM))[name]
    assert described_verbs()[name] == options(command) - {"--json"}


def test_the_shared_options_are_described_and_no_others() -> None:
    described = re.findall(r"(?m)^``(-.*)$", part("OPTIONS"))
    names = {name for line in described for name in re.findall(r"-[a-z-]+", line.replace("``", " ").split("*")[0])}
    assert names == options(PROGRAM) | {"--help"}


def test_every_exit_code_is_described_and_no_other() -> None:
    described = [int(code) for code in re.findall(r"(?m)^``(\d+)``$", part("EXIT STATUS"))]
    signals = [errors.INTERRUPTED, run.HUNG_UP, run.OUTPUT_CLOSED, run.TERMINATED]
    codes = {0, errors.TRAPPED, errors.TRAPPED_AND_FAILED, *signals, *(cls.exit_code for cls in errors.families())}
    assert described == sorted(codes)


def test_every_variable_that_the_program_reads_is_described() -> None:
    described = set(re.findall(r"``([A-Z_]+)``", part("ENVIRONMENT")))
    configuration = {"VMIM_CONFIG", *(name for names in VARIABLES.values() for name in names)}
    assert described == {*configuration, OWNER_VARIABLE, "VMIM_TIMEOUT_FACTOR", "NO_COLOR"}


def test_the_page_of_the_trap_describes_every_key_and_every_rule_with_its_severity() -> None:
    text = (MAN / "vmimagemanager-trap.5.rst").read_text()
    policy, rules = text.partition("\nPOLICY\n")[2].split("\nRULES\n")
    assert set(re.findall(r"(?m)^``([a-z]+)``$", policy)) == {*KEYS, *EXCEPTION_KEYS}
    assert dict(re.findall(r"(?m)^``([a-z]+)`` \(([a-z]+)\)$", rules)) == {
        rule.value: severity.value for rule, severity in DEFAULTS.items()
    }


def test_the_examples_of_the_trap_are_understood() -> None:
    text = (MAN / "vmimagemanager-trap.5.rst").read_text()
    baseline, policy = re.findall(r"::\n\n((?:    .*\n|\n)+)", text)
    assert "setuid:/usr/bin/at" in Baseline.parse(textwrap.dedent(baseline).encode(), source=Path("x")).accepted
    assert len(Policy.parse(textwrap.dedent(policy).encode(), source=Path("x")).exceptions) == 1


def test_the_page_of_jobs_describes_every_key_with_its_default_and_every_outcome() -> None:
    text = (MAN / "vmimagemanager-job.5.rst").read_text()
    told = re.split(r"\n[A-Z ]+\n=+\n", text)
    for described, keys in zip(told[3:6], (JOB_KEYS, STEP_KEYS, TRAP_KEYS), strict=True):
        assert re.findall(r"(?m)^``([a-z-]+)``$", described) == list(keys)
    defaults = dict(re.findall(r"(?ms)^``([a-z-]+)``$(?:(?!^``).)*?Default: ``([^`]+)``\.", text))
    step = Step(name="one", deed=Command(argv=("true",)))
    job = Job(name="hello", path=Path("x"), digest="", box="web", steps=(step,))
    assert {key: tomllib.loads(f"value = {value}")["value"] for key, value in defaults.items()} == {
        "keep": job.keep,
        "timeout": plain(step.timeout),
        "always": step.always,
    }
    ended = set(re.findall(r"(?m)^``([a-z ]+)``$", told[6]))
    assert ended == {outcome.value for outcome in Outcome} - {Outcome.SKIPPED, Outcome.RUNNING}


def test_the_example_of_a_job_is_understood() -> None:
    text = (MAN / "vmimagemanager-job.5.rst").read_text()
    (example,) = re.findall(r"::\n\n((?:    .*\n|\n)+)", text)
    job = Job.parse(textwrap.dedent(example).encode(), source=Path("/jobs/hello.toml"))
    assert [step.name for step in job.steps] == ["sources", "build", "install", "test-results"]
