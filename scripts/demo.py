"""From a fresh machine to a running box that is restored in half a second, and a dependency that is caught.

Every step is a command that can be typed; it is printed with its real duration.  The box 'demo' stays.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

BOX, IMAGE, SNAPSHOT, TOOLS = "demo", "debian-12", "demo@clean", "demo@tools"
VMIM = str(Path(sys.executable).with_name("vmimagemanager"))
TRAPPED = 100
_console = Console(highlight=False)


class DemoError(Exception):
    """A step ended otherwise than it must."""


def main() -> int:
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="vmim-demo-", dir="/var/tmp") as folder:
            show(Path(folder))
    except DemoError as error:
        print(f"scripts/demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("scripts/demo: interrupted; it can be run again at any time.", file=sys.stderr)
        return 130
    _console.print(f"\n[bold]All that in {time.monotonic() - began:.0f} s.[/] The box stays; go on with:")
    for words in (f"restore {SNAPSHOT}", f"run {BOX} -- uname -a", f"ssh {BOX}", f"logs {BOX}", f"undefine {BOX}"):
        print(f"  {shlex.quote(VMIM)} {words}")
    print("If libvirt does not answer then, 'vmimagemanager doctor' says how to start it.")
    return 0


def show(folder: Path) -> None:
    title("A base image, built from the distribution's packages")
    if IMAGE in (image["name"] for image in read("image", "list")["images"]):
        print(f"  The image '{IMAGE}' is there already.")
    else:
        step("image", "build", IMAGE)

    title("A box, booted once, and snapshotted while it runs")
    boxes = [box["name"] for box in read("list")["boxes"]]
    snapshots = [one["name"] for one in read("snapshots", BOX)["snapshots"]] if BOX in boxes else []
    if BOX not in boxes:
        step("define", BOX, "--image", IMAGE)
    if "clean" not in snapshots:
        step("up", BOX)
        step("snapshot", SNAPSHOT)
    if "tools" in snapshots:  # of a demo that was interrupted
        step("snapshot-remove", TOOLS)

    title("Dirtied, and restored: memory and all")
    step("restore", SNAPSHOT)
    step("run", BOX, "--", "sh", "-c", "echo 'left over' > /root/canary; cat /root/canary")
    step("restore", SNAPSHOT)
    step("run", BOX, "--", "cat", "/root/canary", expected=1)
    step("run", BOX, "--", "date", "-R")

    title("Forked: four running clones that share its memory")
    step("fork", SNAPSHOT, "--count", "4")
    clones = [f"{BOX}-{number}" for number in range(1, 5)]
    for clone in clones:
        step("run", clone, "--", "hostname")
    step("undefine", "--yes", "--force", *clones)

    dependencies(folder)
    step("down", BOX)


def dependencies(folder: Path) -> None:
    title("A nightly build installs its package, and sneaks in a dependency that nobody declared")
    declared = package(
        folder, "demo-tool", "usr/bin/demo-tool", "#!/bin/sh\n. /usr/lib/demo-library\n", depends="demo-library"
    )
    sneaked = package(folder, "demo-library", "usr/lib/demo-library", "echo made by demo-tool\n")
    step("put", BOX, str(declared), "/root/")
    step("put", BOX, str(sneaked), "/root/")
    baseline = folder / "deps.toml"
    baseline.write_text('format = 1\n\n[packages]\naccepted = [\n    "dpkg:demo-tool",\n]\n')
    install = ["dpkg", "-i", f"/root/{sneaked.name}", f"/root/{declared.name}"]
    step("trap", BOX, "--baseline", str(baseline), "--", *install, expected=TRAPPED)

    title("Another one uses a tool that its base happens to have: trapped, explained, and proven")
    step("snapshot", TOOLS)
    baseline.write_text("format = 1\n")
    needed = folder / "needed"
    needed.write_text("perl-base\n")
    words = ["--baseline", str(baseline), "--declared", str(needed), "--prove", "--artefact", "/root/made"]
    step("trap", BOX, *words, "--", "sh", "-c", "demo-tool >/root/made", expected=TRAPPED)
    step("restore", SNAPSHOT)
    step("snapshot-remove", TOOLS)


def title(text: str) -> None:
    _console.print(f"\n[bold]{text}[/]")


def step(*words: str, expected: int = 0) -> None:
    """Run one command of ours, its output below it, and print how long it took."""
    _console.print(f"[cyan]$ vmimagemanager {shlex.join(words)}[/]", soft_wrap=True)
    start = time.monotonic()
    status = subprocess.run([VMIM, *words], stdin=subprocess.DEVNULL, check=False).returncode
    if status != expected:
        raise DemoError(
            f"'vmimagemanager {shlex.join(words)}' ended with status {status}, and {expected} was expected."
        )
    ending = f", status {status} as it must" if expected else ""
    _console.print(f"[dim]  {time.monotonic() - start:.2f} s{ending}[/]")


def read(*words: str) -> dict[str, list[dict[str, str]]]:
    """Return what one command of ours says in JSON."""
    finished = subprocess.run([VMIM, "--json", *words], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if finished.returncode != 0:
        raise DemoError(finished.stderr.decode().strip())
    return dict(json.loads(finished.stdout))


def package(folder: Path, name: str, path: str, text: str, *, depends: str = "") -> Path:
    """Make a Debian package on the spot: the guest needs no archive."""
    tree = folder / name
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / path).parent.mkdir(parents=True)
    (tree / path).write_text(text)
    (tree / path).chmod(0o755)
    fields = [f"Package: {name}", "Version: 1.4", "Architecture: all", "Maintainer: nobody <nobody@localhost>"]
    fields += [f"Depends: {depends}"] if depends else []
    (tree / "DEBIAN/control").write_text("\n".join([*fields, "Description: made by scripts/demo", ""]))
    target = folder / f"{name}_1.4_all.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "--build", str(tree), str(target)], check=True, stdout=subprocess.DEVNULL
    )
    return target


if __name__ == "__main__":
    sys.exit(main())
