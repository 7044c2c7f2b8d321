"""OpenPGP signatures of checksum lists, as far as this host can tell: by gpgv, and by keys that somebody installed.

No key is fetched: one that came from where the image comes from would prove nothing.  So where no keyring is here, a
signature is *unverified*, which is said and is no error.  Where one is, a signature of no key in it is an error.
"""

from __future__ import annotations

import base64
import binascii
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path

from vmimagemanager import process
from vmimagemanager.durable import translate_os_errors
from vmimagemanager.errors import ImageError

_LIMIT = timedelta(seconds=30)
_ARMOUR = re.compile(
    rb"-----BEGIN PGP (?:PUBLIC KEY BLOCK|SIGNATURE)-----\r?\n(?:[^\r\n:]+:[^\r\n]*\r?\n)*\r?\n([A-Za-z0-9+/=\s]+?)"
    rb"(?:\r?\n=[A-Za-z0-9+/]{4}\s*)?-----END PGP"
)


class Standing(StrEnum):
    """What is known of a checksum list."""

    GOOD = "good"
    UNVERIFIED = "unverified"
    UNSIGNED = "unsigned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a list is signed: by the key with which fingerprint, or why nobody can say, as a whole sentence."""

    standing: Standing
    key: str = ""
    reason: str = ""


def verify(
    content: bytes, signature: bytes | None, *, keyrings: Sequence[Path], key: str = "", source: str = "the list"
) -> Verdict:
    """Say whether ``content`` is signed, by ``signature`` or, without one, in clear text itself.

    The signer's key has to be in one of the ``keyrings`` that exist, which may be in ASCII armour, and to be (or to
    belong to) the one with the fingerprint ``key`` when that is given.  Raises ImageError when there is a keyring, and
    the signature is not a good one of that key.
    """
    if signature is None and not content.startswith(b"-----BEGIN PGP SIGNED MESSAGE-----"):
        return Verdict(standing=Standing.UNSIGNED, reason=f"'{source}' is not signed.")
    here = [path for path in keyrings if path.is_file()]
    if not here:
        wanted = " or ".join(f"'{path}'" for path in keyrings)
        reason = f"there is no {wanted}" if wanted else "no keyring is named"
        reason = f"The signer's key is not on this host: {reason}."
        return Verdict(standing=Standing.UNVERIFIED, reason=reason)
    gpgv = process.find("gpgv")
    if gpgv is None:
        return Verdict(standing=Standing.UNVERIFIED, reason="The program 'gpgv' is not installed.")
    with tempfile.TemporaryDirectory(prefix="vmimagemanager-") as folder:
        own = Path(folder)
        argv: list[str | Path] = [gpgv, "--homedir", own, "--status-fd", "1"]
        with translate_os_errors("write", own):
            for number, path in enumerate(here):
                ring = own / f"{number}.gpg"
                ring.write_bytes(_binary(path.read_bytes(), path))
                argv += ["--keyring", ring]
            (own / "content").write_bytes(content)
            if signature is not None:
                (own / "signature").write_bytes(signature)
                argv.append(own / "signature")
        argv += [own / "content"] if signature is not None else ["--output", own / "signed", own / "content"]
        finished = process.run(argv, limit=_LIMIT, check=False)
    return _judged(finished, key.replace(" ", "").upper(), source)


def _judged(finished: process.Finished, key: str, source: str) -> Verdict:
    """Read what gpgv wrote: https://git.gnupg.org/cgi-bin/gitweb.cgi?p=gnupg.git;a=blob;f=doc/DETAILS."""
    lines = [line.split()[1:] for line in finished.stdout.decode("utf-8", "replace").splitlines()]
    words = [line for line in lines if line]
    valid = [{line[1], line[-1]} for line in words if line[0] == "VALIDSIG" and len(line) > 10]
    bad = any(line[0] in {"BADSIG", "EXPKEYSIG", "REVKEYSIG", "EXPSIG", "NODATA"} for line in words)
    if finished.status == 0 and valid and not bad:
        signers = set().union(*valid)
        if key and key not in signers:
            raise ImageError(
                f"'{source}' is signed by the key {' '.join(sorted(signers))}, and not by {key}.",
                hint="Do not use what it speaks of.",
            )
        return Verdict(standing=Standing.GOOD, key=key or min(signers))
    detail = finished.stderr.decode("utf-8", "replace").strip()
    raise ImageError(f"The signature of '{source}' is not good.", detail=detail, hint="Do not use what it speaks of.")


def _binary(content: bytes, path: Path) -> bytes:
    """Return a keyring as gpgv reads it: without ASCII armour."""
    if b"-----BEGIN PGP" not in content:
        return content
    try:
        keys = [base64.b64decode(b"".join(match[1].split()), validate=True) for match in _ARMOUR.finditer(content)]
    except binascii.Error as error:
        raise ImageError(f"The keyring '{path}' is damaged: its ASCII armour is not whole.") from error
    if not keys:
        raise ImageError(f"The keyring '{path}' holds no public key.")
    return b"".join(keys)
