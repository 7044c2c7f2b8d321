"""Checksum lists, as distributions publish them beside their images.

Three formats are read: that of coreutils (``DIGEST  NAME``), that of BSD (``SHA256 (NAME) = DIGEST``) and a digest
alone; each may be inside a message that is signed in clear text (RFC 9580, section 7), of which only what was signed
counts.  SHA-256, SHA-384 and SHA-512 are believed; weaker ones are not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from vmimagemanager.errors import ImageError

LONGEST = 4 << 20  # bytes of a list: the largest that is published has some hundred kilobytes
_BY_LENGTH = {64: "sha256", 96: "sha384", 128: "sha512"}
_WEAK = {32: "MD5", 40: "SHA-1", 56: "SHA-224"}
_COREUTILS = re.compile(r"(?P<escaped>\\?)(?P<digest>[0-9a-fA-F]+) [ *](?P<name>.+)", re.ASCII)
_BSD = re.compile(r"(?P<kind>[A-Z0-9/-]+) \((?P<name>.+)\) = (?P<digest>[0-9a-fA-F]+)", re.ASCII)
_ALONE = re.compile(r"(?P<digest>[0-9a-fA-F]+)", re.ASCII)
_SIGNED, _SIGNATURE = "-----BEGIN PGP SIGNED MESSAGE-----", "-----BEGIN PGP SIGNATURE-----"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checksum:
    """What a file's content has to come to: ``algorithm`` is a name that hashlib knows, ``digest`` in lower case."""

    algorithm: str
    digest: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.digest}"

    @classmethod
    def parse(cls, text: str) -> Checksum:
        """Parse ``sha512:HEX``; raise ValueError that says what was expected."""
        algorithm, _, digest = text.partition(":")
        digest = digest.lower()
        if not _ALONE.fullmatch(digest) or _BY_LENGTH.get(len(digest)) != algorithm:
            raise ValueError("expected sha256, sha384 or sha512, a colon and as many hexadecimal digits as it has")
        return cls(algorithm=algorithm, digest=digest)


def find(content: bytes, file: str, *, source: str) -> Checksum:
    """Return the strongest checksum of ``file`` that a list has; ``source`` is where the list comes from.

    A list of one file, which is named like that file with an ending (``disk.qcow2.sha256``), speaks of it whatever it
    calls it.  Raises ImageError when the file is not in the list, has two digests there, or a weak one alone.
    """
    entries = _entries(_text(content, source))
    found = {digest for name, digest in entries if name == file}
    if not found and len(entries) == 1 and source.rsplit("/", 1)[-1].startswith(f"{file}."):
        found = {entries[0][1]}
    strong = sorted((digest for digest in found if len(digest) in _BY_LENGTH), key=len)
    if not found:
        raise ImageError(f"The checksum list '{source}' does not have '{file}'.", hint="Is it the list of that image?")
    if not strong:
        weak = sorted({_WEAK.get(len(digest), "an unknown kind") for digest in found})
        raise ImageError(
            f"The checksum list '{source}' has no checksum of '{file}' that can be believed, but {' and '.join(weak)}.",
            hint="Expected SHA-256, SHA-384 or SHA-512.",
        )
    if len(strong) > 1 and len(strong[-1]) == len(strong[-2]):
        raise ImageError(f"The checksum list '{source}' has two different checksums of '{file}'.")
    return Checksum(algorithm=_BY_LENGTH[len(strong[-1])], digest=strong[-1])


def _text(content: bytes, source: str) -> str:
    if len(content) > LONGEST:
        raise ImageError(f"'{source}' is not a checksum list: it has more than {LONGEST >> 20} MiB.")
    try:
        return signed_part(content.decode())
    except UnicodeDecodeError as error:
        raise ImageError(f"'{source}' is not a checksum list: it is not UTF-8 text.") from error
    except ValueError as error:
        raise ImageError(f"The checksum list '{source}' is damaged: {error}.") from error


def signed_part(text: str) -> str:
    """Return what was signed of a message that is signed in clear text, and any other text as it is.

    Raises ValueError when the message has no end, or there is a second one.
    """
    lines = text.splitlines()
    if _SIGNED not in lines:
        return text
    if lines.count(_SIGNED) != 1 or lines.count(_SIGNATURE) != 1:
        raise ValueError("expected one signed message")
    start, end = lines.index(_SIGNED), lines.index(_SIGNATURE)
    if end < start or "" not in lines[start:end]:
        raise ValueError("its signed message has no beginning or no end")
    body = lines[lines.index("", start) + 1 : end]
    return "\n".join(line.removeprefix("- ") for line in body)


def _entries(text: str) -> list[tuple[str, str]]:
    """Return names and digests, in lower case, of all lines that are entries; comments and the like are not."""
    found = []
    for raw in text.split("\n"):
        line = raw.rstrip("\r")
        if (match := _BSD.fullmatch(line)) is not None:
            found.append((match["name"].removeprefix("./"), match["digest"].lower()))
        elif (match := _COREUTILS.fullmatch(line)) is not None:
            name = _unescaped(match["name"]) if match["escaped"] else match["name"]
            found.append((name.removeprefix("./"), match["digest"].lower()))
        elif (match := _ALONE.fullmatch(line.strip())) is not None:
            found.append(("", match["digest"].lower()))
    return [(name, digest) for name, digest in found if len(digest) in _BY_LENGTH or len(digest) in _WEAK]


def _unescaped(name: str) -> str:
    return re.sub(r"\\(.)", lambda match: {"n": "\n", "r": "\r"}.get(match[1], match[1]), name)
