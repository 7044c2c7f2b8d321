"""The examination: every check, in the order in which one thing needs the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from vmimagemanager.boxes.record import BoxRecord
from vmimagemanager.config import Configuration
from vmimagemanager.doctor import acceleration, daemons, host, paths, reaper, state, tools
from vmimagemanager.doctor.check import Check, failure
from vmimagemanager.errors import VmimError

Examine = Callable[[], Iterable[Check]]


def examine(configuration: Configuration) -> tuple[Check, ...]:
    """Look at everything that boxes need on this host; what is found is returned, never raised.

    It takes a second or two.  Nothing is changed, but for the accelerator's cache, and for what libvirt itself does
    when it is connected to: an ordinary user's session starts its own daemon, which ends after a while.
    """
    settings = configuration.host
    system = is_system(settings.uri)
    found = daemons.connect(settings.uri)
    owner = found.host.qemu_owner if found.host is not None and system else None
    boxes: list[BoxRecord] = []
    examined: list[tuple[str, Examine]] = [
        ("libvirt", lambda: daemons.libvirt_checks(settings.uri, found, system=system)),
        ("QEMU", lambda: daemons.qemu_checks(found)),
        ("accelerator", lambda: acceleration.checks(settings, owner)),
        ("groups", lambda: host.group_checks(settings.uri, system=system)),
        ("state directory", lambda: paths.checks(settings.state_dir, owner, shared=system)),
        ("records", lambda: state.checks(settings.state_dir, boxes, shared=system)),
        ("networks", lambda: daemons.network_checks(settings.uri, boxes)),
        ("security driver", lambda: daemons.security_checks(found, system=system)),
        ("disk", lambda: host.disk_checks(settings.state_dir)),
        ("memory", host.memory_checks),
        ("user namespaces", tools.namespace_checks),
        ("reaper", lambda: reaper.checks(system=system)),
        ("tools", tools.checks),
    ]
    return tuple(check for name, ask in examined for check in _safely(name, ask))


def is_system(uri: str) -> bool:
    """Say whether a URI names the host's own libvirt, which is shared and runs QEMU as a user of its own."""
    return uri.split("?", maxsplit=1)[0].endswith("/system")


def _safely(name: str, ask: Examine) -> list[Check]:
    found: list[Check] = []
    try:
        found.extend(ask())  # what was found before an error stays
    except VmimError as error:
        found.append(failure(name, error.message, error.hint))
    except (OSError, ValueError, LookupError) as error:
        # A folder can vanish while it is looked at, a table of /proc be hidden, a user have no name.
        found.append(failure(name, f"This could not be examined: {error}."))
    return found


__all__ = ["examine", "is_system"]
