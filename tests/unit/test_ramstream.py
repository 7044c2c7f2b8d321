"""QEMU's migration stream, split: streams made here word by word, after migration/ram.c."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmimagemanager.errors import HypervisorError
from vmimagemanager.hypervisor import ramstream

PAGE = 4096
SIZE = 64 * PAGE
RAM, BIOS = b"pc.ram", b"pc.bios"
ZERO, BLOCKS, FULL, END, SAME = 2, 4, 8, 16, 32
NUMBER = 2
CONFIGURATION = b"QEVM\0\0\0\x03\x07\0\0\0\x06pc-q35"
DEVICES = b"\x04\0\0\0\x05" + bytes(range(256)) * 40 + b"\0"


def word(address: int, flags: int) -> bytes:
    return struct.pack(">Q", address | flags)


def named(name: bytes) -> bytes:
    return bytes([len(name)]) + name


def page(character: bytes) -> bytes:
    return character * PAGE


def start(words: bytes) -> bytes:
    head = b"\x01" + struct.pack(">I", NUMBER) + b"\x03ram" + struct.pack(">II", 0, 4)
    return head + words + footer()


def section(kind: int, words: bytes) -> bytes:
    return struct.pack(">BI", kind, NUMBER) + words + footer()


def footer() -> bytes:
    return b"\x7e" + struct.pack(">I", NUMBER)


def blocks(*sizes: tuple[bytes, int]) -> bytes:
    total = sum(size for _, size in sizes)
    return word(total, BLOCKS) + b"".join(named(name) + struct.pack(">QQ", size, 0) for name, size in sizes)


HEADER = start(blocks((RAM, SIZE), (BIOS, 2 * PAGE)) + word(0, END))


@pytest.fixture
def ram(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "ram", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


def split(stream: bytes, ram: int) -> bytes:
    state = io.BytesIO()
    ramstream.split(io.BufferedReader(io.BytesIO(stream)), state, ram, size=SIZE)
    return state.getvalue()


def test_the_rams_pages_go_to_the_file_and_all_the_rest_stays(ram: int) -> None:
    first = word(0, FULL) + named(RAM) + page(b"a") + word(PAGE, FULL | SAME) + page(b"b")
    rom = word(PAGE, FULL) + named(BIOS) + page(b"r")
    last = word(9 * PAGE, FULL | SAME) + page(b"c")
    stream = CONFIGURATION + HEADER + section(2, rom + first + word(0, END)) + section(3, last + word(0, END)) + DEVICES
    state = split(stream, ram)
    assert state == CONFIGURATION + HEADER + section(2, rom + word(0, END)) + section(3, word(0, END)) + DEVICES
    assert os.fstat(ram).st_size == SIZE
    assert os.pread(ram, SIZE, 0) == page(b"a") + page(b"b") + bytes(7 * PAGE) + page(b"c") + bytes(54 * PAGE)


def test_a_page_that_stays_names_its_block_even_where_the_one_before_it_was_taken_out(ram: int) -> None:
    rom = word(0, FULL) + named(BIOS) + page(b"r")
    same = word(PAGE, ZERO | SAME) + b"\0"
    taken = word(0, FULL) + named(RAM) + page(b"a")
    again = word(PAGE, FULL) + named(BIOS) + page(b"s")
    stream = CONFIGURATION + HEADER + section(3, rom + same + taken + again + word(0, END)) + DEVICES
    kept = rom + word(PAGE, ZERO) + named(BIOS) + b"\0" + again
    assert split(stream, ram) == CONFIGURATION + HEADER + section(3, kept + word(0, END)) + DEVICES


def test_commands_between_sections_stay(ram: int) -> None:
    switch, other = struct.pack(">BHH", 8, 11, 0), struct.pack(">BHH", 8, 2, 4) + b"\x03\x03\x03\x03"
    words = word(0, FULL) + named(RAM) + page(b"a") + word(0, END)
    stream = CONFIGURATION + HEADER + other + section(2, words) + switch + section(3, word(0, END)) + DEVICES
    kept = CONFIGURATION + HEADER + other + section(2, word(0, END)) + switch + section(3, word(0, END)) + DEVICES
    assert split(stream, ram) == kept
    assert os.pread(ram, PAGE, 0) == page(b"a")


def test_pages_of_zeros_are_holes_and_pages_of_another_byte_are_not(ram: int) -> None:
    words = word(0, ZERO) + named(RAM) + b"\0" + word(2 * PAGE, ZERO | SAME) + b"\xff" + word(0, END)
    split(CONFIGURATION + HEADER + section(3, words) + DEVICES, ram)
    assert os.pread(ram, 3 * PAGE, 0) == bytes(2 * PAGE) + page(b"\xff")
    assert os.fstat(ram).st_blocks * 512 < SIZE


def test_a_page_that_comes_twice_is_what_it_was_last(ram: int) -> None:
    words = b"".join(word(0, FULL) + named(RAM) + page(letter) for letter in (b"a", b"b")) + word(0, END)
    split(CONFIGURATION + HEADER + section(3, words) + DEVICES, ram)
    assert os.pread(ram, PAGE, 0) == page(b"b")


def test_many_pages_in_a_row_are_all_written(ram: int) -> None:
    pages = [bytes([number]) * PAGE for number in range(1, 65)]
    words = word(0, FULL) + named(RAM) + pages[0]
    words += b"".join(word(number * PAGE, FULL | SAME) + pages[number] for number in range(1, 64))
    split(CONFIGURATION + HEADER + section(3, words + word(0, END)) + DEVICES, ram)
    assert os.pread(ram, SIZE, 0) == b"".join(pages)


@pytest.mark.parametrize(
    ("stream", "complaint"),
    [
        (b"QEVM\0\0\0\x02" + HEADER, "first bytes"),
        (b"", "its end"),
        (CONFIGURATION + b"\x04" * 5000, "no RAM"),
        (CONFIGURATION + HEADER.replace(b"\x01", b"\x04", 1), "section of kind 4"),
        (CONFIGURATION + HEADER[:-5] + b"\0" * 5, "without a footer"),
        (CONFIGURATION + HEADER + struct.pack(">BI", 4, 7), "kind 4 and number 7"),
        (CONFIGURATION + HEADER + section(3, word(0, 0x40) + b"\0" * 50), "flags 0x40"),
        (CONFIGURATION + HEADER + section(3, word(0, FULL | SAME) + page(b"a")), "in no block"),
        (CONFIGURATION + HEADER + section(3, word(SIZE, FULL) + named(RAM) + page(b"a")), "in no block"),
        (CONFIGURATION + HEADER + section(3, word(0, FULL) + named(b"other") + page(b"a")), "in no block"),
        (CONFIGURATION + HEADER + section(3, word(0, FULL) + named(RAM) + b"a" * 100)[:-5], "its end"),
        (CONFIGURATION + start(blocks((BIOS, PAGE)) + word(0, END)), "not one is the RAM"),
        (CONFIGURATION + start(blocks((RAM, SIZE), (b"vga", SIZE)) + word(0, END)), "not one is the RAM"),
    ],
)
def test_a_stream_that_is_not_as_expected_is_refused(ram: int, stream: bytes, complaint: str) -> None:
    with pytest.raises(HypervisorError, match=complaint):
        split(stream, ram)
