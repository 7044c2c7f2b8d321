"""What is in the guest of a snapshot: asked once, and kept with it as the file ``inventory``.

The file is one line and, after it, the answer as the guest gave it, so that it is read by what reads any other answer::

    vmimagemanager-inventory 1 <layer> <probe> <mark> <since> <sha512>

Layer: of which snapshot it is, whatever that was called.  Probe: the digest of what was asked; once that is another
script, it is asked anew.  Mark: what tells the answer's sections apart.  Since: the second of the guest's own clock
from which on a change came after the snapshot.  SHA-512: of the answer.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace

from vmimagemanager.durable import replace_file, translate_os_errors
from vmimagemanager.errors import StateError
from vmimagemanager.guest import inventory
from vmimagemanager.guest.inventory import EVER, Inventory
from vmimagemanager.snapshots.manifest import Manifest
from vmimagemanager.state import SnapshotFolder

FORMAT = 1
_HEAD = re.compile(
    rb"vmimagemanager-inventory (\d{1,9}) (?:([0-9a-f]+) ([0-9a-f]{64}) ([0-9a-f]+) (\d{1,12}) ([0-9a-f]{128})|.*)\n"
)


def keep_inventory(folder: SnapshotFolder, manifest: Manifest, answer: bytes, mark: str, *, since: int) -> Inventory:
    """Keep an answer to the probe with its snapshot, and return what it says; raise GuestError when that is nothing.

    Only its owner can read it: it says what is in every folder of the guest.
    """
    found = _read(answer, mark, since)
    sha512 = hashlib.sha512(answer).hexdigest()
    head = f"vmimagemanager-inventory {FORMAT} {manifest.layer} {_probe()} {mark} {since} {sha512}\n"
    replace_file(folder.inventory, head.encode() + answer, mode=0o600)
    return found


def kept_inventory(folder: SnapshotFolder, manifest: Manifest) -> Inventory | None:
    """Return what is kept of a snapshot's guest; its ``clock`` is the moment since which changes count.

    None says that nothing is, or that it was asked otherwise than it would be now.  Raises StateError for a damaged
    file.
    """
    if not folder.inventory.exists():
        return None
    with translate_os_errors("read", folder.inventory):
        content = folder.inventory.read_bytes()
    head = _HEAD.match(content)
    if head is None:
        raise _damaged(folder, "does not begin as one")
    if int(head[1]) != FORMAT:
        return None
    if head[2] is None:
        raise _damaged(folder, "does not begin as one")
    layer, probe, mark = (part.decode() for part in head.group(2, 3, 4))
    answer = content[head.end() :]
    if hashlib.sha512(answer).hexdigest() != head[6].decode():
        raise _damaged(folder, "was altered or cut off")
    if (layer, probe) != (manifest.layer, _probe()):
        return None
    return _read(answer, mark, int(head[5]))


def _read(answer: bytes, mark: str, since: int) -> Inventory:
    return replace(inventory.parse(answer, mark), clock=since)


def _probe() -> str:
    return hashlib.sha256(inventory.script("mark", since=EVER).encode()).hexdigest()


def _damaged(folder: SnapshotFolder, reason: str) -> StateError:
    return StateError(
        f"The inventory '{folder.inventory}' {reason}.",
        hint=f"It is taken again when it is needed: vmimagemanager inventory {folder.box}@{folder.path.name}",
    )
