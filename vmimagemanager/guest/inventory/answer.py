"""What a guest writes for an inventory: sections of any bytes, between lines that only we can have asked for.

Each section begins with 0x1E, a mark that is new for each inventory, and the section's name; it ends with 0x1E, the
mark and the status of what wrote it.  Names and files of the guest, which cannot know the mark, may hold any bytes.
The last line has the mark and a full stop.  Without it nothing is concluded: an inventory that was cut off would look
as if things had been removed.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from vmimagemanager.errors import GuestError
from vmimagemanager.guest.inventory.packages import unseen

MOST = 512 << 20
_BEGIN = re.compile(rb" ([a-z-]+)\n")
_END = re.compile(rb"=(\d{1,3})\n")


@dataclass(frozen=True, slots=True)
class Answer:
    """The sections that were written to their end, and the statuses of what wrote them."""

    sections: Mapping[str, bytes]
    statuses: Mapping[str, int]

    def __contains__(self, name: object) -> bool:
        return name in self.sections

    def raw(self, name: str) -> bytes:
        """Return the bytes of a section, or nothing when it is not there."""
        return self.sections.get(name, b"")

    def text(self, name: str) -> str:
        """Return a section as text; bytes that are not UTF-8 are written as ``\\xff``."""
        return self.raw(name).decode("utf-8", "backslashreplace")

    def lines(self, name: str) -> list[str]:
        """Return the lines of a section."""
        text = self.text(name).removesuffix("\n")
        return text.split("\n") if text else []

    def require(self, name: str) -> None:
        """Raise GuestError when what wrote a section failed."""
        status = self.statuses.get(name, 0)
        if status:
            raise GuestError(
                f"The guest's packages could not be listed: the query '{name}' ended with status {status}."
            )


def read(answer: bytes, mark: str) -> Answer:
    """Take an answer to pieces; what a login script wrote before its beginning or after its end is not ours.

    Raises GuestError when it was cut off.
    """
    content = _unpacked(answer)
    parts = content.split(b"\036" + mark.encode())[1:]
    sections: dict[str, bytes] = {}
    statuses: dict[str, int] = {}
    name = ""
    for part in parts:
        begin, end = _BEGIN.match(part), _END.match(part)
        if part.startswith(b".\n") and not name:
            return Answer(sections, statuses)
        if begin and not name:
            name = begin[1].decode()
            sections[name] = sections.get(name, b"") + part[begin.end() :]
        elif end and name:
            statuses[name] = max(statuses.get(name, 0), int(end[1]))
            name = ""
        else:
            break
    raise GuestError(
        "The inventory of the guest was cut off: its end is missing.",
        hint="Try again; 'vmimagemanager console' shows whether the guest is still well.",
        detail=content[-200:].decode("utf-8", "backslashreplace"),
    )


def visible(name: bytes) -> str:
    """Return a file name as text that no terminal and no line stumbles over, and that two names never share."""
    text = name.decode("utf-8", "surrogateescape").replace("\\", r"\\")
    return unseen(re.sub(r"[\udc80-\udcff]", lambda odd: f"\\x{ord(odd[0]) - 0xDC00:02x}", text))


def _unpacked(answer: bytes) -> bytes:
    start = answer.find(b"\x1f\x8b\x08")
    if start < 0 or b"\036" in answer[:start]:
        return answer
    unpacker = zlib.decompressobj(wbits=31)
    try:
        content = unpacker.decompress(answer[start:], MOST)
    except zlib.error as error:
        raise GuestError("The inventory of the guest is damaged: it cannot be unpacked.") from error
    if unpacker.unconsumed_tail:
        raise GuestError(f"The inventory of the guest is larger than {MOST >> 20} MiB.")
    return content
