"""Trees of XML: parsed safely, and built element by element.

Foreign input is parsed without entities, without a document type and without the network.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lxml import etree

from vmimagemanager.errors import ConfigError

if TYPE_CHECKING:
    Element = etree._Element


def read_file(path: Path) -> bytes:
    """Return a user's file; raise ConfigError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be read: {error.strerror}.") from error


def parse(text: str | bytes, *, source: str) -> Element:
    """Parse a document; raise ConfigError that names ``source`` when it is not XML or has entities."""
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, dtd_validation=False, remove_blank_text=True
    )
    try:
        root = etree.fromstring(text, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise ConfigError(f"{source} is not XML: {error}.") from error
    if root.getroottree().docinfo.internalDTD is not None or any(True for _ in root.iter(etree.Entity)):
        raise ConfigError(f"{source} has a document type or entities, which are refused: expected plain elements.")
    return root


def element(tag: str, text: str | None = None, **attributes: str) -> Element:
    made = etree.Element(tag, attrib=attributes)
    made.text = text
    return made


def child(parent: Element, tag: str, text: str | None = None, **attributes: str) -> Element:
    """Append a new element to ``parent`` and return it."""
    made = element(tag, text, **attributes)
    parent.append(made)
    return made


def replace(parent: Element, tag: str, text: str | None) -> None:
    """Put one element with ``text`` in the place of all children named ``tag``; none when ``text`` is None."""
    for old in parent.findall(tag):
        parent.remove(old)
    if text is not None:
        child(parent, tag, text)
