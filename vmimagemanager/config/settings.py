"""The settings themselves: which keys there are, their values and their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from vmimagemanager.config import schema
from vmimagemanager.config.schema import Spot
from vmimagemanager.errors import StateError
from vmimagemanager.records import Record
from vmimagemanager.units import Size, format_duration

DEFAULT_RAM = Size(512 << 20)
SMALLEST_DISK, LARGEST_DISK = Size(1 << 20), Size(16 << 40)


class Moment(StrEnum):
    """When in a box's life a hook runs."""

    AFTER_DEFINE = "after-define"
    AFTER_UP = "after-up"
    BEFORE_SNAPSHOT = "before-snapshot"
    AFTER_SNAPSHOT = "after-snapshot"
    AFTER_RESTORE = "after-restore"
    BEFORE_DOWN = "before-down"


class Place(StrEnum):
    """Where a hook runs."""

    GUEST = "guest"
    HOST = "host"


class Engine(StrEnum):
    """How a snapshot is kept, the best first."""

    LIVE = "live"
    SAVED = "saved"
    DISK = "disk"


class Channel(StrEnum):
    """What a guest is asked through, to prove that it is up and what it is."""

    AGENT = "agent"
    SSH = "ssh"
    NONE = "none"


class Firmware(StrEnum):
    """What a guest is started by."""

    BIOS = "bios"
    UEFI = "uefi"


class Accelerator(StrEnum):
    """What runs the guest's instructions."""

    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """A script file of the host or a command (exactly one of them) that is run at a moment of a box's life."""

    moment: Moment
    where: Place = Place.GUEST
    script: Path | None = None
    command: tuple[str, ...] = ()
    timeout: timedelta = timedelta(minutes=1)

    def to_record(self) -> Record:
        """Return the hook as a configuration file would hold it, its path absolute."""
        return _to_record(self, HOOK_KEYS)


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxSettings:
    """All that can be asked for about one box; frozen in its record when it is defined.

    Without a ``user``, the box has that of its image.
    """

    image: str | None = None
    description: str | None = None
    ram: Size = DEFAULT_RAM
    cpus: int = 1
    network: str = "user"
    user: str | None = None
    channel: Channel = Channel.AGENT
    disks: tuple[Size, ...] = ()
    firmware: Firmware = Firmware.BIOS
    tpm: bool = False
    engines: tuple[Engine, ...] = tuple(Engine)
    xml: Path | None = None
    xslt: Path | None = None
    boot_timeout: timedelta = timedelta(minutes=2)
    down_timeout: timedelta = timedelta(seconds=30)
    ssh_timeout: timedelta = timedelta(seconds=30)
    inserts: tuple[str, ...] = ()
    hooks: tuple[Hook, ...] = ()

    def to_record(self) -> Record:
        """Return the settings as a configuration file would hold them, without what is not set, paths absolute."""
        return _to_record(self, BOX_KEYS)

    @classmethod
    def from_record(cls, record: Mapping[str, object], *, source: str) -> BoxSettings:
        """Read what `to_record` returned; what is missing gets its default, and keys of an older program are left out.

        Raises StateError that names ``source`` and the key when the record is damaged.
        """
        spot = Spot(prefix=f"In the record '{source}', ", folder=Path("/"), error=StateError)
        known = {key: value for key, value in record.items() if key in BOX_KEYS}
        return cls(**arguments(schema.read_table(known, BOX_KEYS, spot)))


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSettings:
    """What holds for all boxes: which libvirt, which state directory, how guests run, how long to wait for a lease."""

    uri: str
    state_dir: Path
    accelerator: Accelerator = Accelerator.AUTO
    lease_wait: timedelta = timedelta(minutes=1)


def _hook(table: Mapping[str, object], spot: Spot) -> Hook:
    values = schema.read_table(table, HOOK_KEYS, spot)
    if "moment" not in values:
        raise spot.error(
            f"{spot.prefix}'{spot.key}' has no 'moment': expected one of {schema.listed(Moment)}.", hint=spot.hint
        )
    if ("script" in values) == ("command" in values):
        raise spot.error(f"{spot.prefix}'{spot.key}' needs either 'script' or 'command'.", hint=spot.hint)
    return Hook(**arguments(values))


HOOK_KEYS: schema.Keys = {
    "moment": schema.choice(Moment),
    "where": schema.choice(Place),
    "script": schema.path,
    "command": schema.argv,
    "timeout": schema.duration,
}

BOX_KEYS: schema.Keys = {
    "image": schema.image,
    "description": schema.line,
    "ram": schema.size(Size(64 << 20), Size(16 << 40)),
    "cpus": schema.integer(1, 64),
    "network": schema.network,
    "user": schema.user,
    "channel": schema.choice(Channel),
    "disks": schema.sizes(SMALLEST_DISK, LARGEST_DISK),
    "firmware": schema.choice(Firmware),
    "tpm": schema.switch,
    "engines": schema.choices(Engine),
    "xml": schema.path,
    "xslt": schema.path,
    "boot-timeout": schema.duration,
    "down-timeout": schema.duration,
    "ssh-timeout": schema.duration,
    "inserts": schema.inserts,
    "hooks": schema.tables(_hook, Hook),
}

HOST_KEYS: schema.Keys = {
    "uri": schema.uri,
    "state-dir": schema.path,
    "accelerator": schema.choice(Accelerator),
    "lease-wait": schema.duration_or_zero,
}


def attribute(key: str) -> str:
    """Return the attribute that holds a key of a file: 'boot-timeout' is ``boot_timeout``."""
    return key.replace("-", "_")


def arguments(values: Mapping[str, object]) -> dict[str, Any]:
    """Return values that were read as keyword arguments; each key's parser has seen to the type."""
    return {attribute(key): value for key, value in values.items()}


def plain(value: object) -> Any:  # noqa: ANN401 - TOML values are of any type
    """Return a value as TOML and JSON hold it."""
    match value:
        case timedelta():
            return format_duration(value)
        case Hook():
            return value.to_record()
        case tuple():
            return [plain(entry) for entry in value]
        case Size() | Path() | StrEnum():
            return str(value)
        case _:
            return value


def _to_record(settings: Hook | BoxSettings, keys: schema.Keys) -> Record:
    values = {key: getattr(settings, attribute(key)) for key in keys}
    unset = {"command"} if isinstance(settings, Hook) and not settings.command else set()
    return {key: plain(value) for key, value in values.items() if value is not None and key not in unset}
