"""SSH keys and known hosts; OpenSSH's own ssh-keygen is asked where it can be."""

from __future__ import annotations

import base64
import shutil
import struct
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmimagemanager import keys, process
from vmimagemanager.errors import GuestError, HostKeyError, StateError
from vmimagemanager.keys import KeyLine, KnownHost

needs_ssh_keygen = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")


def packed(*fields: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(field)) + field for field in fields)


def line(kind: str, blob: bytes, comment: str = "root@guest") -> str:
    return f"{kind} {base64.b64encode(blob).decode()} {comment}"


ED25519 = packed(b"ssh-ed25519", bytes(range(32)))
GOOD = line("ssh-ed25519", ED25519)


def keygen(*arguments: str | Path) -> str:
    return process.run(["ssh-keygen", *arguments]).stdout.decode().strip()


def test_a_generated_pair_is_a_private_file_for_its_owner_only_and_a_public_line(tmp_path: Path) -> None:
    pair = keys.generate(tmp_path / "keys", comment="vmimagemanager web")

    assert pair.private.stat().st_mode & 0o777 == 0o600
    assert pair.private.parent.stat().st_mode & 0o777 == 0o700
    assert pair.public.startswith("ssh-ed25519 AAAA")
    assert pair.public.endswith(" vmimagemanager web")
    assert (tmp_path / "keys" / "id_ed25519.pub").read_text() == pair.public + "\n"
    assert sorted(entry.name for entry in pair.private.parent.iterdir()) == ["id_ed25519", "id_ed25519.pub"]


@needs_ssh_keygen
def test_openssh_derives_the_same_public_key_and_fingerprint(tmp_path: Path) -> None:
    pair = keys.generate(tmp_path)

    assert pair.public.split()[:2] == keygen("-y", "-f", pair.private).split()[:2]
    size, fingerprint, *_, kind = keygen("-l", "-f", tmp_path / "id_ed25519.pub").split()
    assert (size, kind) == ("256", "(ED25519)")
    assert keys.parse_line(pair.public).fingerprint == fingerprint


def test_two_generated_pairs_differ(tmp_path: Path) -> None:
    assert keys.generate(tmp_path / "one").public != keys.generate(tmp_path / "two").public


def test_a_private_key_is_never_overwritten(tmp_path: Path) -> None:
    pair = keys.generate(tmp_path)
    before = pair.private.read_bytes()

    with pytest.raises(StateError, match="private key already"):
        keys.generate(tmp_path)

    assert pair.private.read_bytes() == before
    assert keys.load(tmp_path) == pair


def test_a_comment_of_several_lines_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="comment"):
        keys.generate(tmp_path, comment="web\nssh-ed25519 AAAA")


def test_a_loaded_pair_is_the_generated_one(tmp_path: Path) -> None:
    assert keys.generate(tmp_path, comment="a comment of words") == keys.load(tmp_path)


@pytest.mark.parametrize("damage", [None, b"", b"\xff", b"ssh-ed25519 AAAA another key\n"])
def test_the_public_file_follows_the_private_one(tmp_path: Path, damage: bytes | None) -> None:
    pair = keys.generate(tmp_path)
    public = tmp_path / "id_ed25519.pub"
    public.unlink()
    if damage is not None:
        public.write_bytes(damage)

    loaded = keys.load(tmp_path)

    assert loaded.public.split()[:2] == pair.public.split()[:2]
    assert public.read_text() == loaded.public + "\n"


@pytest.mark.parametrize("content", [None, b"", b"rubbish", b"-----BEGIN OPENSSH PRIVATE KEY-----\n"])
def test_a_missing_or_damaged_private_key_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "id_ed25519").write_bytes(content)

    with pytest.raises(StateError, match="id_ed25519"):
        keys.load(tmp_path)


@needs_ssh_keygen
def test_a_private_key_with_a_passphrase_is_refused(tmp_path: Path) -> None:
    keygen("-q", "-t", "ed25519", "-N", "secret", "-f", tmp_path / "id_ed25519")

    with pytest.raises(StateError, match="without a passphrase"):
        keys.load(tmp_path)


@needs_ssh_keygen
@pytest.mark.parametrize(
    "options",
    [
        ("-t", "ed25519"),
        ("-t", "rsa", "-b", "2048"),
        ("-t", "ecdsa", "-b", "256"),
        ("-t", "ecdsa", "-b", "384"),
        ("-t", "ecdsa", "-b", "521"),
    ],
    ids=" ".join,
)
def test_every_kind_of_host_key_that_openssh_makes_is_understood(tmp_path: Path, options: tuple[str, ...]) -> None:
    keygen("-q", *options, "-N", "", "-C", "root@guest of words", "-f", tmp_path / "key")
    text = (tmp_path / "key.pub").read_bytes()

    key = keys.parse_line(text)

    assert key.comment == "root@guest of words"
    assert str(key) + "\n" == text.decode()
    assert key.fingerprint == keygen("-l", "-f", tmp_path / "key.pub").split()[1]


def test_a_key_without_a_comment_is_understood() -> None:
    text = GOOD.removesuffix(" root@guest")

    assert keys.parse_line(text) == KeyLine(kind="ssh-ed25519", blob=ED25519)
    assert str(keys.parse_line(text + "\n")) == text


MALFORMED = {
    "empty": "",
    "only a kind": "ssh-ed25519",
    "only a line end": "\n",
    "two lines": f"{GOOD}\n{GOOD}",
    "a line after the line end": f"{GOOD}\n\n",
    "carriage return": f"{GOOD}\r\n",
    "escape sequence": f"{GOOD}\x1b]0;title\x07",
    "right-to-left override": f"{GOOD}\u202e",
    "NUL": f"{GOOD}\0",
    "tab": GOOD.replace(" ", "\t"),
    "leading space": f" {GOOD}",
    "two spaces": GOOD.replace("ssh-ed25519 ", "ssh-ed25519  "),
    "options": f"no-pty {GOOD}",
    "too long": GOOD + "x" * 9000,
    "not base64": "ssh-ed25519 AAAA!AAA",
    "base64 cut short": GOOD.replace(" root@guest", "")[:-2],
    "base64 with loose bits": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB==",
    "another kind": GOOD.replace("ssh-ed25519", "ssh-rsa"),
    "unknown kind": line("ssh-dss", packed(b"ssh-dss", b"1", b"2", b"3", b"4")),
    "certificate": line("ssh-ed25519-cert-v01@openssh.com", packed(b"ssh-ed25519-cert-v01@openssh.com", bytes(32))),
    "short key": line("ssh-ed25519", packed(b"ssh-ed25519", bytes(31))),
    "long key": line("ssh-ed25519", packed(b"ssh-ed25519", bytes(33))),
    "a field too many": line("ssh-ed25519", ED25519 + packed(b"more")),
    "loose bytes": line("ssh-ed25519", ED25519 + b"\0"),
    "a length beyond the end": line("ssh-ed25519", ED25519[:-1]),
    "a huge length": line("ssh-ed25519", b"\xff\xff\xff\xff"),
    "small rsa": line("ssh-rsa", packed(b"ssh-rsa", b"\1\0\1", b"\x7f" + bytes(63))),
    "negative rsa": line("ssh-rsa", packed(b"ssh-rsa", b"\1\0\1", b"\xff" * 256)),
    "another curve": line("ecdsa-sha2-nistp256", packed(b"ecdsa-sha2-nistp256", b"nistp384", b"\4" * 65)),
    "short point": line("ecdsa-sha2-nistp256", packed(b"ecdsa-sha2-nistp256", b"nistp256", b"\4" * 64)),
    "compressed point": line("ecdsa-sha2-nistp256", packed(b"ecdsa-sha2-nistp256", b"nistp256", b"\2" * 65)),
    "a borrowed name": line("ecdsa-sha2-ssh-ed25519", packed(b"ecdsa-sha2-ssh-ed25519", bytes(32))),
    "a lone surrogate": f"{GOOD}\ud800",
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_key_from_the_guest_is_refused_without_being_quoted(text: str) -> None:
    with pytest.raises(HostKeyError, match="malformed") as caught:
        keys.parse_line(text)

    assert isinstance(caught.value, GuestError)
    assert caught.value.message.isprintable()
    assert "AAAA" not in caught.value.message


def test_bytes_that_are_not_text_are_refused() -> None:
    with pytest.raises(HostKeyError, match="UTF-8"):
        keys.parse_line(GOOD.encode() + b"\xff")


@given(st.one_of(st.text(), st.binary(), st.text(alphabet="AQgI/+=s-hed25519 \n")))
def test_any_text_gives_a_key_or_one_kind_of_error(text: str | bytes) -> None:
    try:
        key = keys.parse_line(text)
    except HostKeyError:
        return
    assert keys.parse_line(str(key)) == key


@given(st.binary(max_size=120))
def test_any_binary_content_gives_a_key_or_one_kind_of_error(blob: bytes) -> None:
    try:
        key = keys.parse_line(line("ssh-ed25519", packed(b"ssh-ed25519") + blob))
    except HostKeyError:
        return
    assert len(blob) == 36
    assert key.comment == "root@guest"


def test_several_keys_are_parsed_one_a_line() -> None:
    other = line("ssh-ed25519", packed(b"ssh-ed25519", bytes(32)))

    assert [str(key) for key in keys.parse_lines(f"{GOOD}\n{other}\n")] == [GOOD, other]


@pytest.mark.parametrize(
    "text", ["", "\n\n", f"{GOOD}\nrubbish\n", f"{GOOD}\n" * 17, "x" * 200_000, f"{GOOD}\x0b{GOOD}"]
)
def test_no_keys_too_many_or_a_bad_one_among_them_are_refused(text: str) -> None:
    with pytest.raises(HostKeyError):
        keys.parse_lines(text)


def known(alias: str = "web") -> KnownHost:
    return KnownHost(alias=alias, keys=(keys.parse_line(GOOD),))


def test_a_known_host_survives_its_file(tmp_path: Path) -> None:
    several = KnownHost(
        alias="web", keys=(*known().keys, KeyLine(kind="ssh-ed25519", blob=packed(b"ssh-ed25519", bytes(32))))
    )
    several.write(tmp_path / "known_hosts")
    read = KnownHost.read(tmp_path / "known_hosts")

    assert read.alias == "web"
    assert [key.blob for key in read.keys] == [key.blob for key in several.keys]
    assert (tmp_path / "known_hosts").stat().st_mode & 0o777 == 0o600


@needs_ssh_keygen
def test_openssh_finds_the_box_by_its_alias_and_by_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    known(keys.host_alias("Web.Test-1")).write(path)

    assert "found: line 1" in keygen("-F", "web.test-1", "-f", path)
    assert process.run(["ssh-keygen", "-F", "127.0.0.1", "-f", path], check=False).status == 1


def test_a_host_key_that_is_known_passes_whatever_its_comment() -> None:
    known().check(KeyLine(kind="ssh-ed25519", blob=ED25519, comment="another"))


def test_a_host_key_that_is_not_known_is_refused_with_both_fingerprints() -> None:
    shown = KeyLine(kind="ssh-ed25519", blob=packed(b"ssh-ed25519", bytes(32)))

    with pytest.raises(HostKeyError) as caught:
        known().check(shown)

    assert shown.fingerprint in caught.value.message
    assert keys.parse_line(GOOD).fingerprint in caught.value.message
    assert "'web'" in caught.value.message


@pytest.mark.parametrize(
    "alias", ["", "Web", "a b", "a,b", "*", "!web", "|1|a|b", "@revoked", "[web]:22", "web\n", "#web"]
)
def test_an_alias_that_means_something_else_to_openssh_is_refused(alias: str) -> None:
    with pytest.raises(ValueError, match="alias"):
        known(alias)


def test_a_known_host_without_a_key_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one key"):
        KnownHost(alias="web", keys=())


@pytest.mark.parametrize(
    "content",
    [b"", b"web", b"web \n", b"web rubbish\n", b"\xff", f"web {GOOD}\ndb {GOOD}\n".encode(), f"* {GOOD}\n".encode()],
)
def test_a_damaged_file_of_known_hosts_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "known_hosts"
    path.write_bytes(content)

    with pytest.raises(StateError, match="known_hosts' does not hold the known keys"):
        KnownHost.read(path)


def test_a_missing_file_of_known_hosts_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="known_hosts"):
        KnownHost.read(tmp_path / "known_hosts")


def test_importing_keys_does_not_load_cryptography() -> None:
    program = "import sys, vmimagemanager.keys; print('cryptography' in sys.modules)"

    assert process.run([sys.executable, "-c", program]).stdout.strip() == b"False"
