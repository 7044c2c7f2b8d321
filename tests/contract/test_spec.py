"""What an RPM spec declares, evaluated by the real rpmspec of this host in place of a guest's."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from vmimagemanager.errors import ConfigError, GuestError
from vmimagemanager.trap import spec

SPEC = """\
%global with_docs 1
Name: hello
Version: 1
Release: 1
Summary: hello
License: none
BuildRequires: gcc, make >= 4
BuildRequires: pkgconfig(glib-2.0) >= 2.50
%if 0%{?with_docs}
BuildRequires: python3dist(sphinx)
%else
BuildRequires: never
%endif
BuildRequires: (cmake >= 3.20 or meson)
%description
it's $HOME `id`
"""


def here(script: str) -> bytes:
    return subprocess.run(["sh", "-s"], input=script.encode(), check=True, capture_output=True).stdout


def test_a_spec_is_evaluated_where_its_macros_are(tmp_path: Path) -> None:
    path = tmp_path / "hello.spec"
    path.write_text(SPEC)
    needs = spec.read(path, here)
    assert sorted(need.names for need in needs) == [
        ("cmake", "meson"),
        ("gcc",),
        ("make",),
        ("pkgconfig(glib-2.0)",),
        ("python3dist(sphinx)",),
    ]
    assert {(need.managers, need.source) for need in needs} == {(("rpm",), str(path))}


def test_a_spec_that_is_none_is_refused_with_what_rpmspec_says(tmp_path: Path) -> None:
    path = tmp_path / "broken.spec"
    path.write_text("Name: hello\n%if\n")
    with pytest.raises(ConfigError, match=r"broken\.spec' cannot be evaluated: rpmspec ended") as raised:
        spec.read(path, here)
    assert raised.value.detail


def test_a_guest_without_rpmspec_is_told_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "hello.spec"
    path.write_text(SPEC)
    with pytest.raises(GuestError, match="has no rpmspec") as raised:
        spec.read(path, lambda script: here(script.replace("have rpmspec", "have no-such-program")))
    assert "rpm-build" in raised.value.hint


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        spec.read(tmp_path / "missing.spec", here)


@pytest.mark.parametrize(
    ("requirement", "clauses"),
    [
        ("gcc", [("gcc",)]),
        ("gcc >= 1:12-3", [("gcc",)]),
        ("rpmlib(RichDependencies) <= 4.12.0-1", []),
        ("(a or b)", [("a", "b")]),
        ("(a >= 1 with a < 2)", [("a",), ("a",)]),
        ("(a and perl(Foo::Bar))", [("a",), ("perl(Foo::Bar)",)]),
        ("(a if b)", [("a",)]),
        ("(libx(x86-64) or liby)", [("libx(x86-64)", "liby")]),
    ],
)
def test_of_a_requirement_the_names_remain(requirement: str, clauses: list[tuple[str, ...]]) -> None:
    assert list(spec.clauses(requirement)) == clauses
