"""JUnit XML: what continuous integration reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from junitparser import TestCase


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One case: it passed, unless it says ``failed``, ``broken`` (nothing is said about what is tested) or ``skipped``.

    ``kind`` is the sort of a failure, ``text`` all that is to be said.
    """

    name: str
    group: str
    seconds: float | None = None
    failed: str = ""
    broken: str = ""
    skipped: str = ""
    kind: str = ""
    text: str = ""


def document(suites: Mapping[str, Iterable[Case]]) -> bytes:
    """Return suites of cases, each with its name, as JUnit XML."""
    from junitparser import JUnitXml, TestSuite

    made = JUnitXml()
    for name, cases in suites.items():
        suite = TestSuite(name)
        for case in cases:
            suite.add_testcase(_made(case))
        made.add_testsuite(suite)
    return bytes(made.tostring())  # type: ignore[no-untyped-call]  # junitparser gives it no types


def _made(case: Case) -> TestCase:
    from junitparser import Error, Failure, Skipped, TestCase

    made = TestCase(_clean(case.name), case.group, case.seconds)
    if case.failed or case.broken:
        kind = Failure if case.failed else Error
        result = kind(_clean(case.failed or case.broken), case.kind)
        result.text = _clean(case.text)
        made.result = [result]
    elif case.skipped:
        made.result = [Skipped(_clean(case.skipped))]
    elif case.text:
        made.system_out = _clean(case.text)
    return made


def _clean(text: str) -> str:
    """Escape what XML cannot hold: what guests print, and how their files are called, is theirs."""
    return "".join(
        character
        if character.isprintable() or character in "\n\t"
        else character.encode("unicode_escape", "backslashreplace").decode("ascii")
        for character in text
    )
