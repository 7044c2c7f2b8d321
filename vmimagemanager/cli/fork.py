"""fork."""

from __future__ import annotations

import click

from vmimagemanager.cli import screen
from vmimagemanager.cli.invocation import Invocation
from vmimagemanager.cli.values import BOX, SNAPSHOT
from vmimagemanager.cli.verb import verb
from vmimagemanager.deadline import Stopwatch
from vmimagemanager.names import Address


@verb("fork", documents=True)
@click.argument("address", metavar="BOX@SNAPSHOT", type=SNAPSHOT)
@click.option("-n", "--count", metavar="N", type=click.IntRange(min=1), required=True, help="How many clones.")
@click.option("--prefix", metavar="TEXT", type=BOX, help="What their names begin with, before a number. [BOX-]")
@click.option("--new-host-keys", is_flag=True, help="Give each an SSH host key of its own.")
@click.option("--overcommit", is_flag=True, help="Even if they could need more memory than there is.")
@click.option("--lan", is_flag=True, help="Give them a network in common, on this host only.")
@click.pass_obj
def fork(
    invocation: Invocation,
    address: Address,
    *,
    count: int,
    prefix: str | None,
    new_host_keys: bool,
    overcommit: bool,
    lan: bool,
) -> None:
    """Make running clones of a live snapshot, which share its memory.

    Each is proven to be the snapshot, and a box of its own, with its own name, host name, machine-id, generation id and
    SSH port. It runs until it is undefined; until then, the snapshot and its box cannot be removed.
    """
    from vmimagemanager.report import forks as report

    watch = Stopwatch()
    with invocation.open() as manager, manager.box(address.box) as box:
        clones = box.fork(
            address.snapshot, count=count, prefix=prefix, new_host_keys=new_host_keys, overcommit=overcommit, lan=lan
        )
        ports = {clone.name: clone.show().ssh for clone in clones}
        clones.keep()
    if invocation.json:
        documents = [report.document(forked, ports[forked.name]) for forked in clones.made]
        screen.emit("fork", {"address": str(address), "seconds": round(watch.total, 4), "clones": documents})
    else:
        verbose = bool(invocation.verbose)
        invocation.say(*report.lines(address, clones.made, ports, watch.total, verbose=verbose))
