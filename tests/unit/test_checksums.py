"""Checksum lists as distributions publish them, and their signatures."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmimagemanager import process
from vmimagemanager.errors import ImageError
from vmimagemanager.images.checksums import LONGEST, Checksum, find, signed_part
from vmimagemanager.images.signature import Standing, verify

SIGNED = Path(__file__).parent / "signed"
SIGNER, OTHER = SIGNED / "signer.gpg", SIGNED / "other.gpg"
KEY = "5D31C66D1037F8272364D44118DCF52A2A658023"
SHA256, SHA512 = hashlib.sha256(b"abcd").hexdigest(), hashlib.sha512(b"abcd").hexdigest()
MD5 = hashlib.md5(b"abcd").hexdigest()
SOURCE = "https://example.org/images/SHA256SUMS"
HEX = st.sampled_from([SHA256, SHA512, SHA256.upper()])
NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1).filter(
    lambda name: name == name.strip() and not name.startswith(("./", "\\")) and " = " not in name and ") = " not in name
)


def listed(text: str, file: str = "disk.qcow2", source: str = SOURCE) -> str:
    return str(find(text.encode(), file, source=source))


@pytest.mark.parametrize(
    "line",
    [
        f"{SHA256}  disk.qcow2",
        f"{SHA256} *disk.qcow2",
        f"{SHA256.upper()}  ./disk.qcow2",
        f"SHA256 (disk.qcow2) = {SHA256}",
        f"# disk.qcow2: 4 bytes\r\nSHA256 (disk.qcow2) = {SHA256}\r",
        f"{SHA256}  other.qcow2\n{SHA256}  disk.qcow2\n{SHA512}  third.qcow2",
    ],
)
def test_each_format_is_read(line: str) -> None:
    assert listed(f"{line}\n") == f"sha256:{SHA256}"


def test_a_list_of_almalinux_is_read() -> None:
    text = (
        f"{SHA512[:64]}  AlmaLinux-10-GenericCloud-ext4-latest.x86_64.qcow2\n"
        f"{SHA256}  AlmaLinux-10-GenericCloud-latest.x86_64.qcow2\n"
    )
    assert listed(text, "AlmaLinux-10-GenericCloud-latest.x86_64.qcow2") == f"sha256:{SHA256}"


def test_the_strongest_checksum_of_a_file_counts() -> None:
    assert listed(f"{MD5}  disk.qcow2\n{SHA512}  disk.qcow2\n{SHA256}  disk.qcow2\n") == f"sha512:{SHA512}"


@pytest.mark.parametrize("line", [f"{SHA512}\n", f"{SHA512}  disk-3.23.4-r0.qcow2\n"])
def test_a_list_beside_one_file_speaks_of_it_whatever_it_calls_it(line: str) -> None:
    assert listed(line, source="https://example.org/disk.qcow2.sha512") == f"sha512:{SHA512}"
    with pytest.raises(ImageError, match=r"does not have 'disk\.qcow2'"):
        listed(line)
    with pytest.raises(ImageError, match="does not have"):
        listed(2 * line + f"{SHA256}  third\n", source="https://example.org/disk.qcow2.sha512")


def test_a_name_with_a_line_feed_is_read_as_coreutils_writes_it() -> None:
    assert listed(f"\\{SHA256}  a\\nb\\\\c\n", "a\nb\\c") == f"sha256:{SHA256}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "does not have"),
        ("not a list at all\n", "does not have"),
        (f"{SHA256}  dir/disk.qcow2\n", "does not have"),
        (f"{SHA256[:-1]}  disk.qcow2\n", "does not have"),
        (f"{MD5}  disk.qcow2\n", "but MD5"),
        (f"{SHA256}  disk.qcow2\n{'0' * 64}  disk.qcow2\n", "two different"),
        ("-----BEGIN PGP SIGNED MESSAGE-----\n\n" + f"{SHA256}  disk.qcow2\n", "one signed message"),
        ("-----BEGIN PGP SIGNATURE-----\n-----BEGIN PGP SIGNED MESSAGE-----\n\n", "no beginning or no end"),
    ],
)
def test_what_a_list_does_not_say_is_not_believed(text: str, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        listed(text)


def test_a_list_that_is_too_long_or_no_text_is_refused() -> None:
    with pytest.raises(ImageError, match="more than 4 MiB"):
        find(b"\n" * (LONGEST + 1), "disk", source=SOURCE)
    with pytest.raises(ImageError, match="not UTF-8"):
        find(b"\xff\xfe", "disk", source=SOURCE)


def test_only_what_is_signed_in_clear_text_counts() -> None:
    text = (SIGNED / "CHECKSUM").read_text()
    assert signed_part(text) == (SIGNED / "SHA256SUMS").read_text().removesuffix("\n")
    assert listed(text) == f"sha256:{SHA256}"
    evil = hashlib.sha256(b"evil").hexdigest()
    for forged in (f"{evil}  evil.qcow2\n{text}", f"{text}{evil}  evil.qcow2\n"):
        with pytest.raises(ImageError, match="does not have"):
            listed(forged, "evil.qcow2")


@given(st.binary(max_size=400))
def test_any_bytes_are_a_list_or_an_image_error(content: bytes) -> None:
    try:
        find(content, "disk", source=SOURCE)
    except ImageError:
        return


@given(st.dictionaries(NAMES, HEX, min_size=1, max_size=5), st.booleans())
def test_what_is_written_in_either_format_is_read_back(entries: dict[str, str], bsd: bool) -> None:
    kinds = {64: "SHA256", 128: "SHA512"}
    lines = [
        f"{kinds[len(digest)]} ({name}) = {digest}" if bsd else f"{digest}  {name}" for name, digest in entries.items()
    ]
    for name, digest in entries.items():
        assert find("\n".join(lines).encode(), name, source=SOURCE).digest == digest.lower()


def test_a_checksum_is_parsed_as_it_is_printed() -> None:
    assert str(Checksum.parse(f"sha512:{SHA512.upper()}")) == f"sha512:{SHA512}"
    for text in ("", SHA256, f"md5:{MD5}", f"sha512:{SHA256}", f"sha256:{SHA256} "):
        with pytest.raises(ValueError, match="expected sha256"):
            Checksum.parse(text)


# -- signatures ----------------------------------------------------------------------------------------------------

signed = pytest.mark.skipif(process.find("gpgv") is None, reason="gpgv is not installed")


@signed
@pytest.mark.parametrize("keyring", [SIGNER, SIGNED / "signer.asc"])
@pytest.mark.parametrize("signature", ["SHA256SUMS.gpg", "SHA256SUMS.asc", None])
def test_a_good_signature_is_good(keyring: Path, signature: str | None) -> None:
    content = (SIGNED / ("CHECKSUM" if signature is None else "SHA256SUMS")).read_bytes()
    detached = None if signature is None else (SIGNED / signature).read_bytes()
    for key in ("", KEY, f"{KEY[:20].lower()} {KEY[20:]}"):
        verdict = verify(content, detached, keyrings=[SIGNED / "missing.gpg", OTHER, keyring], key=key)
        assert (verdict.standing, verdict.key) == (Standing.GOOD, KEY)


@signed
def test_a_list_that_was_changed_is_refused() -> None:
    content, signature = (SIGNED / "SHA256SUMS").read_bytes(), (SIGNED / "SHA256SUMS.gpg").read_bytes()
    with pytest.raises(ImageError, match="is not good"):
        verify(content.replace(b"88d4", b"88d5"), signature, keyrings=[SIGNER])
    with pytest.raises(ImageError, match="is not good"):
        verify((SIGNED / "CHECKSUM").read_bytes().replace(b"88d4", b"88d5"), None, keyrings=[SIGNER])
    with pytest.raises(ImageError, match="is not good"):
        verify(content, b"no signature", keyrings=[SIGNER])


@signed
def test_a_signature_of_another_key_is_refused() -> None:
    content, signature = (SIGNED / "SHA256SUMS").read_bytes(), (SIGNED / "SHA256SUMS.gpg").read_bytes()
    with pytest.raises(ImageError, match="is not good"):
        verify(content, signature, keyrings=[OTHER])
    with pytest.raises(ImageError, match="and not by"):
        verify(content, signature, keyrings=[SIGNER], key=40 * "A")


def test_what_cannot_be_verified_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    content, signature = (SIGNED / "SHA256SUMS").read_bytes(), (SIGNED / "SHA256SUMS.gpg").read_bytes()
    assert verify(content, None, keyrings=[SIGNER]).standing is Standing.UNSIGNED
    absent = verify(content, signature, keyrings=[SIGNED / "missing.gpg"])
    assert absent.standing is Standing.UNVERIFIED
    assert "missing.gpg" in absent.reason
    monkeypatch.setattr(process, "find", lambda _: None)
    assert verify(content, signature, keyrings=[SIGNER]).reason == "The program 'gpgv' is not installed."


@signed
def test_a_damaged_keyring_is_an_error(tmp_path: Path) -> None:
    ring = tmp_path / "ring.asc"
    ring.write_text("-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n!\n-----END PGP PUBLIC KEY BLOCK-----\n")
    with pytest.raises(ImageError, match="keyring"):
        verify((SIGNED / "CHECKSUM").read_bytes(), None, keyrings=[ring])
