"""``--result FILE``: what came of a command, told apart from what came of us, as JSON."""

from __future__ import annotations

import base64
import json
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vmimagemanager.cli import failures
from vmimagemanager.errors import INTERRUPTED, VmimError

if TYPE_CHECKING:
    from vmimagemanager.guest.result import Result

RESULT = click.option(
    "--result",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write to FILE, as JSON, how it ended: by the command, or by us.",
)


class Verdict:
    """What will be written: how it ended, and ``more`` that is known however it ends."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.more: dict[str, Any] = {}

    def ended(self, result: Result, **more: Any) -> None:  # noqa: ANN401 - JSON
        """Keep that the command ended by itself."""
        self.values = {"outcome": "ended", **result_document(result, output=False), **more}


@contextmanager
def recorded(path: Path | None, kind: str, **about: object) -> Iterator[Verdict]:
    """Write the verdict of the block to ``path`` (None: nowhere) at its end, however that comes.

    ``about`` says of what it is the verdict.
    """
    verdict = Verdict()
    try:
        yield verdict
    except VmimError as error:
        verdict.values = {"outcome": "failed", "failure": failures.document(error)}
        raise
    except KeyboardInterrupt as error:
        verdict.values = {"outcome": "interrupted", "exit_code": getattr(error, "exit_code", INTERRUPTED)}
        raise
    except BrokenPipeError:  # whoever read our output has read enough
        verdict.values = {"outcome": "interrupted", "exit_code": 128 + signal.SIGPIPE}
        raise
    finally:
        if path is not None and verdict.values:
            _write(path, {"format": 1, "kind": kind, **about, **verdict.values, **verdict.more})


def result_document(result: Result, *, output: bool) -> dict[str, Any]:
    """Return how a command ended for JSON; output that is not text is in base64."""
    shown: dict[str, Any] = {
        "status": result.status,
        "seconds": round(result.seconds, 4),
        "channel": result.channel.value,
    }
    if output:
        shown |= _output("stdout", result.stdout) | _output("stderr", result.stderr)
    return shown


def _output(name: str, content: bytes) -> dict[str, str]:
    try:
        return {name: content.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(content).decode()}


def _write(path: Path, values: Mapping[str, Any]) -> None:
    from vmimagemanager.durable import replace_file

    replace_file(path, json.dumps(values, indent=2).encode() + b"\n")
