"""Define, snapshot and restore test virtual machines in under a second, and trap new dependencies.

::

    import vmimagemanager as vmim

    with vmim.Manager.open() as manager, manager.lease("web") as box:
        box.restore("clean")
        box.run(["make", "install"])
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmimagemanager import errors
    from vmimagemanager.box import Box
    from vmimagemanager.config import BoxSettings
    from vmimagemanager.errors import CommandFailedError, TrappedError, VmimError
    from vmimagemanager.manager import Manager

    __version__: str

__all__ = ["Box", "BoxSettings", "CommandFailedError", "Manager", "TrappedError", "VmimError", "errors"]

# Imported at their first use: the command line's --help, a shell's completion and pytest's start load none of it.
_HOMES = {
    "Box": "box",
    "BoxSettings": "config",
    "CommandFailedError": "errors",
    "Manager": "manager",
    "TrappedError": "errors",
    "VmimError": "errors",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        value: object = version("vmimagemanager")
    elif name == "errors":
        from importlib import import_module

        value = import_module("vmimagemanager.errors")
    elif name in _HOMES:
        from importlib import import_module

        value = getattr(import_module(f"vmimagemanager.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module 'vmimagemanager' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
