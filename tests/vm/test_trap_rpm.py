"""The dependency trap on an rpm database that rpm itself builds in a guest: the guest is Debian, rpm this host's."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from vmimagemanager import Box
from vmimagemanager.errors import GuestError
from vmimagemanager.guest import inventory
from vmimagemanager.guest.inventory import Kind
from vmimagemanager.trap import Baseline, Reason, Rule, compare
from vmimagemanager.trap.explain import Need

# The loader and the libraries are this host's, too: which those of the guest are does not matter.
WRAPPER = """\
#!/bin/sh
exec /opt/rpm/ld.so --library-path /opt/rpm /opt/rpm/rpm "$@"
"""
SPEC = """\
Name: hello
Version: {version}
Release: 2
Epoch: 3
Summary: greets
License: MIT
BuildArch: noarch
Requires: libhello >= 1{more}
Recommends: greeter
%description
x
%package -n libhello
Summary: s
Provides: hello-abi = 1
%description -n libhello
x
%package -n greeter
Summary: s
%description -n greeter
x
%package -n libextra
Summary: s
%description -n libextra
x
%install
mkdir -p %{{buildroot}}/usr/bin %{{buildroot}}/usr/share/hello
echo hello >%{{buildroot}}/usr/bin/hello
touch '%{{buildroot}}/usr/share/hello/a b'
%files
%attr(4755, root, root) /usr/bin/hello
%files -n libhello
"/usr/share/hello/a b"
%files -n greeter
%files -n libextra
"""
RPM = ["rpm", "--dbpath", "/var/lib/rpm", "--force-debian"]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rpm, its loader and libraries, and packages that rpmbuild makes."""
    folder = tmp_path_factory.mktemp("rpm") / "rpm"
    folder.mkdir()
    program = str(shutil.which("rpm"))
    listed = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    for path in re.findall(r"(/\S+) \(0x", listed):
        shutil.copy(path, folder / ("ld.so" if "/ld-linux" in path else Path(path).name))
    shutil.copy(program, folder / "rpm")
    (folder / "wrapper").write_text(WRAPPER)
    (folder / "lib").mkdir()
    for pattern in ("macros", "rpmrc", "rpmpopt*"):
        for path in Path("/usr/lib/rpm").glob(pattern):
            shutil.copy(path, folder / "lib")
    shutil.copytree("/usr/lib/rpm/platform", folder / "lib/platform", symlinks=True)
    for version, more in (("1.0", ""), ("2.0", ", libextra")):
        spec = folder.parent / "hello.spec"
        spec.write_text(SPEC.format(version=version, more=more))
        build = ["rpmbuild", "-bb", "--define", f"_topdir {folder.parent}"]
        subprocess.run([*build, "--define", "_binary_payload w6.gzdio", str(spec)], check=True, capture_output=True)
    for path in (folder.parent / "RPMS").rglob("*.rpm"):
        shutil.copy(path, folder / path.name)
    return folder


def test_what_rpm_installs_is_trapped_with_the_way_to_it(box: Box, packages: Path) -> None:
    box.put(packages, "/opt/rpm")
    box.script("mv /opt/rpm/lib /usr/lib/rpm; install -m 755 /opt/rpm/wrapper /usr/bin/rpm; mkdir -p /var/lib/rpm")
    box.run([*RPM, "--upgrade", "/opt/rpm/greeter-1.0-2.noarch.rpm"])
    before = box.inventory()
    assert {package.item for package in before.packages if package.manager == "rpm"} == {"rpm:greeter"}
    assert "dpkg:dpkg" in before.items

    box.run([*RPM, "--upgrade", "/opt/rpm/hello-1.0-2.noarch.rpm", "/opt/rpm/libhello-1.0-2.noarch.rpm"])
    first = inventory.take(box.as_root, since=before.clock)
    needs = [Need(managers=("rpm",), names=("hello",))]
    verdict = compare(before, first, Baseline(), needs=needs)
    told = {finding.item: finding for finding in verdict.findings if finding.rule is Rule.NEW}
    assert {item: finding.detail for item, finding in told.items()} == {
        "rpm:hello": "3:1.0-2",
        "rpm:libhello": "3:1.0-2",
    }
    explanation = told["rpm:libhello"].explanation
    assert explanation is not None
    assert (explanation.reason, explanation.chain) == (Reason.TRANSITIVE, ("rpm:hello", "rpm:libhello"))
    assert [(one.item, one.detail) for one in verdict.findings if one.rule is Rule.SETUID] == [
        ("setuid:/usr/bin/hello", "-rwsr-xr-x 0:0, of rpm:hello")
    ]
    assert not [
        one for one in first.facts if one.kind is Kind.FILE and one.name.startswith("/usr") and "hello" in one.name
    ]
    [hello] = [package for package in first.packages if package.item == "rpm:hello"]
    assert hello.recommends == (("greeter",),)

    box.run([*RPM, "--upgrade", *(f"/opt/rpm/{name}-2.0-2.noarch.rpm" for name in ("hello", "libhello", "libextra"))])
    verdict = compare(first, box.inventory(), Baseline(), needs=needs)
    [new] = [finding for finding in verdict.findings if finding.rule is Rule.NEW]
    assert new.explanation is not None
    assert (new.item, new.explanation.chain) == ("rpm:libextra", ("rpm:hello", "rpm:libextra"))
    assert [(one.package.item, one.before, one.after) for one in verdict.changed] == [
        ("rpm:hello", ("3:1.0-2",), ("3:2.0-2",)),
        ("rpm:libhello", ("3:1.0-2",), ("3:2.0-2",)),
    ]

    # A database that cannot be read is an error, never packages that are gone.
    box.script("cd /var/lib/rpm; for file in *; do head -c 100 /dev/urandom >$file; done")
    with pytest.raises(GuestError):
        box.inventory()
