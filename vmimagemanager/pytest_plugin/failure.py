"""What vmimagemanager cannot do, as an error of a test."""

from __future__ import annotations

import pytest

from vmimagemanager.errors import LeaseError, VmimError


def failed(error: VmimError) -> BaseException:
    """Return what ends a phase of a test with all that a person has to know, and without a traceback of ours."""
    hint = "Wait longer with --vmim-wait, or end that process." if type(error) is LeaseError else error.hint
    text = "\n".join(part for part in (f"vmimagemanager: {error.message}", error.detail, hint) if part)
    return pytest.fail.Exception(text, pytrace=False)
