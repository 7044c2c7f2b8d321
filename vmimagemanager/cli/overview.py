"""list, show, logs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from vmimagemanager.cli import failures, screen
from vmimagemanager.cli.invocation import Invocation
from vmimagemanager.cli.values import BOX
from vmimagemanager.cli.verb import verb
from vmimagemanager.errors import HypervisorUnreachableError, SeveralError, VmimError

if TYPE_CHECKING:
    from vmimagemanager.boxes.status import Status


@verb("list", documents=True)
@click.option("--free", is_flag=True, help="Those that nobody leases or holds, and no pool keeps.")
@click.option("--used", is_flag=True, help="Those that a process leases now.")
@click.option("--locked", is_flag=True, help="Those that are held, by 'lock'.")
@click.pass_obj
def list_boxes(invocation: Invocation, *, free: bool, used: bool, locked: bool) -> int:
    """List the boxes: their state, image, the snapshot that they stand on, and who has them.

    Several of --free, --used and --locked list what any of them names. A box that cannot be read is listed as damaged,
    and the reason is printed.
    """
    from vmimagemanager.report import boxes as report

    found: list[Status] = []
    errors: dict[str, VmimError] = {}
    with invocation.open() as manager:
        for name in manager.boxes():
            try:
                found.append(manager.box(name).show())
            except HypervisorUnreachableError:  # not this box's fault, and no other box fares better
                raise
            except VmimError as error:
                errors[name] = error

    def wanted(status: Status) -> bool:
        is_used, is_locked = status.leased_by is not None, status.held_by is not None
        return not (free or used or locked) or (free and status.free) or (used and is_used) or (locked and is_locked)

    chosen = [status for status in found if wanted(status)]
    damaged = [(name, "damaged", "-", "-", "-", "-") for name in errors]
    if invocation.json:
        broken = {name: failures.document(error) for name, error in errors.items()}
        screen.emit("list", {"boxes": [report.document(status) for status in chosen], "damaged": broken})
    elif chosen or damaged:
        screen.table(report.HEADER, sorted([*map(report.row, chosen), *damaged]))
    elif not invocation.quiet:
        screen.note("There are no such boxes." if found else "There are no boxes yet.")
    sys.stdout.flush()
    for failure in errors.values():
        failures.tell(failure)
    codes = {error.exit_code for error in errors.values()}
    return SeveralError.exit_code if len(codes) > 1 else next(iter(codes), 0)


@verb("show", documents=True)
@click.argument("box", type=BOX)
@click.pass_obj
def show(invocation: Invocation, box: str) -> None:
    """Show all that is known about a box: settings, state, who has it, how to reach it, and where it has drifted
    from the configuration."""
    from vmimagemanager.report import boxes as report

    with invocation.open() as manager:
        status = manager.box(box).show()
    if invocation.json:
        screen.emit("box", {"box": report.document(status)})
    else:
        screen.say(*report.lines(status))


@verb("logs", documents=True)
@click.argument("box", type=BOX)
@click.option("--console", is_flag=True, help="What the guest printed on its serial console.")
@click.option("--tail", metavar="N", type=click.IntRange(min=0), help="The last N lines or operations only.")
@click.pass_obj
def logs(invocation: Invocation, box: str, *, console: bool, tail: int | None) -> None:
    """Show what was done to a box: when, by whom, how it ended and how long it took; with -v each phase.

    With --console: what the guest printed on its serial console since it was started from its disk.
    """
    from vmimagemanager.report import boxes as report

    with invocation.open() as manager:
        held = manager.box(box)
        if console:
            _show_console(invocation, box, held.console_log(), tail)
            return
        operations = held.logs()
    if tail is not None:
        operations = operations[len(operations) - min(tail, len(operations)) :]
    if invocation.json:
        screen.emit("logs", {"box": box, "operations": [report.operation_document(each) for each in operations]})
    else:
        screen.say(*report.operation_lines(operations, verbose=bool(invocation.verbose)))


def _show_console(invocation: Invocation, box: str, content: bytes, tail: int | None) -> None:
    if tail is not None:
        found = content.splitlines(keepends=True)
        content = b"".join(found[len(found) - min(tail, len(found)) :])
    if invocation.json:
        screen.emit("console", {"box": box, "text": content.decode("utf-8", "replace")})
    elif sys.stdout.isatty():  # a guest must not steer the terminal
        screen.say(*(line.rstrip("\r") for line in content.decode("utf-8", "replace").split("\n")))
    else:
        sys.stdout.buffer.write(content)
