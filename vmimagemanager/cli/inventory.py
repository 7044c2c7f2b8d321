"""inventory."""

from __future__ import annotations

import json

import click

from vmimagemanager.cli import screen
from vmimagemanager.cli.invocation import Invocation
from vmimagemanager.cli.values import BOX_OR_SNAPSHOT
from vmimagemanager.cli.verb import verb


@verb("inventory", documents=True)
@click.argument("where", metavar="BOX[@SNAPSHOT]", type=BOX_OR_SNAPSHOT)
@click.option("--cyclonedx", "form", flag_value="cyclonedx", help="Print a CycloneDX 1.6 document.")
@click.option("--spdx", "form", flag_value="spdx", help="Print an SPDX 2.3 document.")
@click.option("--verify", is_flag=True, help="Compare every file of a package with what its package brought.")
@click.pass_obj
def inventory(invocation: Invocation, where: str, *, form: str | None, verify: bool) -> None:
    """List what is in a guest, or was in it at a snapshot: packages, and what no package accounts for.

    One line for each item, sorted, so that two inventories can be compared by diff. What the guest has no means to look
    at, or could not tell because it is off, is named on standard error. A snapshot is asked once, and always verified.
    """
    from vmimagemanager.report import inventory as report
    from vmimagemanager.report import sbom

    if form and invocation.json:
        raise click.UsageError("--json and another format exclude each other.")
    box, _, snapshot = where.partition("@")
    with invocation.open() as manager, manager.box(box) as held:
        found = held.inventory(snapshot=snapshot or None, verify=verify)
    if form:
        make = sbom.cyclonedx if form == "cyclonedx" else sbom.spdx
        print(json.dumps(make(found, name=where), indent=2))
    elif invocation.json:
        screen.emit("inventory", {"box": box, **({"snapshot": snapshot} if snapshot else {}), **report.document(found)})
    else:
        screen.say(*report.lines(found))
    if not invocation.quiet:
        screen.note(*(f"Not looked at: {kind}: {reason}." for kind, reason in sorted(found.unknown.items())))
