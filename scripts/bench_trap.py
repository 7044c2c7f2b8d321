"""What the bench measures of the trap: how much tracing slows a build, and how many runs a proof takes."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from vmimagemanager import Box, Manager
from vmimagemanager.images import recipefile
from vmimagemanager.proof import Question, prove
from vmimagemanager.trap import Baseline

COMPILING = "bench-compiling"
CANDIDATES = 300
_SOURCES = 12
_RECIPE = 'suite = "bookworm"\npackages = ["gcc", "libc6-dev", "make"]\nsize = "3G"\n'
_MAKEFILE = "objects = $(patsubst %.c,%.o,$(wildcard *.c))\nall: $(objects)\n"
_CONTROL = """\
Package: {name}
Version: 1
Architecture: all
Maintainer: Nobody <nobody@example.org>
Description: one of many
"""


def compiling_image(manager: Manager) -> str:
    """Build an image with a compiler, unless there is one; return its name."""
    if not any(image.name == COMPILING for image in manager.images.list()):
        with tempfile.TemporaryDirectory() as folder:
            recipe = Path(folder, "recipe.toml")
            recipe.write_text(_RECIPE)
            manager.images.build(COMPILING, recipe=recipefile.read(recipe, COMPILING))
    return COMPILING


def lay_sources(box: Box) -> None:
    """Put what `make` works on into the guest, in ``/root/source``."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source")
        source.mkdir()
        (source / "Makefile").write_text(_MAKEFILE)
        for number in range(_SOURCES):
            body = "".join(f'int f{number}_{one}(int x) {{ return printf("%d", x * {one}); }}\n' for one in range(40))
            (source / f"file{number}.c").write_text(f"#include <stdio.h>\n#include <stdlib.h>\n{body}")
        box.put(source, "/root/source")


def built(box: Box) -> float:
    """Build in the guest and return the seconds that it took there."""
    return box.run(["make", "-s", "-C", "/root/source"]).seconds


def traced(box: Box, how: str) -> float:
    """Build inside a trap that traces what is used, and return the seconds of the build alone."""
    with tempfile.TemporaryDirectory() as folder:
        declared = Path(folder, "needed")
        declared.write_text("make\ngcc\nlibc6-dev\n")
        Baseline().write(Path(folder, "deps.toml"))
        with box.trap(Path(folder, "deps.toml"), declared=[declared], trace=how):
            return built(box)


def lay_candidates(box: Box) -> None:
    """Install as many packages as a proof has to choose from, each with one program."""
    with tempfile.TemporaryDirectory() as folder:
        debs = Path(folder, "debs")
        debs.mkdir()
        for number in range(CANDIDATES):
            name = f"tool-{number:03}"
            tree = Path(folder, name)
            for part in (tree, tree / "DEBIAN", tree / "usr", tree / "usr" / "bin"):
                part.mkdir(mode=0o755)
            (tree / "DEBIAN" / "control").write_text(_CONTROL.format(name=name))
            program = tree / "usr" / "bin" / name
            program.write_text("#!/bin/sh\necho made\n")
            program.chmod(0o755)
            words = ["dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, debs]
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        box.put(debs, "/root/debs")
    box.script("dpkg --force-unsafe-io --install /root/debs/*.deb >/dev/null && rm -r /root/debs")


def proofs(box: Box, rounds: Callable[[str], Iterator[int]]) -> list[float]:
    """Prove, on the snapshot 'clean', which two of the candidates a command needs; return how many runs each took.

    One of the two is used, and the other one only probed for.
    """
    counts = []
    for number in rounds("proof"):
        used, probed = f"tool-{number * 37 % CANDIDATES:03}", f"tool-{(number * 91 + 50) % CANDIDATES:03}"
        command = ["sh", "-c", f"mkdir -p /root/out && {used} >/root/out/made && command -v {probed} >/root/out/found"]
        command[2] += " || :"
        box.restore("clean")
        with tempfile.TemporaryDirectory() as folder:
            declared = Path(folder, "needed")
            declared.write_text("coreutils\n")
            Baseline().write(Path(folder, "deps.toml"))
            with box.trap(Path(folder, "deps.toml"), declared=[declared], trace="atime") as trap:
                box.run(command)
            question = Question(snapshot="clean", command=command, artefacts=(PurePosixPath("/root/out"),))
            proof = prove(box, question, trap, cache=Path(folder, "proofs"))
        if set(proof.needed) != {f"dpkg:{used}", f"dpkg:{probed}"} or len(proof.cleared) < CANDIDATES - 2:
            raise SystemExit(f"The proof is wrong: {proof}.")
        counts.append(float(proof.trials))
    return counts
