"""Readers of what others wrote, given damaged and invented content: each ends well, or with an error of ours.

A target is a module ``target_*.py`` beside this one: ``NAME``, and ``read(content, folder)``, which reads content that
nobody checked, may write into an empty folder, and raises VmimError when it refuses.  Where to begin is in
``tests/corpus/NAME``: whole examples, and whatever once broke the reader, which is kept there by its digest.

``scripts/fuzz`` runs this for an hour, or for ``VMIM_FUZZ_SECONDS``; the test suite runs it for some seconds.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from vmimagemanager.errors import VmimError

HERE = Path(__file__).parent
CORPUS = HERE.parent / "corpus"
SECONDS = float(os.environ.get("VMIM_FUZZ_SECONDS", "3"))
PLACES = st.integers(0, 1 << 16)
PIECES = st.one_of(
    st.binary(max_size=16), st.sampled_from([b"\0", b"\xff" * 8, b"-1", b"9" * 30, b"[" * 40, b'"', b"\n"])
)


def module(path: Path) -> ModuleType:
    found = importlib.util.spec_from_file_location(path.stem, path)
    assert found is not None
    assert found.loader is not None
    loaded = importlib.util.module_from_spec(found)
    found.loader.exec_module(loaded)
    return loaded


TARGETS = {target.NAME: target for target in map(module, sorted(HERE.glob("target_*.py")))}


def corpus(name: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


def attempt(read: Callable[[bytes, Path], None], content: bytes) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        try:
            read(content, Path(folder))
        except VmimError as error:
            assert error.message  # noqa: PT017 - a refusal is a good end


@st.composite
def damaged(draw: st.DrawFn, examples: list[bytes]) -> bytes:
    """An example in which some bytes were replaced, removed, repeated or put in."""
    content = bytearray(draw(st.sampled_from(examples)))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(PLACES) % (len(content) + 1)
        end = min(len(content), at + draw(st.integers(0, 12)))
        kind = draw(st.sampled_from(["replace", "repeat", "cut"]))
        if kind == "cut":
            del content[at : at + draw(PLACES) % 200]
        else:
            content[at:end] = draw(PIECES) if kind == "replace" else content[at:end] * 3
    return bytes(content)


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_is_read_or_refused(name: str) -> None:
    examples = corpus(name)
    assert examples
    for content in examples:
        attempt(TARGETS[name].read, content)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.timeout(0)
def test_whatever_comes_is_read_or_refused(name: str) -> None:
    read, examples = TARGETS[name].read, corpus(name)
    end = time.monotonic() + SECONDS
    content = st.one_of(damaged(examples), st.binary(max_size=300))

    def once(number: int) -> None:
        @seed(number)
        @settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(content)
        def check(some: bytes) -> None:
            try:
                attempt(read, some)
            except BaseException:
                breaking.append(some)
                raise

        breaking: list[bytes] = []
        try:
            check()
        except BaseException:
            smallest = min(breaking, key=len)
            (CORPUS / name / hashlib.sha256(smallest).hexdigest()[:16]).write_bytes(smallest)
            raise

    number = 0 if SECONDS < 60 else time.time_ns() % (1 << 32)
    while time.monotonic() < end:
        once(number)
        number += 1
