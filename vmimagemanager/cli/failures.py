"""How failures are told: one line that begins with our name, the lines to quote, and the next command to try."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vmimagemanager.cli import screen

if TYPE_CHECKING:
    import click

    from vmimagemanager.errors import VmimError


def tell(error: VmimError) -> None:
    """Print an error of ours on standard error; of several, each."""
    from vmimagemanager.errors import SeveralError

    if isinstance(error, SeveralError):
        for one in error.errors.values():
            tell(one)
    _print(error.message, detail=error.detail, hint=error.hint)


def tell_usage(error: click.ClickException) -> None:
    """Print an error of click's, with the help to look at."""
    message = error.format_message()
    context: click.Context | None = getattr(error, "ctx", None)
    path = context.command_path if context is not None else screen.PREFIX
    _print(message if message.endswith((".", "?", "?)")) else f"{message}.", hint=f"{path} --help")


def tell_internal(error: BaseException) -> None:
    """Print that the program itself is wrong."""
    _print(f"internal error: {type(error).__name__}: {error}; run again with --debug")


def tell_interrupted() -> None:
    _print("interrupted")


def document(error: VmimError) -> Mapping[str, Any]:
    """Return an error for JSON: its family names the exit code's class, and both stay the same in every version."""
    from vmimagemanager.errors import SeveralError

    described: dict[str, Any] = {
        "family": error.family,
        "error": type(error).__name__,
        "exit_code": error.exit_code,
        "message": error.message,
        "hint": error.hint,
        "detail": error.detail,
    }
    if isinstance(error, SeveralError):
        described["boxes"] = {name: document(one) for name, one in error.errors.items()}
    return described


def _print(message: str, *, detail: str = "", hint: str = "") -> None:
    prefix = f"{screen.PREFIX}:"
    if screen.colours(sys.stderr):
        prefix = f"\033[1;31m{prefix}\033[0m"
    lines = [screen.safe(line) for line in message.splitlines()] or [""]
    print(f"{prefix} {lines[0]}", *(f"  {line}" for line in lines[1:]), sep="\n", file=sys.stderr)
    for line in detail.splitlines():
        print(f"    {screen.safe(line)}", file=sys.stderr)
    if hint:
        print(f"  try: {screen.safe(hint)}", file=sys.stderr)
    sys.stderr.flush()
