"""The catalogue of cloud images that others publish: where they are, and where their checksums are.

``catalog.toml`` beside this module has the well-known ones.  ``/etc/vmimagemanager/catalog.toml`` and the user's own
file add entries and take the places of those with the same names.  vmimagemanager-catalog.toml(5) describes the keys.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from vmimagemanager import records
from vmimagemanager.config import Firmware, schema
from vmimagemanager.config.schema import Spot
from vmimagemanager.durable import translate_os_errors
from vmimagemanager.errors import ConfigError, ImageError, StateError
from vmimagemanager.images import seed
from vmimagemanager.images.checksums import Checksum
from vmimagemanager.images.imports import Import, Signed
from vmimagemanager.names import is_name, quoted

FILE = "catalog.toml"
PACKAGED = Path(__file__).with_name(FILE)
SYSTEM = Path("/etc/vmimagemanager") / FILE
INLINE = "inline"  # a checksum list that is signed in clear text
HINT = "'man vmimagemanager-catalog.toml' describes every key."
_URL = re.compile(r"https?://[!-~]+", re.ASCII)
_FINGERPRINT = re.compile(r"[0-9A-F]{40}|[0-9A-F]{64}")
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,40}", re.ASCII)


class Kind(StrEnum):
    """The format of an image's file."""

    QCOW2 = "qcow2"
    RAW = "raw"


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudImage:
    """One entry of the catalogue.

    In ``url`` stands ``{arch}`` for what ``architectures`` maps an architecture to; ``checksums`` and ``signature`` may
    have ``{url}``, too.  ``key`` is the fingerprint of who signs, and ``keyrings`` are files of the host that may hold
    it.  ``source`` is the page that the entry was compared with on the day ``checked``, which is None when nobody has.
    ``origin`` is the file that the entry was read from.
    """

    name: str
    title: str
    user: str
    url: str
    source: str
    origin: Path
    kind: Kind = Kind.QCOW2
    firmware: Firmware = Firmware.BIOS
    checksums: str = ""
    signature: str = ""
    key: str = ""
    keyrings: tuple[Path, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict, hash=False)
    architectures: Mapping[str, str] = field(default_factory=lambda: {"x86_64": "x86_64"}, hash=False)
    checked: date | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """What is to be fetched for one architecture; ``checksums`` and ``signature`` are empty where there are none.

    ``digest`` is what the entry itself says of the content, and ``signature`` is `INLINE` for a list that is signed in
    clear text.
    """

    url: str
    checksums: str
    signature: str
    digest: Checksum | None
    kind: Kind
    user: str


def catalog() -> dict[str, CloudImage]:
    """Return all entries by their names, sorted; the user's win over the machine's, and those over the packaged ones.

    Raises ConfigError that names file, key and what was expected.
    """
    found: dict[str, CloudImage] = {}
    for path in (PACKAGED, SYSTEM, _of_user()):
        found |= read(path)
    return dict(sorted(found.items()))


def entry(name: str) -> CloudImage:
    """Return the entry of this name; raise ImageError that names the nearest."""
    known = catalog()
    found = known.get(name)
    if found is None:
        near = difflib.get_close_matches(name, known, n=1)
        raise ImageError(
            f"The catalogue has no cloud image '{name}'." + (f"  Did you mean '{near[0]}'?" if near else ""),
            hint="'vmimagemanager image catalog' lists them.",
        )
    return found


def search(entries: Iterable[CloudImage], words: Sequence[str]) -> list[CloudImage]:
    """Return the entries that have all words somewhere in name, title or user, in any case."""
    wanted = [word.lower() for word in words]
    return [one for one in entries if all(word in f"{one.name} {one.title} {one.user}".lower() for word in wanted)]


def resolve(image: CloudImage, architecture: str = "x86_64") -> Download:
    """Return what is to be fetched; raise ImageError when the image does not exist for the architecture."""
    arch = image.architectures.get(architecture)
    if arch is None:
        raise ImageError(
            f"The cloud image '{image.name}' does not exist for {architecture}.",
            hint=f"It exists for {', '.join(image.architectures)}.",
        )
    url = image.url.replace("{arch}", arch)
    beside = (text.replace("{url}", url).replace("{arch}", arch) for text in (image.checksums, image.signature))
    checksums, signature = beside
    digest = image.digests.get(architecture)
    return Download(
        url=url,
        checksums=checksums,
        signature=signature,
        digest=None if digest is None else Checksum.parse(digest),
        kind=image.kind,
        user=image.user,
    )


def to_import(image: CloudImage, architecture: str = "x86_64") -> tuple[str, Import]:
    """Return the address of an image and how it is taken in: checked, for boxes that get a seed.

    Raises ImageError when it does not exist for the architecture.
    """
    found = resolve(image, architecture)
    signed = None
    if found.signature:
        address = None if found.signature == INLINE else found.signature
        signed = Signed(signature=address, key=image.key, keyrings=image.keyrings)
    return found.url, Import(
        format=image.kind.value,
        digests={} if found.digest is None else {found.digest.algorithm: found.digest.digest},
        checksums=found.checksums or None,
        signed=signed,
        firmware=image.firmware.value,
        user=found.user,
        seed=seed.NOCLOUD,
        description=image.title,
    )


def read(path: Path) -> dict[str, CloudImage]:
    """Return the entries of one file; one that does not exist has none.  Raises ConfigError."""
    if not path.is_file():
        return {}
    spot = Spot(prefix=f"In '{path}', ", folder=path.parent, hint=HINT)
    with translate_os_errors("read", path):
        content = path.read_bytes()
    try:
        table = records.parse(content.decode(), source=str(path))
    except UnicodeDecodeError as error:
        raise ConfigError(f"'{path}' is not TOML: it is not UTF-8 text.") from error
    except StateError as error:
        raise ConfigError(error.message) from error
    images = schema.read_table(table, {"image": schema.table}, spot).get("image", {})
    assert isinstance(images, Mapping)
    return {name: _entry(name, value, spot.child("image"), path) for name, value in images.items()}


def _entry(name: str, value: object, spot: Spot, origin: Path) -> CloudImage:
    if not is_name(name) or name != name.lower():
        raise spot.error(f"{spot.prefix}{quoted(name)} is not the name of an image.", hint=HINT)
    here = spot.child(name)
    values: dict[str, Any] = schema.read_table(value, KEYS, here)
    for key in ("url", "user", "source"):
        if key not in values:
            raise here.error(f"{here.prefix}'{here.key}' has no '{key}'.", hint=HINT)
    unknown = sorted({*values.get("digests", {})} - {*values.get("architectures", {"x86_64": ""})})
    if unknown:
        raise here.error(
            f"{here.prefix}'{here.key}.digests' has '{unknown[0]}', which is none of its architectures.", hint=HINT
        )
    return CloudImage(**{"name": name, "title": name, "origin": origin, **values})


def _of_user() -> Path:
    import platformdirs

    return platformdirs.user_config_path("vmimagemanager") / FILE


# -- values --------------------------------------------------------------------------------------------------------


def _address(*placeholders: str, words: tuple[str, ...] = ()) -> schema.Parser:
    """Return the parser of an http(s) address that may have these placeholders, or of one of these words."""

    def parse(value: object, spot: Spot) -> str:
        text = value if isinstance(value, str) else ""
        bare = text.replace("{url}", "https://x", 1) if text.startswith("{url}") and "{url}" in placeholders else text
        bare = bare.replace("{arch}", "x") if "{arch}" in placeholders else bare
        if text in words or (_URL.fullmatch(bare) and not set(bare) & set("{}")):
            return text
        known = f", in which {' and '.join(placeholders)} may stand" if placeholders else ""
        raise spot.unexpected(value, f"an address that begins with http:// or https://{known}")

    return parse


def _day(value: object, spot: Spot) -> date:
    if not isinstance(value, date) or isinstance(value, datetime):
        raise spot.unexpected(value, "a day without quotes, such as 2026-11-23")
    return value


def _fingerprint(value: object, spot: Spot) -> str:
    text = value.replace(" ", "").upper() if isinstance(value, str) else ""
    if not _FINGERPRINT.fullmatch(text):
        raise spot.unexpected(value, "the fingerprint of an OpenPGP key: 40 hexadecimal digits")
    return text


def _keyrings(value: object, spot: Spot) -> tuple[Path, ...]:
    if not isinstance(value, list):
        raise spot.unexpected(value, "a list of files in quotes")
    return tuple(schema.path(one, spot.entry(number)) for number, one in enumerate(value, 1))


def _architectures(value: object, spot: Spot) -> dict[str, str]:
    found = dict(schema.table(value, spot))
    if not found:
        raise spot.unexpected(value, "at least one architecture")
    for key, word in found.items():
        if not _WORD.fullmatch(key) or not isinstance(word, str) or not _WORD.fullmatch(word):
            raise spot.child(key).unexpected(word, "what the publisher calls the architecture, such as 'amd64'")
    return {key: str(word) for key, word in found.items()}


def _digests(value: object, spot: Spot) -> dict[str, str]:
    found = {}
    for key, text in schema.table(value, spot).items():
        try:
            found[key] = str(Checksum.parse(text if isinstance(text, str) else ""))
        except ValueError as error:
            raise spot.child(key).unexpected(text, str(error).removeprefix("expected ")) from error
    return found


KEYS: schema.Keys = {
    "title": schema.line,
    "url": _address("{arch}"),
    "user": schema.user,
    "source": _address(),
    "checked": _day,
    "kind": schema.choice(Kind),
    "firmware": schema.choice(Firmware),
    "architectures": _architectures,
    "checksums": _address("{url}", "{arch}"),
    "digests": _digests,
    "signature": _address("{url}", "{arch}", words=(INLINE,)),
    "key": _fingerprint,
    "keyrings": _keyrings,
}
