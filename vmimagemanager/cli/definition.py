"""define, define --update, adopt, undefine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from vmimagemanager.cli import screen
from vmimagemanager.cli.invocation import Invocation
from vmimagemanager.cli.life import BOXES, YES
from vmimagemanager.cli.several import Task, for_each
from vmimagemanager.cli.values import BOX, IMAGE
from vmimagemanager.cli.verb import verb
from vmimagemanager.report import deeds

if TYPE_CHECKING:
    from vmimagemanager.box import Box
    from vmimagemanager.config import BoxSettings
    from vmimagemanager.manager import Manager

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

_OF_ALL: tuple[Decorator, ...] = (
    click.option("--description", metavar="TEXT", help="A line for people, which 'show' prints."),
    click.option("--user", metavar="NAME", help="Who commands run as in the guest; by default the image's user."),
    click.option("--channel", metavar="KIND", help="What proves the guest: 'agent', 'ssh' or 'none'."),
    click.option("--engines", metavar="LIST", help="The snapshot engines that may be used: live,saved,disk."),
    click.option("--xslt", metavar="FILE", help="A stylesheet that is applied to the domain's XML."),
    click.option("--boot-timeout", metavar="DURATION", help="How long 'up' waits for the guest."),
    click.option("--down-timeout", metavar="DURATION", help="How long 'down' waits before it powers off."),
    click.option("--ssh-timeout", metavar="DURATION", help="How long to wait for the guest's SSH server."),
    click.option("--inserts", metavar="LIST", help="Named inserts that the guest gets after each start and restore."),
)
_OF_NEW: tuple[Decorator, ...] = (
    click.option("--image", metavar="NAME", type=IMAGE, help="The image that the box starts from."),
    click.option("--ram", metavar="SIZE", help="The guest's memory, such as 512M or 2G."),
    click.option("--cpus", metavar="N", type=int, help="The guest's processors."),
    click.option("--network", metavar="NET", help="'user', 'none', or 'libvirt:NAME'."),
    click.option("--disk", "disks", metavar="SIZE", multiple=True, help="An empty disk more; repeatable."),
    click.option("--firmware", metavar="KIND", help="What the guest is started by: 'bios' or 'uefi'."),
    click.option("--tpm/--no-tpm", default=None, help="Give the guest a software TPM."),
    click.option("--xml", metavar="FILE", help="Your own libvirt XML to start from."),
)


def _options(*decorators: Decorator) -> Decorator:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


@verb("define", documents=True)
@click.argument("box", type=BOX)
@click.option("--update", is_flag=True, help="Change an existing box.")
@_options(*_OF_NEW, *_OF_ALL)
@click.pass_obj
def define(invocation: Invocation, /, box: str, *, update: bool, **options: Any) -> None:  # noqa: ANN401 - click's values
    """Make a new box, switched off.

    Options win over the configuration's [box.NAME], which wins over [defaults]. What comes of them is kept in the box's
    record from then on.

    With --update an existing box is changed: to what the options say; or, without options, to what the configuration
    files say now. A running guest gets the changes at its next start, a new image at the next reset.
    """
    given = _given(options)
    with invocation.open() as manager:
        if update:
            held = manager.box(box)
            changed = held.update(_updated(manager, held, given))
            if invocation.json:
                screen.emit("update", {"box": box, **deeds.changed_document(changed)})
            invocation.say(*deeds.changed_lines(box, changed))
            return
        made = manager.define(box, manager.configuration.box(box, given))
        _tell_defined(invocation, "define", made)


@verb("adopt", documents=True)
@click.argument("box", type=BOX)
@_options(*_OF_ALL)
@click.pass_obj
def adopt(invocation: Invocation, /, box: str, **options: Any) -> None:  # noqa: ANN401 - click's values
    """Make a box of the existing libvirt domain of that name, which has to be off.

    Its disks become the read-only bases of the box and are not written to any more. 'undefine' gives the domain its own
    definition back.
    """
    with invocation.open() as manager:
        made = manager.define(box, manager.configuration.box(box, _given(options)), adopt=True)
        _tell_defined(invocation, "adopt", made)


@verb("undefine", documents=True)
@BOXES
@click.option("--force", is_flag=True, help="Also boxes that run.")
@YES
@click.pass_obj
def undefine(invocation: Invocation, boxes: tuple[str, ...], *, force: bool, yes: bool) -> int:
    """Remove boxes with their disks, keys and snapshots, clones before what they stand on.

    An adopted domain gets its own definition back.
    """
    with invocation.open() as manager:
        names = manager.clones_first(dict.fromkeys(boxes))
    invocation.sure(f"Remove {', '.join(names)} with disks and snapshots?", yes=yes)

    def deed(box: Box) -> bool:
        box.undefine(force=force)
        return True

    return for_each(
        invocation,
        "undefine",
        [Task(title=name, box=name, deed=deed, row=row) for name, row in names.items()],
        lines=lambda title, _, taken: [f"{title}: removed in {deeds.seconds(taken)}"],
        document=lambda _: {},
    )


def _given(options: dict[str, Any]) -> dict[str, Any]:
    given = {name.replace("_", "-"): value for name, value in options.items() if value not in (None, ())}
    for key in {"engines", "inserts"} & given.keys():
        given[key] = [word.strip() for word in given[key].split(",") if word.strip()]
    return given


def _updated(manager: Manager, box: Box, given: dict[str, Any]) -> BoxSettings:
    """Return the settings of a box with the options alone changed, or without options with what files say now.

    Configuration files cannot know which of a box's values came from an option when it was defined.
    """
    from vmimagemanager.config.configuration import BUILT_IN

    explained = manager.configuration.explain(box.name, given)
    wanted: dict[str, Any] = {
        key.replace("-", "_"): setting.value
        for key, setting in explained.items()
        if (key in given if given else setting.origin != BUILT_IN)
    }
    settings: BoxSettings = replace(box.show().settings, **wanted)
    return settings


def _tell_defined(invocation: Invocation, kind: str, box: Box) -> None:
    from vmimagemanager.report import boxes as report

    status = box.show()
    if invocation.json:
        screen.emit(kind, {"box": report.document(status)})
    origin = f"from {status.image}" if status.image else "from the domain"
    size = f"{status.settings.ram}, {status.settings.cpus} cpu" + ("s" if status.settings.cpus > 1 else "")
    invocation.say(f"{status.name}: defined {origin}, {size}, {status.accelerator}")
    if invocation.verbose:
        invocation.say(f"  {status.accelerator}, because {status.accelerator_reason}")
