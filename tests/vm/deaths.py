"""Killing vmimagemanager before each of its steps, by `dying`, which is a program of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

PROGRAM = Path(__file__).with_name("dying.py")
KILLED = -9


@contextmanager
def dying(environment: dict[str, str], *words: str) -> Iterator[Callable[[int | str], tuple[int, str]]]:
    """Yield what runs a verb until a step, by its number or a part of its label; it returns how that ended."""
    with subprocess.Popen(
        [sys.executable, PROGRAM, environment["VMIM_STATE_DIR"], *words],
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        asked, answers = process.stdin, process.stdout

        def run(at: int | str) -> tuple[int, str]:
            asked.write(f"{at}\n")
            asked.flush()
            status, said = json.loads(answers.readline())
            return status, said

        yield run


def deaths(environment: dict[str, str], *words: str) -> Iterator[str]:
    """Run a verb, killed before its first step, its second, and so on, until it ends by itself; yield each step."""
    with dying(environment, *words) as run:
        for number in count(1):
            status, said = run(number)
            if status != KILLED:
                assert status == 0, said
                assert number > 5
                return
            yield said.splitlines()[-1]
