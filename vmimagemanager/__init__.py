"""Define, snapshot and restore test virtual machines in under a second, and trap new dependencies.

::

    import vmimagemanager as vmim

    with vmim.Manager.open() as manager, manager.lease("web") as box:
        box.restore("clean")
        box.run(["make", "install"])
"""

from __future__ import annotations

from importlib.metadata import version

from vmimagemanager import errors
from vmimagemanager.box import Box
from vmimagemanager.config import BoxSettings
from vmimagemanager.errors import CommandFailedError, TrappedError, VmimError
from vmimagemanager.manager import Manager

__version__ = version("vmimagemanager")
__all__ = ["Box", "BoxSettings", "CommandFailedError", "Manager", "TrappedError", "VmimError", "errors"]
