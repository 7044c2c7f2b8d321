"""What all verbs have in common: shared options after the verb, ``--json``, and the guest's command after ``--``."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any

import click

from vmimagemanager.cli.invocation import invocation_of, json_option, shared_options


class Verb(click.Command):
    """A verb; ``documents`` says that it can print a JSON document."""

    def __init__(self, *args: Any, documents: bool = False, **settings: Any) -> None:  # noqa: ANN401 - click's own
        super().__init__(*args, **settings)
        self.documents = documents
        self.params += [*shared_options(hidden=True), json_option(hidden=not documents)]

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401
        from vmimagemanager.cli import logs

        invocation = invocation_of(ctx)
        if invocation.json and not self.documents:
            raise click.UsageError(f"The verb '{self.name}' prints no JSON document.", ctx)
        logs.configure(invocation)
        return super().invoke(ctx)


class GuestVerb(Verb):
    """A verb that ends with ``-- COMMAND [ARGUMENT...]`` for the guest; ``optional`` ones also do without.

    What stands after the first ``--`` is the guest's, word by word: it is never read as an option of ours.  The
    callback gets it as ``words``.
    """

    def __init__(self, *args: Any, optional: bool = False, **settings: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **settings)
        self.optional = optional

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        words = "-- COMMAND [ARGUMENT]..."
        return [*super().collect_usage_pieces(ctx), f"[{words}]" if self.optional else words]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own, words = args, []
        if "--" in args:
            at = args.index("--")
            own, words = args[:at], args[at + 1 :]
        try:
            rest = super().parse_args(ctx, own)
        except click.UsageError as error:
            if words:
                raise
            message = error.format_message().rstrip(".")
            raise click.UsageError(f"{message}. The guest's command begins after '--'.", ctx) from error
        if not words and not self.optional and not ctx.resilient_parsing:
            ctx.fail("The guest's command is missing: it begins after '--'.")
        ctx.params["words"] = tuple(words)
        return rest


class VerbGroup(click.Group):
    """A verb that has verbs of its own, such as ``image``."""

    def __init__(self, *args: Any, **settings: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **{"subcommand_metavar": "VERB [ARGUMENT]...", **settings})
        self.params += [*shared_options(hidden=True), json_option(hidden=True)]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        refuse_unknown(ctx, args[0], self.list_commands(ctx), self)
        return super().resolve_command(ctx, args)


def refuse_unknown(context: click.Context, word: str, known: Iterable[str], group: click.Group) -> None:
    """Refuse a verb that does not exist, naming the nearest one."""
    known = list(known)
    if context.resilient_parsing or word.startswith("-") or group.get_command(context, word) is not None:
        return
    near = difflib.get_close_matches(word, known, n=1)
    context.fail(f"There is no verb {word!r}." + (f" Did you mean '{near[0]}'?" if near else ""))


def verb(name: str, *, documents: bool = False) -> Callable[[Callable[..., int | None]], click.Command]:
    """Make a function the verb ``name``; it returns an exit code, or None for 0."""
    return click.command(name, cls=Verb, documents=documents)


def guest_verb(
    name: str, *, documents: bool = False, optional: bool = False
) -> Callable[[Callable[..., int | None]], click.Command]:
    """Make a function the verb ``name`` that takes a command for the guest as ``words``."""
    return click.command(name, cls=GuestVerb, documents=documents, optional=optional)


def verb_of(group: click.Group, name: str, *, documents: bool = False) -> Callable[..., click.Command]:
    """Make a function the verb ``name`` of ``group``."""
    return group.command(name, cls=Verb, documents=documents)
