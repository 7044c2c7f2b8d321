"""QEMU's migration stream, split while it is read: the guest's RAM into a file, all the rest into another stream.

A guest whose RAM file is mapped private cannot leave its RAM out of a migration (``x-ignore-shared`` is for shared
RAM), and its pages are in nobody's file.  What this module leaves of its stream is what a guest with shared RAM would
have written, so both are brought back alike.

The format is that of QEMU's migration/savevm.c and migration/ram.c, version 3, with the capability ``x-ignore-shared``
and without any other: commands, and sections, of which only RAM is read into, because only its length can be told from
outside.
Numbers are big-endian.  A section of RAM is a list of words, each an address with flags in the bits below the page
size: a list of the blocks and their sizes, a page of one byte's repetition, a page, and the section's end.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from io import BufferedIOBase

from vmimagemanager.errors import HypervisorError

_MAGIC = b"QEVM\x00\x00\x00\x03"
_START, _PART, _END, _COMMAND, _FOOTER = 0x01, 0x02, 0x03, 0x08, 0x7E
_RAM_VERSION = 4
_ZERO, _BLOCKS, _PAGE, _SECTION_END, _SAME_BLOCK = 0x02, 0x04, 0x08, 0x10, 0x20
_PAGE_SIZE = 4096
_FLAGS = _PAGE_SIZE - 1
_PREAMBLE = 4096  # bytes within which the first section of RAM begins: before it, there is the configuration alone
_AT_ONCE = 256  # pages to a write
_CHUNK = 1 << 20


@dataclass(slots=True)
class _Block:
    name: bytes  # with its length before it, as in the stream
    size: int
    is_ram: bool


def split(source: BufferedIOBase, state: BufferedIOBase, ram: int, *, size: int) -> None:
    """Read a migration stream from ``source`` to its end; write the guest's RAM to the descriptor ``ram``.

    The RAM is the one block of ``size`` bytes; pages of zeros become holes in ``ram``, which must be empty.  Everything
    else goes to ``state``, in its order.  Raises HypervisorError when the stream is not what is expected (``ram`` and
    ``state`` are then worthless), and OSError when they cannot be written.
    """
    os.ftruncate(ram, size)
    _Splitter(source, state, ram, size).run()


class _Splitter:
    def __init__(self, source: BufferedIOBase, state: BufferedIOBase, ram: int, size: int) -> None:
        self._source = source
        self._state = state
        self._ram = ram
        self._size = size
        self._blocks: dict[bytes, _Block] = {}
        self._block: _Block | None = None  # that of the last page, in whatever section it was
        self._pages: list[bytes] = []
        self._next = 0  # the address after the last of the pages that wait to be written

    def run(self) -> None:
        number = self._pass_preamble()
        self._pass_words()
        self._pass_footer(number)
        kind = 0
        while kind != _END:
            kind, section = struct.unpack(">BI", head := self._read(5))
            if kind == _COMMAND:  # its number, and the length of what follows; QEMU 10 says that the guest stands still
                self._state.write(head + self._read(section & 0xFFFF))
                continue
            if kind not in (_PART, _END) or section != number:
                raise _unexpected(f"a section of kind {kind} and number {section} within the RAM's")
            self._state.write(head)
            self._pass_words()
            self._pass_footer(number)
        self._write_pages()
        while chunk := self._source.read(_CHUNK):
            self._state.write(chunk)

    def _pass_preamble(self) -> int:
        """Pass all up to the first section of RAM and its head, and return the section's number."""
        passed = bytearray(self._read(len(_MAGIC)))
        if passed != _MAGIC:
            raise _unexpected(f"the first bytes {bytes(passed)!r}")
        tail = b"\x03ram" + struct.pack(">II", 0, _RAM_VERSION)
        while not passed.endswith(tail):
            if len(passed) > _PREAMBLE:
                raise _unexpected("no RAM")
            passed += self._read(1)
        kind, number = struct.unpack(">BI", passed[-len(tail) - 5 : -len(tail)])
        if kind != _START:
            raise _unexpected(f"RAM in a section of kind {kind}")
        self._state.write(passed)
        return int(number)

    def _pass_footer(self, number: int) -> None:
        footer = self._read(5)
        if footer != struct.pack(">BI", _FOOTER, number):
            raise _unexpected("a section of RAM without a footer")
        self._state.write(footer)

    def _pass_words(self) -> None:
        """Pass one section's words, taking the RAM's pages out of them."""
        while True:
            word = self._read(8)
            (number,) = struct.unpack(">Q", word)
            address, flags = number & ~_FLAGS, number & _FLAGS
            if flags == _SECTION_END:
                self._state.write(word)
                return
            if flags == _BLOCKS:
                self._state.write(word)
                self._pass_blocks(address)
                continue
            kind = flags & ~_SAME_BLOCK
            if kind not in (_PAGE, _ZERO):
                raise _unexpected(f"the flags {flags:#x}")
            if not flags & _SAME_BLOCK:
                self._block = self._blocks.get(self._name())
            block = self._block
            if block is None or address + _PAGE_SIZE > block.size:
                raise _unexpected(f"a page at {address:#x} that is in no block")
            content = self._read(_PAGE_SIZE if kind == _PAGE else 1)
            if not block.is_ram:
                # The page before may have been taken out: each that stays names its block.
                self._state.write(struct.pack(">Q", address | kind) + block.name + content)
            elif kind == _PAGE:
                self._keep(address, content)
            elif content != b"\0":
                self._keep(address, content * _PAGE_SIZE)

    def _pass_blocks(self, total: int) -> None:
        while total > 0:
            name = self._name()
            sizes = self._read(16)  # its size, and its address in the guest's memory
            (size,) = struct.unpack_from(">Q", sizes)
            self._state.write(name + sizes)
            self._blocks[name] = _Block(name=name, size=size, is_ram=size == self._size)
            total -= size
        if total < 0 or sum(block.is_ram for block in self._blocks.values()) != 1:
            raise _unexpected(f"{len(self._blocks)} blocks, of which not one is the RAM of {self._size} bytes")

    def _name(self) -> bytes:
        length = self._read(1)
        return length + self._read(length[0])

    def _keep(self, address: int, page: bytes) -> None:
        if address != self._next or len(self._pages) == _AT_ONCE:
            self._write_pages()
        self._pages.append(page)
        self._next = address + _PAGE_SIZE

    def _write_pages(self) -> None:
        offset = self._next - len(self._pages) * _PAGE_SIZE
        content = memoryview(b"".join(self._pages))
        self._pages.clear()
        while content:
            written = os.pwrite(self._ram, content, offset)
            content, offset = content[written:], offset + written

    def _read(self, count: int) -> bytes:
        content = self._source.read(count)
        if len(content) != count:
            raise _unexpected("its end")
        return content


def _unexpected(what: str) -> HypervisorError:
    return HypervisorError(f"The guest's RAM cannot be told from its devices: QEMU's migration stream has {what}.")
