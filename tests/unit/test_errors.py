"""The exception tree and its exit codes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vmimagemanager import errors
from vmimagemanager.errors import VmimError


def _descendants(cls: type[VmimError]) -> Iterator[type[VmimError]]:
    for child in cls.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from _descendants(child)


EVERY: list[type[VmimError]] = [VmimError, *_descendants(VmimError)]
FAMILIES = list(errors.families())


def test_no_two_families_share_an_exit_code_or_a_name() -> None:
    assert len({cls.exit_code for cls in FAMILIES}) == len(FAMILIES)
    assert len({cls.family for cls in FAMILIES}) == len(FAMILIES)


def test_only_the_families_own_an_exit_code_and_they_come_in_its_order() -> None:
    owners: list[type[VmimError]] = [cls for cls in EVERY if "exit_code" in vars(cls)]

    assert sorted(owners, key=lambda cls: cls.exit_code) == FAMILIES
    assert all(("exit_code" in vars(cls)) == ("family" in vars(cls)) for cls in EVERY)


def test_a_failure_of_the_testbed_has_a_code_between_111_and_125_and_nothing_else_has() -> None:
    not_the_testbed = {"usage", "command", "trap"}

    for cls in FAMILIES:
        assert (111 <= cls.exit_code <= 125) == (cls.family not in not_the_testbed), cls


def test_the_fixed_codes_collide_with_no_family_but_their_own() -> None:
    codes = {cls.exit_code: cls for cls in FAMILIES}

    assert codes[errors.TRAPPED] is errors.TrappedError
    assert errors.TRAPPED_AND_FAILED not in codes
    assert errors.INTERRUPTED not in codes


@pytest.mark.parametrize("cls", EVERY, ids=lambda cls: cls.__name__)
def test_every_error_is_documented_and_named_as_one(cls: type[VmimError]) -> None:
    assert (cls.__doc__ or "").strip().endswith((".", ")"))
    assert cls.__name__.endswith("Error")


def test_an_error_reads_as_its_sentence_and_carries_hint_and_detail() -> None:
    error = errors.ImageError("There is no image 'x'.", hint="vmimagemanager image list", detail="two\nlines")

    assert (str(error), error.message) == ("There is no image 'x'.", "There is no image 'x'.")
    assert (error.hint, error.detail) == ("vmimagemanager image list", "two\nlines")


def test_a_failed_command_shows_its_standard_error_even_when_it_is_not_text() -> None:
    error = errors.CommandFailedError("It failed.", status=3, stdout=b"out", stderr=b"bad \xff byte\n")

    assert error.detail == "bad \ufffd byte"
    assert (error.status, error.stdout, error.stderr) == (3, b"out", b"bad \xff byte\n")
