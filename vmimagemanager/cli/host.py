"""config show, doctor, completion."""

from __future__ import annotations

import click

from vmimagemanager.cli import screen
from vmimagemanager.cli.invocation import Invocation
from vmimagemanager.cli.values import BOX
from vmimagemanager.cli.verb import VerbGroup, verb, verb_of
from vmimagemanager.errors import HostError

PROGRAMS = ("vmimagemanager", "vmim")
_MARKS = {"ok": "green", "warning": "yellow", "failure": "red"}


@click.group("config", cls=VerbGroup)
def config() -> None:
    """The configuration: see vmimagemanager.toml(5)."""


@verb_of(config, "show", documents=True)
@click.argument("box", type=BOX, required=False)
@click.pass_obj
def show(invocation: Invocation, box: str | None) -> None:
    """Print the configuration in force, as a configuration file, and where each value came from.

    With BOX: what holds for that box.
    """
    from vmimagemanager.report import config as report

    configuration = invocation.configuration()
    if invocation.json:
        document = report.document(configuration, box)
        screen.emit("config", {key: value for key, value in document.items() if key not in {"format", "kind"}})
    else:
        screen.say(*report.lines(configuration, box))


@verb("doctor", documents=True)
@click.pass_obj
def doctor(invocation: Invocation) -> int:
    """Examine this host: libvirt, QEMU, the accelerator, permissions, space, tools.

    Each line is ok, a warning or a failure, with the command that mends it. The exit code is 124 when there is a
    failure. With -q, what is ok is left out.
    """
    from vmimagemanager.doctor import Status, examine

    checks = examine(invocation.configuration())
    failed = any(check.status is Status.FAILURE for check in checks)
    if invocation.json:
        listed = [
            {"name": check.name, "status": check.status.value, "message": check.message, "hint": check.hint}
            for check in checks
        ]
        screen.emit("doctor", {"healthy": not failed, "checks": listed})
        return HostError.exit_code if failed else 0
    for check in checks:
        if invocation.quiet and check.status is Status.OK:
            continue
        screen.say_marked(check.status.value, _MARKS[check.status.value], f"{check.name}: {check.message}")
        if check.hint:
            screen.say(f"           try: {check.hint}")
    return HostError.exit_code if failed else 0


@verb("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that teaches a shell to complete our verbs, options, boxes, snapshots and images.

    For bash: source <(vmimagemanager completion bash), in ~/.bashrc.
    """
    from click.shell_completion import get_completion_class

    from vmimagemanager.cli.program import PROGRAM
    from vmimagemanager.cli.run import complete_variable

    kind = get_completion_class(shell)
    assert kind is not None
    for name in PROGRAMS:
        click.echo(kind(PROGRAM, {}, name, complete_variable(name)).source())
