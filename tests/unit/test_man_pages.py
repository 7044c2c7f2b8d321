"""The man pages: well-formed, and saying what the program does."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

from vmimagemanager import config, process
from vmimagemanager.config import BOX_KEYS, HOOK_KEYS, HOST_KEYS, BoxSettings, Hook, Moment, plain
from vmimagemanager.config.configuration import VARIABLES

MAN = Path(__file__).parents[2] / "man"
CONFIGURATION = MAN / "vmimagemanager.toml.5.rst"
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
