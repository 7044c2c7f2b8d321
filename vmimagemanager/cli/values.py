"""The values of options and arguments: how they are read, and how a shell completes them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vmimagemanager import names
from vmimagemanager.units import Size, parse_duration

if TYPE_CHECKING:
    from datetime import timedelta

    from click.shell_completion import CompletionItem

    from vmimagemanager.state import StateDirectory

    _DurationType = click.ParamType[timedelta]
    _TextType = click.ParamType[str]
    _AddressType = click.ParamType[names.Address]
    _SizeType = click.ParamType[Size]
else:  # before click 8.5 a type of values is not generic
    _DurationType = _TextType = _AddressType = _SizeType = click.ParamType


class _Duration(_DurationType):
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:  # noqa: ANN401
        try:
            return parse_duration(value)
        except ValueError:
            self.fail(f"{names.quoted(value)} is not a duration: {_EXPECTED}.", param, ctx)


class _Box(_TextType):
    name = "box"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ANN401, ARG002
        return names.box_name(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        state = _state(ctx)
        return _items(state.box_names() if state is not None else (), incomplete)


class _Snapshot(_AddressType):
    """The address of a snapshot; ``new`` ones are completed to the box and an '@' only."""

    name = "snapshot"

    def __init__(self, *, new: bool = False) -> None:
        self._new = new

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> names.Address:  # noqa: ANN401, ARG002
        return value if isinstance(value, names.Address) else names.Address.parse(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        state = _state(ctx)
        if state is None:
            return []
        if self._new:
            return _items((f"{box}@" for box in state.box_names()), incomplete)
        known = (
            f"{box}@{folder.name}"
            for box in state.box_names()
            for folder in _folders(state.box(box).snapshots)
            if (folder / "manifest.toml").is_file()
        )
        return _items(known, incomplete)


class _BoxOrSnapshot(_TextType):
    """A box, or one of its snapshots; completed to both."""

    name = "box or snapshot"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ANN401, ARG002
        return str(names.Address.parse(value)) if "@" in value else names.box_name(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        boxes = BOX.shell_complete(ctx, param, incomplete)
        return [*boxes, *(SNAPSHOT.shell_complete(ctx, param, incomplete) if "@" in incomplete else ())]


class _Image(_TextType):
    """The name of an image, or with its generation; ``buildable`` ones have a recipe."""

    name = "image"

    def __init__(self, *, buildable: bool = False) -> None:
        self._buildable = buildable

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ANN401, ARG002
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        if self._buildable:
            from vmimagemanager.images.catalogue import RECIPES

            return _items(RECIPES, incomplete)
        state = _state(ctx)
        return _items((folder.name for folder in _folders(state.path / "images")), incomplete) if state else []


class _Size(_SizeType):
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Size:  # noqa: ANN401
        try:
            return Size.parse(value)
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


class _Format(_TextType):
    """The format of something that is imported; a tar may be called by its compression, which is recognised."""

    name = "format"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ANN401
        from vmimagemanager.images.intake import FORMATS

        found = "tar" if re.fullmatch(r"tar\.(gz|xz|zst)", value) else str(value)
        if found not in FORMATS:
            self.fail(f"{names.quoted(value)} is not a format that is taken in: {', '.join(FORMATS)}.", param, ctx)
        return found

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        from vmimagemanager.images.intake import FORMATS

        return _items(FORMATS, incomplete)


class _Run(_TextType):
    """A run that is kept, ``JOB/RUN``, or the job alone; completed to jobs, and to runs when there is a slash."""

    name = "run"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ANN401, ARG002
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        state = _state(ctx)
        if state is None:
            return []
        job, slash, _ = incomplete.partition("/")
        if not slash:
            return _items((folder.name for folder in _folders(state.runs)), incomplete)
        return _items((f"{job}/{folder.name}" for folder in _folders(state.runs / job)), incomplete)


DURATION = _Duration()
SIZE = _Size()
FORMAT = _Format()
BOX = _Box()
JOB = RUN = _Run()
SNAPSHOT = _Snapshot()
BOX_OR_SNAPSHOT = _BoxOrSnapshot()
NEW_SNAPSHOT = _Snapshot(new=True)
IMAGE = _Image()
RECIPE = _Image(buildable=True)
_EXPECTED = "expected a number with a unit, such as 90s, 5m or 1h30m"


def _state(context: click.Context) -> StateDirectory | None:
    """Return the state directory, without making it, or None when the configuration cannot be read."""
    from vmimagemanager.cli.invocation import invocation_of
    from vmimagemanager.errors import VmimError
    from vmimagemanager.state import StateDirectory

    try:
        return StateDirectory(invocation_of(context).configuration().host.state_dir)
    except VmimError:
        return None


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []


def _items(values: Iterable[str], incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(value) for value in values if value.startswith(incomplete)]
