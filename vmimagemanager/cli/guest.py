"""run, script, put, get, ssh, console."""

from __future__ import annotations

import shlex
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmimagemanager.cli import screen
from vmimagemanager.cli.invocation import Invocation
from vmimagemanager.cli.streams import Streams
from vmimagemanager.cli.values import BOX, DURATION
from vmimagemanager.cli.verb import guest_verb, verb
from vmimagemanager.cli.verdicts import RESULT, recorded, result_document

if TYPE_CHECKING:
    from vmimagemanager.guest.result import Result

TIMEOUT = click.option("--timeout", "limit", type=DURATION, help="End the command after this time.")


@guest_verb("run", documents=True)
@click.argument("box", type=BOX)
@TIMEOUT
@RESULT
@click.option("-n", "--no-stdin", is_flag=True, help="Give the command nothing on standard input.")
@click.pass_obj
def run(
    invocation: Invocation,
    box: str,
    words: tuple[str, ...],
    *,
    limit: timedelta | None,
    result: Path | None,
    no_stdin: bool,
) -> int:
    """Run a command in the guest; its exit status becomes ours.

    Each word arrives in the guest as it is; for a pipe or a variable, run a shell: run web -- sh -c 'ls | wc -l'.
    Standard input, output and error are those of the command, byte for byte. As with ssh, all of our standard input
    goes to the command, whether it reads it or not: in a loop that reads its own list, use -n.

    With --json the output is in the document instead.
    """
    with (
        recorded(result, "run", box=box, command=words) as verdict,
        invocation.open() as manager,
        manager.box(box) as held,
    ):
        ended = Streams(capture=invocation.json).run(held, words, limit=limit, no_stdin=no_stdin)
        verdict.ended(ended)
    return _told(invocation, "run", box, ended)


@verb("script", documents=True)
@click.argument("box", type=BOX)
@click.argument("file", metavar="FILE|-")
@TIMEOUT
@RESULT
@click.pass_obj
def script(invocation: Invocation, box: str, file: str, *, limit: timedelta | None, result: Path | None) -> int:
    """Run a script in the guest, from a file of the host or with '-' from standard input.

    It is run by what its first line names, or else by sh. Its exit status becomes ours.
    """
    text = _script_text(file)
    with (
        recorded(result, "script", box=box, command=[file]) as verdict,
        invocation.open() as manager,
        manager.box(box) as held,
    ):
        streams = Streams(capture=invocation.json)
        ended = held.script(text, limit=limit, check=False, stdout=streams.stdout, stderr=streams.stderr)
        verdict.ended(ended)
    return _told(invocation, "script", box, ended)


@verb("put", documents=True)
@click.argument("box", type=BOX)
@click.argument("source", type=click.Path())
@click.argument("target")
@click.pass_obj
def put(invocation: Invocation, box: str, source: str, target: str) -> None:
    """Copy a file or a folder of the host into the guest: to a new path, or into an existing folder."""
    with invocation.open() as manager, manager.box(box) as held:
        _tell_copied(invocation, "put", box, held.put(source, target))


@verb("get", documents=True)
@click.argument("box", type=BOX)
@click.argument("source")
@click.argument("target", type=click.Path())
@click.pass_obj
def get(invocation: Invocation, box: str, source: str, target: str) -> None:
    """Copy a file or a folder out of the guest: to a new path, or into an existing folder."""
    with invocation.open() as manager, manager.box(box) as held:
        _tell_copied(invocation, "get", box, held.get(source, target))


@guest_verb("ssh", optional=True)
@click.argument("box", type=BOX)
@click.option("-t", "--terminal", is_flag=True, help="Give the command a terminal, as top or an editor needs.")
@click.pass_obj
def ssh(invocation: Invocation, box: str, words: tuple[str, ...], *, terminal: bool) -> int:
    """Log in to the guest with OpenSSH's client, or run one command with it.

    The exit status is ssh's: that of the command, or 255. The box is not leased meanwhile: others may snapshot or
    restore it, which ends the session.
    """
    from vmimagemanager import process

    with invocation.open() as manager:
        argv = list(manager.box(box).ssh_command())
    if terminal:
        argv.insert(1, "-tt")
    return _status(process.attached([*argv, *([shlex.join(words)] if words else [])]))


@verb("console")
@click.argument("box", type=BOX)
@click.pass_obj
def console(invocation: Invocation, box: str) -> int:
    """Connect this terminal to the guest's serial console, from the first to the last breath. Leave it with ^]."""
    from vmimagemanager import process

    with invocation.open() as manager:
        argv = manager.box(box).console_command()
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError(f"A console needs a terminal: 'vmimagemanager logs --console {box}' prints it.")
    if not invocation.quiet:
        screen.note(f"The console of '{box}'; leave it with ^]")
    return _status(process.attached(argv))


def _script_text(file: str) -> str:
    from vmimagemanager.errors import UsageError
    from vmimagemanager.names import quoted

    try:
        content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return content.decode()
    except OSError as error:
        raise UsageError(f"The script {quoted(file)} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"The script {quoted(file)} is not UTF-8 text.") from error


def _told(invocation: Invocation, kind: str, box: str, ended: Result) -> int:
    if invocation.json:
        screen.emit(kind, {"box": box, **result_document(ended, output=True)})
    return ended.status


def _tell_copied(invocation: Invocation, kind: str, box: str, copied: int) -> None:
    from vmimagemanager.units import Size

    if invocation.json:
        screen.emit(kind, {"box": box, "bytes": copied})
    if invocation.verbose:
        screen.note(f"{box}: copied {Size(copied).human()}")


def _status(status: int) -> int:
    return status if status >= 0 else 128 - status
