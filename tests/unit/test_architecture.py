"""The rules of DESIGN.md, section 4, and of STYLE.md that a program can check."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmimagemanager import errors

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "vmimagemanager"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Who may import what: a module or a folder of the package.
OWNERS = {
    "libvirt": ("hypervisor/",),
    "libvirt_qemu": ("hypervisor/",),
    "lxml": ("hypervisor/", "images/ovf.py"),
    "paramiko": ("guest/", "images/transport.py"),
    "fsspec": ("images/transport.py",),
    "aiohttp": ("images/transport.py",),
    "cryptography": ("keys.py",),
    "subprocess": ("process.py",),
    "fcntl": ("locks.py",),
    "tomllib": ("records.py",),
    "tomli_w": ("records.py",),
    "pycdlib": ("images/seed.py",),
    "zstandard": ("snapshots/parcel.py", "images/chunks.py", "images/unpacking.py", "files/"),
    "httpx": ("images/download.py",),
    "packageurl": ("report/sbom.py",),
    "junitparser": ("report/junit.py",),
    "click": ("cli/",),
    "rich": ("cli/", "report/"),
    "pytest": ("pytest_plugin/",),
    "time.sleep": ("deadline.py",),
}


def belongs(module: Path, owners: tuple[str, ...]) -> bool:
    path = module.relative_to(PACKAGE).as_posix()
    return any(path == owner or (owner.endswith("/") and path.startswith(owner)) for owner in owners)


def foreign_names(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the dotted name of everything that is imported, and of every ``time.sleep``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            if name == "time.sleep":
                yield node.lineno, name


def trespasses(module: Path, source: str) -> list[str]:
    return [
        f"{module.relative_to(ROOT)}:{line} uses {name}, which belongs to {' and '.join(owners)}"
        for line, name in foreign_names(source)
        for owned, owners in OWNERS.items()
        if (name == owned or name.startswith(f"{owned}.")) and not belongs(module, owners)
    ]


def test_every_foreign_world_has_one_owner() -> None:
    assert MODULES
    assert [line for module in MODULES for line in trespasses(module, module.read_text())] == []


@pytest.mark.parametrize(
    "source",
    [
        "import libvirt",
        "import lxml.etree as tree",
        "def late():\n    from lxml import etree",
        "from time import sleep",
        "import time\ntime.sleep(1)",
        "from subprocess import run",
    ],
)
def test_the_owner_rule_notices_a_trespass(source: str) -> None:
    assert trespasses(PACKAGE / "units.py", source) != []


def test_the_owner_rule_lets_the_owner_in() -> None:
    assert trespasses(PACKAGE / "hypervisor" / "connection.py", "import libvirt\nfrom lxml import etree") == []


def test_imports_point_downwards_only() -> None:
    # In a process of its own: the linter switches off every logger that it finds.
    program = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_importing_the_package_loads_nothing_foreign() -> None:
    foreign = {"libvirt", "lxml", "paramiko", "rich", "click", "cryptography", "pytest", "zstandard"}
    foreign |= {"fsspec", "aiohttp", "httpx", "pycdlib", "junitparser", "packageurl"}
    program = f"import sys, vmimagemanager; print(*sorted({foreign} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_each_error_family_has_its_own_exit_code() -> None:
    codes = Counter(cls.exit_code for cls in errors.families())
    assert [code for code, count in codes.items() if count > 1] == []


def test_only_a_failed_testbed_ends_with_111_to_125() -> None:
    ours = {"command", "trap", "usage"}
    outside = {cls.family for cls in errors.families() if not 111 <= cls.exit_code <= 125}
    assert outside == ours


def test_no_subclass_takes_an_exit_code_of_its_own() -> None:
    families = set(errors.families())

    def tree(cls: type[errors.VmimError]) -> Iterator[type[errors.VmimError]]:
        yield cls
        for child in cls.__subclasses__():
            yield from tree(child)

    owners = {cls for cls in tree(errors.VmimError) if "exit_code" in vars(cls) and cls.__module__ == errors.__name__}
    assert owners == families


@pytest.mark.slow
@pytest.mark.parametrize("words", ["ruff check", "ruff format --check", "mypy"])
def test_style_and_types_are_clean(words: str) -> None:
    program, *arguments = words.split()
    result = subprocess.run(
        [sys.executable, "-m", program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
