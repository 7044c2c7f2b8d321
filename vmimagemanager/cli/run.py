"""One run of the program: logging, signals, and how each ending becomes an exit code."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

from vmimagemanager.cli import failures, screen
from vmimagemanager.cli.invocation import Invocation
from vmimagemanager.cli.program import PROGRAM
from vmimagemanager.errors import INTERRUPTED, CommandFailedError, VmimError

TERMINATED = 128 + signal.SIGTERM
OUTPUT_CLOSED = 128 + signal.SIGPIPE
INTERNAL = VmimError.exit_code


class TerminatedError(KeyboardInterrupt):
    """SIGTERM came: everything is cleaned up as after ^C."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code; ``arguments`` are this process's own unless they are given."""
    name = Path(sys.argv[0]).name if arguments is None else screen.PREFIX
    words = list(sys.argv[1:] if arguments is None else arguments)
    invocation = Invocation()
    _complete(name, invocation)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    try:
        with _termination_raises():
            code = _invoke(name, words, invocation)
            sys.stdout.flush()
            return code
    except TerminatedError:
        failures.tell_interrupted()
        return TERMINATED
    except KeyboardInterrupt:
        _end_line()
        failures.tell_interrupted()
        return INTERRUPTED
    except BrokenPipeError as error:
        if invocation.debug:
            raise
        if error.filename is not None:  # not our output's
            failures.tell_internal(error)
            return INTERNAL
        _drop_output()
        return OUTPUT_CLOSED
    except Exception as error:
        if invocation.debug:
            raise
        failures.tell_internal(error)
        return INTERNAL


def _invoke(name: str, words: list[str], invocation: Invocation) -> int:
    try:
        with PROGRAM.make_context(name, words, obj=invocation) as context:
            _configure_logging_once(invocation)
            code = PROGRAM.invoke(context)
            return code if isinstance(code, int) else 0
    except click.exceptions.Exit as ending:
        return ending.exit_code
    except click.Abort:
        failures.tell_interrupted()
        return INTERRUPTED
    except click.ClickException as error:
        if not words:  # nothing was asked for: the help is the answer
            click.echo(error.format_message(), err=True)
        else:
            failures.tell_usage(error)
        return error.exit_code
    except VmimError as error:
        if invocation.debug:
            _print_trace()
        if invocation.json:
            screen.emit("error", failures.document(error))
        failures.tell(error)
        return error.status if isinstance(error, CommandFailedError) else error.exit_code
