"""One run of the command line: the options that hold for every verb, and what they open."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vmimagemanager.cli import screen
from vmimagemanager.cli.values import DURATION
from vmimagemanager.errors import INTERRUPTED

if TYPE_CHECKING:
    from vmimagemanager.config import Configuration
    from vmimagemanager.manager import Manager


@dataclass(slots=True)
class Invocation:
    """The options that hold for every verb; they may stand before the verb and after it.

    ``about`` is what a verb has to say in JSON beside an error.
    """

    config: str | None = None
    uri: str | None = None
    state_dir: str | None = None
    wait: timedelta | None = None
    no_hooks: bool = False
    verbose: int = 0
    quiet: bool = False
    debug: bool = False
    json: bool = False
    about: dict[str, Any] = field(default_factory=dict)

    def configuration(self) -> Configuration:
        """Read the configuration."""
        from vmimagemanager.config import load

        options = {"uri": self.uri, "state-dir": self.state_dir}
        return load(None if self.config is None else Path(self.config), host_options=options)

    def open(self, configuration: Configuration | None = None) -> Manager:
        """Open the state directory."""
        from vmimagemanager.manager import Manager

        manager = Manager.of(configuration if configuration is not None else self.configuration())
        manager.hooks = not self.no_hooks
        if self.wait is not None:
            manager.wait = self.wait
        if not self.quiet:
            manager.notice = screen.note
        return manager

    def say(self, *lines: str) -> None:
        """Print what was done, unless --quiet or a JSON document takes its place."""
        if not self.quiet and not self.json:
            screen.say(*lines)

    def sure(self, question: str, *, yes: bool) -> None:
        """Ask on a terminal before something is lost; end the run when the answer is no."""
        if yes or not screen.is_interactive():
            return
        if not click.confirm(screen.safe(question), err=True):
            screen.note("Nothing was done.")
            raise click.exceptions.Exit(INTERRUPTED)


def shared_options(*, hidden: bool) -> list[click.Parameter]:
    """Return the options of every verb; ``hidden`` for those that are accepted after the verb, too."""

    def option(*names: str, **settings: Any) -> click.Option:  # noqa: ANN401 - click's own settings
        return click.Option(list(names), expose_value=False, callback=_kept, hidden=hidden, **settings)

    return [
        option("--config", metavar="FILE", help="Read this configuration file alone."),
        option("--uri", metavar="URI", help="The libvirt to use, such as qemu:///system."),
        option("--state-dir", metavar="DIR", help="Where images, boxes and snapshots are kept."),
        option("--wait", type=DURATION, help="How long to wait for a box that somebody else uses; 0s: not at all."),
        option("--no-hooks", is_flag=True, help="Run no hooks."),
        option(
            "-v", "--verbose", count=True, help="Say on standard error what is done and how long it takes; -vv: more."
        ),
        option("-q", "--quiet", is_flag=True, help="Print no results of deeds, notices and warnings."),
        option("--debug", is_flag=True, help="Show where in the program an error came from."),
    ]


def json_option(*, hidden: bool) -> click.Option:
    """Return the option ``--json``, for the verbs that print a document."""
    return click.Option(
        ["--json"], is_flag=True, expose_value=False, callback=_kept, hidden=hidden, help="Print one JSON document."
    )


def invocation_of(context: click.Context) -> Invocation:
    """Return the run that a context belongs to."""
    return context.ensure_object(Invocation)


def _kept(context: click.Context, parameter: click.Parameter, value: Any) -> None:  # noqa: ANN401
    invocation = invocation_of(context)
    assert parameter.name is not None
    if parameter.name == "verbose":
        invocation.verbose += value or 0
    elif value:
        setattr(invocation, parameter.name, value)
    elif value is not None and parameter.name == "wait":  # --wait 0s
        invocation.wait = value
    elif value == "" and isinstance(value, str):
        raise click.BadParameter("expected something that is not empty.", ctx=context, param=parameter)
