"""SSH keys: the pair that opens a box, and the host keys that the box is known by.

Formats: a public key is a line of OpenSSH's authorized_keys(5), its binary part is RFC 4253 section 6.6, RFC 5656 and
RFC 8709; known hosts are lines of sshd(8), SSH_KNOWN_HOSTS FILE FORMAT.  A box is known by an alias and not by address
and port, which change: ``ssh -o HostKeyAlias=ALIAS``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from vmimagemanager import durable
from vmimagemanager.durable import translate_os_errors
from vmimagemanager.errors import HostKeyError, StateError

PRIVATE = "id_ed25519"
PUBLIC = "id_ed25519.pub"

_LONGEST_LINE = 8192  # an RSA key of 16384 bits takes 2800
_MOST_KEYS = 16
_SMALLEST_RSA = 1024
_ALIAS = re.compile(r"[a-z0-9][a-z0-9._+-]*")
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
_POINTS = {  # the length of an uncompressed point: 0x04 and two coordinates
    "ecdsa-sha2-nistp256": 65,
    "ecdsa-sha2-nistp384": 97,
    "ecdsa-sha2-nistp521": 133,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPair:
    """A private key in a file, and the line that lets it in."""

    private: Path
    public: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyLine:
    """A public key: its kind (``ssh-ed25519`` …), its binary form, and a comment that proves nothing."""

    kind: str
    blob: bytes
    comment: str = ""

    @property
    def fingerprint(self) -> str:
        """The key's fingerprint as OpenSSH prints it: ``SHA256:…``."""
        return "SHA256:" + base64.b64encode(hashlib.sha256(self.blob).digest()).decode().rstrip("=")

    @property
    def base64(self) -> str:
        return base64.b64encode(self.blob).decode()

    def same_key(self, other: KeyLine) -> bool:
        """Say whether both are the same key, whatever their comments."""
        return (self.kind, self.blob) == (other.kind, other.blob)

    def __str__(self) -> str:
        return f"{self.kind} {self.base64} {self.comment}".rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownHost:
    """The host keys of one box, under its alias: lower-case letters, digits, '.', '_', '+' and '-'.

    OpenSSH lowers the names in the file and not the alias that it looks for, so `host_alias` must make both.
    """

    alias: str
    keys: tuple[KeyLine, ...]

    def __post_init__(self) -> None:
        if not _ALIAS.fullmatch(self.alias):
            raise ValueError(f"{self.alias!r} cannot be the alias of a known host")
        if not self.keys:
            raise ValueError("a known host has at least one key")

    @classmethod
    def read(cls, path: Path) -> KnownHost:
        """Read a file that `write` made; raise StateError when it is missing, damaged or of several hosts."""
        with translate_os_errors("read", path):
            content = path.read_bytes()
        try:
            lines = [line.split(" ", 1) for line in content.decode().splitlines()]
            aliases = {line[0] for line in lines}
            if len(aliases) != 1:
                raise ValueError("expected the keys of one host")
            return cls(alias=aliases.pop(), keys=tuple(parse_line(line[-1]) for line in lines))
        except (ValueError, HostKeyError) as error:
            raise StateError(f"'{path}' does not hold the known keys of a host: {str(error).rstrip('.')}.") from error

    def write(self, path: Path) -> None:
        """Write the file durably, for ssh's option UserKnownHostsFile; raise SpaceError or StateError."""
        lines = [f"{self.alias} {key.kind} {key.base64}\n" for key in self.keys]
        durable.replace_file(path, "".join(lines).encode(), mode=0o600)

    def check(self, shown: KeyLine) -> None:
        """Raise HostKeyError, with both fingerprints, unless the guest has ``shown`` a key that it is known by."""
        if any(shown.same_key(key) for key in self.keys):
            return
        known = ", ".join(f"{key.kind} {key.fingerprint}" for key in self.keys)
        raise HostKeyError(
            f"The guest of '{self.alias}' showed the host key {shown.kind} {shown.fingerprint}, "
            f"and the box is known by {known}.",
            hint=f"Something else may have answered: 'vmimagemanager console {self.alias}' shows the guest itself.",
        )


def host_alias(name: str) -> str:
    """Return the alias of the box ``name``, for `KnownHost` and ssh's option HostKeyAlias."""
    return name.lower()


def generate(folder: Path, *, comment: str = "vmimagemanager") -> KeyPair:
    """Make an Ed25519 key pair without a passphrase in ``folder``, which is made, 0700, when it is missing.

    The private key (``id_ed25519``, 0600) appears whole or not at all; a kill leaves at most a public one, which the
    next call replaces.  Raises SpaceError, and StateError when there is one already: it may be all that opens a box.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if not comment.isprintable():
        raise ValueError(f"{comment!r} cannot be the comment of a key")
    durable.make_folder(folder, mode=0o700)
    private = folder / PRIVATE
    if private.exists():
        raise StateError(f"There is a private key already: '{private}'.")
    key = Ed25519PrivateKey.generate()
    content = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    line = f"{public.decode()} {comment}".rstrip()
    # The public file comes first: without its private key it opens nothing, and `load` believes the private one.
    durable.replace_file(folder / PUBLIC, f"{line}\n".encode())
    durable.replace_file(private, content, mode=0o600)
    return KeyPair(private=private, public=line)


def duplicate(source: Path, folder: Path) -> None:
    """Give ``folder``, which is made, 0700, when it is missing, the pair that `generate` made in ``source``."""
    durable.make_folder(folder, mode=0o700)
    for name, mode in ((PUBLIC, 0o644), (PRIVATE, 0o600)):
        with translate_os_errors("read", source / name):
            content = (source / name).read_bytes()
        durable.replace_file(folder / name, content, mode=mode)


def load(folder: Path) -> KeyPair:
    """Return the pair that `generate` made in ``folder``; the public line follows from the private key.

    Raises StateError when there is none, or it is damaged.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    private = folder / PRIVATE
    with translate_os_errors("read", private):
        content = private.read_bytes()
    try:
        key = serialization.load_ssh_private_key(content, password=None)
        public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise StateError(f"'{private}' is not an SSH private key without a passphrase: {error}.") from error
    return KeyPair(private=private, public=_public_line(folder / PUBLIC, public.decode()))


def parse_line(text: str | bytes) -> KeyLine:
    """Parse one public key as the guest gave it: ``ssh-ed25519 AAAA… comment``, with at most one line end.

    The guest is not trusted: raises HostKeyError, with nothing of the text in its message, unless the line is short
    and printable, and its binary part is whole and of the kind that it claims.
    """
    line = _decode(text, longest=_LONGEST_LINE).removesuffix("\n")
    if "\n" in line:
        raise _malformed("it has several lines")
    if not line.isprintable():
        raise _malformed("it holds control characters")
    words = line.split(" ", 2)
    if len(words) < 2 or not _BASE64.fullmatch(words[1]):
        raise _malformed("expected a kind, a space and a key in base64")
    try:
        blob = base64.b64decode(words[1], validate=True)
    except binascii.Error as error:
        raise _malformed("its base64 is damaged") from error
    if base64.b64encode(blob).decode() != words[1]:
        raise _malformed("its base64 is not the usual form")
    _check_blob(words[0], blob)
    return KeyLine(kind=words[0], blob=blob, comment=words[2].strip() if len(words) == 3 else "")


def parse_lines(text: str | bytes) -> tuple[KeyLine, ...]:
    """Parse the public keys of a guest, one a line, at least one and at most sixteen; raise HostKeyError otherwise."""
    lines = [line for line in _decode(text, longest=_LONGEST_LINE * _MOST_KEYS).split("\n") if line]
    if not 1 <= len(lines) <= _MOST_KEYS:
        raise _malformed(f"expected 1 to {_MOST_KEYS} keys, and there are {len(lines)}")
    return tuple(parse_line(line) for line in lines)


def _decode(text: str | bytes, *, longest: int) -> str:
    if len(text) > longest:
        raise _malformed(f"it is longer than {longest} characters")
    try:
        return text.decode() if isinstance(text, bytes) else text
    except UnicodeDecodeError as error:
        raise _malformed("it is not UTF-8 text") from error


def _check_blob(kind: str, blob: bytes) -> None:
    name, *fields = _fields(blob)
    if name != kind.encode():
        raise _malformed("its kind and its content differ")
    match kind, fields:
        case "ssh-ed25519", [key]:
            good = len(key) == 32
        case "ssh-rsa", [exponent, modulus]:
            good = _bits(modulus) >= _SMALLEST_RSA and _bits(exponent) > 1
        case _, [curve, point] if kind in _POINTS:
            good = kind.encode() == b"ecdsa-sha2-" + curve and len(point) == _POINTS[kind] and point[0] == 4
        case _:
            good = False
    if not good:
        raise _malformed("it is not a whole ed25519, ecdsa or rsa key")


def _fields(blob: bytes) -> list[bytes]:
    fields = []
    while blob:
        if len(blob) < 4:
            raise _malformed("its content ends too early")
        (length,) = struct.unpack_from(">I", blob)
        if length > len(blob) - 4:
            raise _malformed("its content ends too early")
        fields.append(blob[4 : 4 + length])
        blob = blob[4 + length :]
    return fields or [b""]


def _bits(number: bytes) -> int:
    """Return how many bits a positive mpint has, or 0 for a negative one."""
    return 0 if number[:1] >= b"\x80" else int.from_bytes(number, "big").bit_length()


def _public_line(path: Path, key: str) -> str:
    """Return the line in ``path`` if it is ``key`` with a comment; otherwise write that file anew without a comment."""
    try:
        line = path.read_text().removesuffix("\n")
    except (OSError, ValueError):
        line = ""
    if line.split(" ")[:2] == key.split(" ") and line.isprintable():
        return line
    durable.replace_file(path, f"{key}\n".encode())
    return key


def _malformed(reason: str) -> HostKeyError:
    return HostKeyError(f"The guest gave a public key that is malformed: {reason}.")
