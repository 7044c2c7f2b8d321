"""The program: which verbs there are, and where.  A verb is imported when it is used; --help needs none of them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import click

from vmimagemanager.cli.invocation import json_option, shared_options
from vmimagemanager.cli.verb import refuse_unknown


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the program's help, and where the verb is: a module of cli/ and its attribute."""

    name: str
    module: str
    attribute: str
    help: str


SECTIONS = {
    "Images": (
        Entry("image", "everyimage", "image", "Build, list, compare, export, push, pull and remove base images."),
        Entry("store", "storing", "store", "Make the disk of a box an image, or archive its files."),
        Entry("restore-image", "files", "restore_image", "Put what was stored back into a box."),
    ),
    "Boxes": (
        Entry("define", "definition", "define", "Make a new box, or change one with --update."),
        Entry("update", "storing", "update", "Let boxes go to the newest generations of their images."),
        Entry("adopt", "definition", "adopt", "Make a box of an existing libvirt domain."),
        Entry("undefine", "definition", "undefine", "Remove boxes with their disks and snapshots."),
        Entry("up", "life", "up", "Start boxes and wait until they are ready."),
        Entry("down", "life", "down", "Shut boxes down cleanly."),
        Entry("kill", "life", "kill", "Power boxes off at once."),
        Entry("reset", "life", "reset", "Throw disk and memory away: back to the image."),
        Entry("list", "overview", "list_boxes", "List the boxes."),
        Entry("show", "overview", "show", "Show all that is known about a box."),
        Entry("logs", "overview", "logs", "Show what was done to a box, or its console."),
    ),
    "Snapshots": (
        Entry("snapshot", "snapshots", "snapshot", "Take snapshots; a running box goes on running."),
        Entry("restore", "snapshots", "restore", "Put boxes back to snapshots, running and proven."),
        Entry("snapshots", "snapshots", "snapshots", "List the snapshots of boxes."),
        Entry("fork", "fork", "fork", "Make running clones of a snapshot, which share its memory."),
        Entry("snapshot-export", "archive", "snapshot_export", "Write a snapshot into an archive, for another host."),
        Entry("snapshot-import", "archive", "snapshot_import", "Make a box of such an archive."),
        Entry("pool", "pool", "pool", "Keep paused clones of a snapshot ready to be taken."),
        Entry("acquire", "pool", "acquire", "Take a clone from a pool: running, proven, at once."),
        Entry("snapshot-remove", "snapshots", "snapshot_remove", "Remove snapshots."),
    ),
    "Guests": (
        Entry("run", "guest", "run", "Run a command in the guest."),
        Entry("script", "guest", "script", "Run a script in the guest."),
        Entry("put", "guest", "put", "Copy a file or a folder into the guest."),
        Entry("get", "guest", "get", "Copy a file or a folder out of the guest."),
        Entry("insert", "files", "insert", "Lay folders, files, archives and named inserts into a box."),
        Entry("extract", "files", "extract", "Copy files and folders out of a box, whether it runs or not."),
        Entry("ssh", "guest", "ssh", "Log in to the guest."),
        Entry("console", "guest", "console", "Connect to the guest's serial console."),
        Entry("inventory", "inventory", "inventory", "List what is in a guest: packages, and what none accounts for."),
        Entry("trap", "trap", "trap", "Run a command, and trap what is new and nobody accepted."),
    ),
    "Nightly runs": (
        Entry("nightly", "nightly", "nightly", "Run the steps of a job on a clean box; list, show and remove runs."),
    ),
    "Sharing": (
        Entry("lock", "holds", "lock", "Keep boxes for yourself across commands."),
        Entry("unlock", "holds", "unlock", "Give boxes back."),
    ),
    "This host": (
        Entry("config", "host", "config", "Show the configuration and where it comes from."),
        Entry("doctor", "host", "doctor", "Examine this host, and say what to mend."),
        Entry("fsck", "care", "fsck", "Examine boxes and snapshots, and put right what was interrupted."),
        Entry("gc", "care", "gc", "List what nobody needs any more, or remove it."),
        Entry("completion", "host", "completion", "Print the completion script of a shell."),
    ),
}
_VERBS = {entry.name: entry for entries in SECTIONS.values() for entry in entries}


class Program(click.Group):
    """The root of all verbs."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        entry = _VERBS.get(cmd_name)
        if entry is None:
            return None
        found = getattr(import_module(f"vmimagemanager.cli.{entry.module}"), entry.attribute)
        assert isinstance(found, click.Command)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        refuse_unknown(ctx, args[0], _VERBS, self)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        width = max(map(len, _VERBS))
        for title, entries in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(entry.name.ljust(width), entry.help) for entry in entries])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """Complete verbs from the table alone."""
        from click.shell_completion import CompletionItem

        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        return [
            CompletionItem(entry.name, help=entry.help)
            for entry in _VERBS.values()
            if entry.name.startswith(incomplete)
        ]


def _print_version(context: click.Context, parameter: click.Parameter, value: bool) -> None:  # noqa: ARG001
    if not value or context.resilient_parsing:
        return
    import vmimagemanager

    click.echo(f"vmimagemanager {vmimagemanager.__version__}")
    context.exit()


PROGRAM = Program(
    name="vmimagemanager",
    help="Define test virtual machines, snapshot them while they run, put them back in half a second, and trap new "
    "dependencies.",
    epilog="These options may also stand after the verb. 'vmimagemanager VERB --help' explains a verb, "
    "'man vmimagemanager' everything.",
    no_args_is_help=True,
    subcommand_metavar="VERB [ARGUMENT]...",
    params=[
        *shared_options(hidden=False),
        json_option(hidden=False),
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_print_version,
            help="Print the version and end.",
        ),
    ],
)
