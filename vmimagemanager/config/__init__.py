"""What was asked for: configuration files, environment and options, read into frozen dataclasses.

An explicit file (``--config``, else ``$VMIM_CONFIG``) is the only file that is read.  Without one, the project file
``vmimagemanager.toml`` of the current folder, the user's file and ``/etc/vmimagemanager.toml`` are merged key by key,
the first one that has a key deciding it.  ``vmimagemanager.toml(5)`` describes every key.
"""

from vmimagemanager.config.configuration import Configuration, Setting, load
from vmimagemanager.config.settings import (
    BOX_KEYS,
    HOOK_KEYS,
    HOST_KEYS,
    LARGEST_DISK,
    SMALLEST_DISK,
    Accelerator,
    BoxSettings,
    Channel,
    Engine,
    Firmware,
    Hook,
    HostSettings,
    Moment,
    Place,
    plain,
)

__all__ = [
    "BOX_KEYS",
    "HOOK_KEYS",
    "HOST_KEYS",
    "LARGEST_DISK",
    "SMALLEST_DISK",
    "Accelerator",
    "BoxSettings",
    "Channel",
    "Configuration",
    "Engine",
    "Firmware",
    "Hook",
    "HostSettings",
    "Moment",
    "Place",
    "Setting",
    "load",
    "plain",
]
