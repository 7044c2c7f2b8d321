"""Configuration: where it is looked for, what is refused, and where each value came from."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import tomllib
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmimagemanager import config, records
from vmimagemanager.config import (
    BOX_KEYS,
    HOOK_KEYS,
    HOST_KEYS,
    Accelerator,
    BoxSettings,
    Channel,
    Engine,
    Firmware,
    Hook,
    HostSettings,
    Moment,
    Place,
)
from vmimagemanager.config import files as config_files
from vmimagemanager.errors import ConfigError, StateError, UsageError
from vmimagemanager.report.config import document, lines
from vmimagemanager.units import Size

SAMPLE = Path(__file__).parents[2] / "etc" / "vmimagemanager.toml"


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Move all places where a configuration file is looked for into a folder of the test's own."""
    for variable in ("VMIM_CONFIG", "VMIM_URI", "LIBVIRT_DEFAULT_URI", "VMIM_STATE_DIR"):
        monkeypatch.delenv(variable, raising=False)
    found = {name: tmp_path / name / "vmimagemanager.toml" for name in ("project", "xdg/vmimagemanager", "etc")}
    for path in found.values():
        path.parent.mkdir(parents=True)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(config_files, "SYSTEM", found["etc"])
    monkeypatch.chdir(found["project"].parent)
    return {"project": found["project"], "user": found["xdg/vmimagemanager"], "etc": found["etc"]}


def refusal(path: Path, text: str) -> str:
    """Return what is said about a file with this text."""
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    return caught.value.message


def test_without_any_file_everything_has_its_built_in_default() -> None:
    configuration = config.load()
    assert configuration.files == ()
    assert configuration.box("web") == BoxSettings()
    assert {setting.origin for setting in configuration.explain("web").values()} == {"built-in default"}


def test_the_files_are_merged_key_by_key_the_project_first(places: dict[str, Path]) -> None:
    places["project"].write_text('[defaults]\nram = "1G"\n')
    places["user"].write_text('[defaults]\nram = "2G"\ncpus = 2\n')
    places["etc"].write_text('[defaults]\nram = "3G"\ncpus = 3\nuser = "admin"\n')
    configuration = config.load()
    box = configuration.box("web")
    assert (box.ram, box.cpus, box.user) == (Size(1 << 30), 2, "admin")
    assert configuration.files == (places["project"], places["user"], places["etc"])
    origins = {key: setting.origin for key, setting in configuration.explain("web").items()}
    assert origins["ram"] == f"{places['project']}: defaults.ram"
    assert origins["cpus"] == f"{places['user']}: defaults.cpus"
    assert origins["user"] == f"{places['etc']}: defaults.user"


def test_a_boxs_own_table_wins_over_the_defaults_of_a_nearer_file(places: dict[str, Path]) -> None:
    places["project"].write_text('[defaults]\nram = "1G"\n')
    places["etc"].write_text('[box."web.1"]\nram = "3G"\n')
    configuration = config.load()
    assert configuration.box_names == ("web.1",)
    assert configuration.box("web.1").ram == Size(3 << 30)
    assert configuration.box("db").ram == Size(1 << 30)
    assert configuration.explain("web.1")["ram"].origin == f'{places["etc"]}: box."web.1".ram'


def test_options_win_over_every_file_and_none_means_not_given(places: dict[str, Path]) -> None:
    places["etc"].write_text('[box.web]\nram = "3G"\ncpus = 3\n')
    options = {"ram": "1G", "cpus": None, "boot_timeout": timedelta(minutes=7), "xml": "own.xml"}
    configuration = config.load()
    box = configuration.box("web", options)
    assert (box.ram, box.cpus, box.boot_timeout) == (Size(1 << 30), 3, timedelta(minutes=7))
    assert box.xml == Path.cwd() / "own.xml"
    assert configuration.explain("web", options)["boot-timeout"].origin == "option boot-timeout"


def test_a_bad_option_is_a_usage_error_that_names_it() -> None:
    with pytest.raises(UsageError, match=r"The option 'ram' is '5X': expected a size") as caught:
        config.load().box("web", {"ram": "5X"})
    assert not isinstance(caught.value, ConfigError)
    with pytest.raises(UsageError, match=r"The option 'rma' is not a known key.*the nearest is 'ram'"):
        config.load().box("web", {"rma": "1G"})


@pytest.mark.parametrize("how", ["option", "environment"])
def test_an_explicit_file_is_the_only_one_that_is_read(
    how: str, places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places["project"].write_text("nonsense")
    places["etc"].write_text("[defaults]\ncpus = 3\n")
    mine = tmp_path / "mine.toml"
    mine.write_text('[defaults]\nram = "1G"\n')
    if how == "environment":
        monkeypatch.setenv("VMIM_CONFIG", str(mine))
    configuration = config.load(mine if how == "option" else None)
    assert configuration.files == (mine,)
    assert configuration.box("web").cpus == 1


def test_the_option_wins_over_vmim_config_and_an_empty_variable_is_unset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMIM_CONFIG", str(tmp_path / "missing.toml"))
    assert config.load(Path("/dev/null")).files == (Path("/dev/null"),)
    monkeypatch.setenv("VMIM_CONFIG", "")
    assert config.load().files == ()


def test_an_explicit_file_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.toml' does not exist") as caught:
        config.load(tmp_path / "missing.toml")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_a_project_file_that_others_may_write_is_ignored_loudly(
    mode: int, places: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    places["project"].write_text("[defaults]\ncpus = 3\n")
    places["project"].chmod(mode)
    with caplog.at_level(logging.WARNING):
        configuration = config.load()
    assert configuration.box("web").cpus == 1
    assert configuration.files == ()
    [notice] = configuration.notices
    assert str(places["project"]) in notice
    assert "others than its owner may write it" in notice
    assert notice in caplog.text
    assert config.load(places["project"]).box("web").cpus == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.root
def test_a_project_file_of_somebody_else_is_ignored_loudly(places: dict[str, Path]) -> None:
    places["project"].write_text("[defaults]\ncpus = 3\n")
    os.chown(places["project"], 65534, 65534)
    configuration = config.load()
    assert configuration.files == ()
    assert "belongs neither to you nor to root" in configuration.notices[0]


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_a_project_file_that_is_no_regular_file_is_ignored_and_does_not_block(
    kind: str, places: dict[str, Path]
) -> None:
    path = places["project"]
    if kind == "link":
        places["etc"].write_text("[defaults]\ncpus = 3\n")
        path.symlink_to(places["etc"])
        places["etc"].rename(path.parent / "other")
    elif kind == "fifo":
        os.mkfifo(path, 0o600)
    else:
        path.mkdir(mode=0o700)
    configuration = config.load()
    assert configuration.files == ()
    assert len(configuration.notices) == 1


def test_a_removed_current_folder_has_no_project_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    configuration = config.load(host_options={"state-dir": tmp_path})
    assert configuration.host.state_dir == tmp_path
    with pytest.raises(UsageError, match="starts at a folder that exists"):
        config.load(host_options={"state-dir": "here"})


def test_the_environment_wins_over_the_files_and_options_win_over_it(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    places["etc"].write_text('[host]\nuri = "qemu:///system"\nstate-dir = "state"\nlease-wait = "0s"\n')
    assert config.load().host == HostSettings(
        uri="qemu:///system", state_dir=places["etc"].parent / "state", lease_wait=timedelta(0)
    )
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", "test:///default")
    assert config.load().host.uri == "test:///default"
    monkeypatch.setenv("VMIM_URI", "qemu:///session")
    monkeypatch.setenv("VMIM_STATE_DIR", "~/state")
    configuration = config.load()
    assert configuration.host.uri == "qemu:///session"
    assert configuration.host.state_dir == tmp_path / "home" / "state"
    assert configuration.explain_host()["uri"].origin == "environment variable VMIM_URI"
    configuration = config.load(host_options={"uri": "qemu:///system", "accelerator": Accelerator.TCG})
    assert (configuration.host.uri, configuration.host.accelerator) == ("qemu:///system", Accelerator.TCG)
    assert configuration.explain_host()["uri"].origin == "option uri"


def test_a_bad_environment_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMIM_URI", "nonsense")
    with pytest.raises(ConfigError, match="The environment variable 'VMIM_URI' is 'nonsense': expected a libvirt URI"):
        config.load()


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("qemu:///system", "/var/lib/vmimagemanager"),
        ("qemu:///system?socket=/x", "/var/lib/vmimagemanager"),
        ("qemu:///session", "{data}/vmimagemanager"),
        ("test:///default", "{data}/vmimagemanager"),
    ],
)
def test_the_state_directory_follows_the_uri(
    uri: str, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    configuration = config.load(host_options={"uri": uri})
    assert configuration.host.state_dir == Path(expected.format(data=tmp_path / "data"))
    assert configuration.explain_host()["state-dir"].origin == f"built-in default for {uri}"


@pytest.mark.parametrize(("user", "uri"), [(0, "qemu:///system"), (1000, "qemu:///session")])
def test_the_default_uri_is_libvirts_own_choice(user: int, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert config.load().host.uri == uri


REFUSED = [
    ('[defaults]\nram = "5X"', "'defaults.ram' is '5X': expected a size in quotes with a unit, such as '512M'"),
    ("[defaults]\nram = 512", "'defaults.ram' is 512: expected a size in quotes"),
    ('[defaults]\nram = "32M"', "from 64M to 16T"),
    ('[defaults]\nram = "5m30s"', "'defaults.ram' is '5m30s': expected a size"),
    ('[box.web]\nboot-timeout = "2G"', "'box.web.boot-timeout' is '2G': expected a duration in quotes with a unit"),
    ("[box.web]\nboot-timeout = 120", "'box.web.boot-timeout' is 120: expected a duration in quotes with a unit"),
    ('[box.web]\nboot-timeout = "0s"', "'box.web.boot-timeout' is '0s': expected a duration"),
    (f'[box.web]\nboot-timeout = "{"9" * 400}d"', "expected a duration"),
    ("[defaults]\ncpus = true", "'defaults.cpus' is true: expected a whole number from 1 to 64"),
    ("[defaults]\ncpus = 65", "'defaults.cpus' is 65: expected a whole number from 1 to 64"),
    ("[defaults]\ncpus = 1.0", "'defaults.cpus' is 1.0: expected a whole number"),
    ("[defaults]\ncpus = 2024-01-01", "'defaults.cpus' is 2024-01-01: expected a whole number"),
    ('[defaults]\nimage = "a/b"', "'defaults.image' is 'a/b': expected the name of an image"),
    ('[defaults]\nuser = "a b"', "'defaults.user' is 'a b': expected the name of a user"),
    ('[defaults]\nnetwork = "bridge"', "expected 'user', 'none', or 'libvirt:NAME'"),
    ('[defaults]\nnetwork = "libvirt:"', "expected 'user', 'none', or 'libvirt:NAME'"),
    ('[defaults]\nnetwork = "user:x"', "expected 'user', 'none', or 'libvirt:NAME'"),
    ('[defaults]\nxml = ""', "'defaults.xml' is '': expected the path"),
    ('[defaults]\nxml = "~nobody-has-this-name/x"', "'defaults.xml' is '~nobody-has-this-name/x': expected the path"),
    ('[defaults]\ndescription = "a\\u0007"', "'defaults.description' is 'a\\x07': expected one line"),
    (
        "[defaults]\ninserts = 'certificates'",
        "'defaults.inserts' is 'certificates': expected a list of names in quotes",
    ),
    ("[defaults]\ninserts = ['../x']", "expected a list of names in quotes"),
    ("[defaults]\nengines = []", "'defaults.engines' is an empty list: expected a list of one or more of 'live'"),
    ('[defaults]\nengines = ["live", "warm"]', "'defaults.engines[2]' is 'warm': expected one of 'live', 'saved'"),
    ("[defaults]\nimage = [1]", "'defaults.image' is the list [1]: expected the name"),
    ("[defaults]\nimage.a = 1", "'defaults.image' is a table: expected the name"),
    ('[host]\naccelerator = "hvf"', "'host.accelerator' is 'hvf': expected one of 'auto', 'kvm', 'tcg'"),
    ('[host]\nuri = ""', "'host.uri' is '': expected a libvirt URI"),
    ("[box]\nweb = 1", "'box.web' is 1: expected a table"),
    ("box = 1", "'box' is 1: expected a table"),
    ('[box."a b"]', "'a b' in 'box' is not a box name: expected a letter or digit"),
    ("[defaults]\nrma = 1", "'defaults.rma' is not a known key"),
    ("[defaults]\nrma = 1", "; the nearest is 'ram'"),
    ("[defaults]\nboot_timeout = 1", "; the nearest is 'boot-timeout'"),
    ("[box.web]\nuri = 1", "; the nearest is 'host.uri'"),
    ('ram = "1G"', "'ram' is not a known key: expected one of host, defaults, box; the nearest is 'defaults.ram'"),
    ("[boxes.web]", "'boxes' is not a known key: expected one of host, defaults, box; the nearest is 'box'"),
    ("[box.web.1]\nram = 1", "'box.web.1' is not a known key"),
    ("[defaults]\nhooks = 1", "'defaults.hooks' is 1: expected tables, each of which begins with [[defaults.hooks]]"),
    ("[defaults]\nhooks = [1]", "'defaults.hooks[1]' is 1: expected a table"),
    ("[[box.web.hooks]]", "'box.web.hooks[1]' has no 'moment': expected one of 'after-define'"),
    ('[[box.web.hooks]]\nmoment = "after-boot"', "'box.web.hooks[1].moment' is 'after-boot': expected one of"),
    ('[[box.web.hooks]]\nmoment = "after-up"', "'box.web.hooks[1]' needs either 'script' or 'command'"),
    (
        '[[box.web.hooks]]\nmoment = "after-up"\nscript = "a"\ncommand = ["a"]',
        "'box.web.hooks[1]' needs either 'script' or 'command'",
    ),
    ('[[box.web.hooks]]\nmoment = "after-up"\ncommand = "a b"', "hooks[1].command' is 'a b': expected a list of words"),
    ('[[box.web.hooks]]\nmoment = "after-up"\ncommand = [""]', "expected a list of words"),
    ("[[box.web.hooks]]\nmomment = 1", "'box.web.hooks[1].momment' is not a known key"),
    ("[[box.web.hooks]]\nmomment = 1", "; the nearest is 'moment'"),
    ("[defaults\n", "is not TOML: "),
    ('[defaults]\nram = "1G"\nram = "2G"\n', "is not TOML: Cannot overwrite a value (at line 3"),
]


@pytest.mark.parametrize(("text", "said"), REFUSED)
def test_what_is_not_understood_is_refused_with_file_key_and_what_was_expected(
    text: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.toml"
    message = refusal(path, text)
    assert said in message
    assert f"'{path}'" in message
    assert "\n" not in message


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(b"# \xff\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        config.load(path)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        config.load(tmp_path)


def test_an_error_in_a_file_of_lower_precedence_is_not_hidden(places: dict[str, Path]) -> None:
    places["project"].write_text('[defaults]\nram = "1G"\n')
    places["etc"].write_text('[defaults]\nram = "x"\n')
    with pytest.raises(ConfigError, match=re.escape(str(places["etc"]))):
        config.load()


def test_relative_paths_start_at_the_file_that_names_them(places: dict[str, Path], tmp_path: Path) -> None:
    places["user"].write_text(
        '[defaults]\nxslt = "site.xslt"\nxml = "~/own.xml"\n'
        '[[defaults.hooks]]\nmoment = "after-up"\nscript = "hooks/a.sh"\n'
    )
    box = config.load().box("web")
    folder = places["user"].parent
    assert box.xslt == folder / "site.xslt"
    assert box.xml == tmp_path / "home" / "own.xml"
    assert box.hooks == (Hook(moment=Moment.AFTER_UP, script=folder / "hooks" / "a.sh"),)


def test_the_hooks_of_a_box_replace_those_of_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(
        '[[defaults.hooks]]\nmoment = "after-up"\ncommand = ["a"]\n'
        '[[box.web.hooks]]\nmoment = "before-down"\nwhere = "host"\ncommand = ["b", "c d"]\ntimeout = "5s"\n'
        "[box.quiet]\nhooks = []\n"
    )
    configuration = config.load(path)
    expected = Hook(moment=Moment.BEFORE_DOWN, where=Place.HOST, command=("b", "c d"), timeout=timedelta(seconds=5))
    assert configuration.box("web").hooks == (expected,)
    assert configuration.box("quiet").hooks == ()
    assert configuration.box("other").hooks == (Hook(moment=Moment.AFTER_UP, command=("a",)),)


def uncommented(text: str) -> str:
    """Take the comment sign off the lines of the sample that are keys or tables."""
    return re.sub(r"(?m)^# (?=\[|[a-z-]+ = )", "", text)


def test_the_sample_loads_and_changes_nothing() -> None:
    configuration = config.load(SAMPLE)
    assert configuration.box("web") == BoxSettings()


def test_the_sample_names_every_key_and_loads_when_uncommented(tmp_path: Path) -> None:
    text = uncommented(SAMPLE.read_text())
    path = tmp_path / "all.toml"
    path.write_text(text)
    config.load(path).box("web")
    table = tomllib.loads(text)
    hooks = table["defaults"]["hooks"] + table["box"]["web"]["hooks"]
    assert set(table["host"]) == set(HOST_KEYS)
    assert set(table["defaults"]) == set(BOX_KEYS)
    assert {key for hook in hooks for key in hook} == set(HOOK_KEYS)


def test_the_samples_comments_show_the_built_in_defaults(tmp_path: Path) -> None:
    path = tmp_path / "all.toml"
    path.write_text(uncommented(SAMPLE.read_text()))
    shown = config.load(path).box("other")
    examples = {"image", "description", "user", "xml", "xslt", "hooks"}
    for setting in dataclasses.fields(BoxSettings):
        if setting.name not in examples:
            assert getattr(shown, setting.name) == getattr(BoxSettings(), setting.name), setting.name
    assert shown.hooks[0] == dataclasses.replace(shown.hooks[0], where=Place.GUEST, timeout=timedelta(minutes=1))


@pytest.mark.parametrize(("keys", "kind"), [(BOX_KEYS, BoxSettings), (HOOK_KEYS, Hook), (HOST_KEYS, HostSettings)])
def test_keys_and_attributes_are_the_same(keys: dict[str, object], kind: type[BoxSettings]) -> None:
    assert {key.replace("-", "_") for key in keys} == {field.name for field in dataclasses.fields(kind)}


WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)
LINES = st.text().filter(str.isprintable)
PATHS = st.from_regex(r"/[a-z /.]{1,20}", fullmatch=True).map(Path)
DURATIONS = st.integers(1, 30 * 86_400_000).map(lambda number: timedelta(milliseconds=number))
ENGINES = st.sets(st.sampled_from(Engine), min_size=1).map(lambda some: tuple(e for e in Engine if e in some))
HOOKS = st.builds(
    lambda runs, **rest: Hook(**runs, **rest),
    runs=st.one_of(
        st.builds(lambda path: {"script": path}, PATHS),
        st.builds(lambda words: {"command": tuple(words)}, st.lists(WORDS, min_size=1)),
    ),
    moment=st.sampled_from(Moment),
    where=st.sampled_from(Place),
    timeout=DURATIONS,
)
SETTINGS = st.builds(
    BoxSettings,
    image=st.none() | st.just("debian-12"),
    description=st.none() | LINES,
    ram=st.integers(64 << 20, 16 << 40).map(Size),
    cpus=st.integers(1, 64),
    network=st.sampled_from(["user", "none", "libvirt:default", "libvirt:my net"]),
    user=st.none() | st.just("root"),
    channel=st.sampled_from(Channel),
    disks=st.lists(st.integers(1 << 20, 16 << 40).map(Size), max_size=3).map(tuple),
    firmware=st.sampled_from(Firmware),
    tpm=st.booleans(),
    engines=ENGINES,
    xml=st.none() | PATHS,
    xslt=st.none() | PATHS,
    boot_timeout=DURATIONS,
    down_timeout=DURATIONS,
    ssh_timeout=DURATIONS,
    inserts=st.lists(st.sampled_from(["keys", "certificates-2"]), max_size=3).map(tuple),
    hooks=st.lists(HOOKS, max_size=3).map(tuple),
)


@given(SETTINGS)
def test_settings_survive_the_record_of_a_box(settings: BoxSettings) -> None:
    record = records.parse(records.dump(settings.to_record()), source="box.toml")
    assert BoxSettings.from_record(record, source="box.toml") == settings


def test_a_damaged_record_is_a_state_error_that_names_it() -> None:
    with pytest.raises(StateError, match=r"In the record 'box\.toml', 'ram' is 7: expected a size"):
        BoxSettings.from_record({"ram": 7}, source="box.toml")


def test_config_show_is_toml_that_gives_the_same_settings_again(places: dict[str, Path], tmp_path: Path) -> None:
    places["project"].write_text(
        '[host]\nuri = "test:///default"\n[defaults]\nram = "1G"\nxml = "own.xml"\n'
        '[[defaults.hooks]]\nmoment = "after-up"\nscript = "a.sh"\n[box."web.1"]\ncpus = 2\n[box.db]\nhooks = []\n'
    )
    configuration = config.load()
    text = "\n".join(lines(configuration))
    again = tmp_path / "again.toml"
    again.write_text(text)
    second = config.load(again)
    assert second.host == configuration.host
    for name in ("web.1", "db", "other"):
        assert second.box(name) == configuration.box(name)


def test_config_show_says_where_each_value_came_from(places: dict[str, Path]) -> None:
    places["project"].write_text("[box.web]\ncpus = 2\n")
    places["etc"].write_text('[[defaults.hooks]]\nmoment = "after-up"\nscript = "a.sh"\n')
    shown = lines(config.load(), "web")
    assert "[box.web]" in shown
    [cpus] = [line for line in shown if line.startswith("cpus = ")]
    assert re.fullmatch(rf"cpus = 2 +# {re.escape(str(places['project']))}: box\.web\.cpus", cpus)
    [ram] = [line for line in shown if line.startswith("ram = ")]
    assert re.fullmatch(r'ram = "512M" +# built-in default', ram)
    assert any(line.startswith("# image is not set") for line in shown)
    assert "# user is not set: it is the image's" in shown
    assert f"# {places['etc']}: defaults.hooks" in shown
    assert "[[box.web.hooks]]" in shown


def test_the_json_document_of_config_show_is_versioned_and_complete(places: dict[str, Path]) -> None:
    places["project"].write_text("[box.web]\ncpus = 2\n")
    shown = document(config.load())
    assert (shown["format"], shown["kind"]) == (1, "config")
    assert shown["files"] == [str(places["project"])]
    assert shown["boxes"]["web"]["cpus"] == {"value": 2, "origin": f"{places['project']}: box.web.cpus"}
    assert set(shown["boxes"]["web"]) == set(BOX_KEYS)
    assert shown["defaults"]["ram"] == {"value": "512M", "origin": "built-in default"}
    assert set(shown["host"]) == set(HOST_KEYS)
