"""pool, acquire."""

from __future__ import annotations

import sys

import click

from vmimagemanager.cli import screen
from vmimagemanager.cli.invocation import Invocation
from vmimagemanager.cli.values import SNAPSHOT
from vmimagemanager.cli.verb import verb
from vmimagemanager.deadline import Stopwatch
from vmimagemanager.names import Address


@verb("pool")
@click.argument("address", metavar="BOX@SNAPSHOT", type=SNAPSHOT)
@click.option("--size", metavar="N", type=click.IntRange(min=1), default=2, show_default=True, help="How many spares.")
@click.option("--overcommit", is_flag=True, help="Even if they could need more memory than there is.")
@click.pass_obj
def pool(invocation: Invocation, address: Address, *, size: int, overcommit: bool) -> None:
    """Keep paused clones of a live snapshot ready for 'acquire', until ^C or SIGTERM.

    For each that is taken a new one is made. At the end those that nobody took are removed. There is one pool of a
    snapshot at a time.
    """

    def tell(line: str) -> None:
        invocation.say(line)
        sys.stdout.flush()

    with (
        invocation.open() as manager,
        manager.pool(str(address), size=size, overcommit=overcommit, notice=tell) as held,
    ):
        try:
            held.serve()
        except KeyboardInterrupt:
            tell(f"{address}: removing the spares")


@verb("acquire", documents=True)
@click.argument("address", metavar="BOX@SNAPSHOT", type=SNAPSHOT)
@click.pass_obj
def acquire(invocation: Invocation, address: Address) -> None:
    """Take a running clone of a snapshot from its pool, and print its name.

    Its guest is proven, and its clock is right. It runs until it is undefined. When no spare is ready, --wait says how
    long to wait for one.
    """
    watch = Stopwatch()
    with invocation.open() as manager, manager.spare(str(address)) as spare:
        spare.keep()
        taken = watch.total
        ssh = spare.show().ssh
    if invocation.json:
        shown = None if ssh is None else {"host": ssh[0], "port": ssh[1]}
        screen.emit("acquire", {"address": str(address), "name": spare.name, "seconds": round(taken, 4), "ssh": shown})
    else:
        screen.say(spare.name)
