"""One run of the program: signals, and how each ending becomes an exit code."""

from __future__ import annotations

import errno
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
from vmimagemanager.errors import INTERRUPTED, CommandFailedError, SpaceError, VmimError

HUNG_UP = 128 + signal.SIGHUP
TERMINATED = 128 + signal.SIGTERM
OUTPUT_CLOSED = 128 + signal.SIGPIPE
INTERNAL = VmimError.exit_code


class TerminatedError(KeyboardInterrupt):
    """SIGTERM came, or SIGHUP, as the terminal went away: everything is cleaned up as after ^C."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 128 + number


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code; ``arguments`` are this process's own unless they are given."""
    name = Path(sys.argv[0]).name if arguments is None else screen.PREFIX
    words = list(sys.argv[1:] if arguments is None else arguments)
    invocation = Invocation()
    instruction = os.environ.get(complete_variable(name))
    if instruction:
        from click.shell_completion import shell_complete

        return shell_complete(PROGRAM, {"obj": invocation}, name, complete_variable(name), instruction)
    _prepare_streams()
    try:
        with _termination_raises():
            code = _invoke(name, words, invocation)
            sys.stdout.flush()
            return code
    except BaseException as error:
        return _ending(error, invocation)


def complete_variable(name: str) -> str:
    """Return the environment variable by which a shell asks ``name`` for completions."""
    return f"_{name}_COMPLETE".replace("-", "_").replace(".", "_").upper()


def _invoke(name: str, words: list[str], invocation: Invocation) -> int:
    try:
        with PROGRAM.make_context(name, words, obj=invocation) as context:
            code = PROGRAM.invoke(context)
            return code if isinstance(code, int) else 0
    except click.exceptions.Exit as ending:
        return ending.exit_code
    except click.Abort:
        failures.tell_interrupted()
        return INTERRUPTED
    except click.ClickException as error:
        if words:
            failures.tell_usage(error)
        else:  # nothing was asked for: the help is the answer
            click.echo(error.format_message(), err=True)
        return error.exit_code
    except VmimError as error:
        if invocation.debug:
            _print_trace()
        if invocation.json:
            screen.emit("error", {**failures.document(error), **invocation.about})
        failures.tell(error)
        return error.status if isinstance(error, CommandFailedError) else error.exit_code


def _ending(error: BaseException, invocation: Invocation) -> int:
    if invocation.debug:
        _print_trace()
    if isinstance(error, BrokenPipeError):  # whoever read our output has read enough
        _drop_output()
        return OUTPUT_CLOSED
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:  # of the disk's own, the library makes a SpaceError
        _drop_output()
        failures.tell(SpaceError("Standard output cannot be written: the disk is full."))
        return SpaceError.exit_code
    if isinstance(error, TerminatedError):
        failures.tell_interrupted()
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        if sys.stderr.isatty():
            screen.note("")  # the terminal has printed ^C
        failures.tell_interrupted()
        return INTERRUPTED
    if isinstance(error, SystemExit):
        raise error
    failures.tell_internal(error)
    return INTERNAL


def _prepare_streams() -> None:
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # our caller has closed it
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115 - until this process ends
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")  # no guest's text and no file's name can stop a message


def _drop_output() -> None:
    # The interpreter flushes standard output at its end, and would fail once more.
    sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115


def _print_trace() -> None:
    import traceback

    traceback.print_exc()


@contextmanager
def _termination_raises() -> Iterator[None]:
    def terminate(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - what signal(2) asks for
        raise TerminatedError(number)

    previous = {
        number: signal.signal(number, terminate)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN  # nohup(1)
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
