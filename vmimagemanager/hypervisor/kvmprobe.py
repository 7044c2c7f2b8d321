"""A program of its own: does /dev/kvm run 64-bit kernel code, and at what speed?

Run as ``python -I -S kvmprobe.py [DEVICE]``, it makes a virtual machine without QEMU (the interface is the kernel's
Documentation/virt/kvm/api.rst), lets it run for a moment and prints one line of JSON::

    {"outcome": "good", "detail": "", "seconds": 0.0009}

``seconds`` is what a million turns of an integer loop took, or null.  The guest is what a kernel's first steps are made
of: ring 0 in long mode with paging, a value through an SSE register, CR3 reloaded, the EFER register read and written
back, then the loop and a byte to an I/O port.  A KVM that interprets ring 0 stops at the SSE move or is a thousand
times too slow; that KVM makes machines, runs firmware and hangs every kernel, so nothing short of such code tells.

The program imports little, for its start is most of its cost, and nothing of the package.  A vCPU that never comes back
is ended by SIGALRM after `LIMIT` seconds, even when nobody is left to wait for this process.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import struct
import sys
import time

LIMIT = 1
GOOD_BELOW = 0.1  # seconds for a million turns: about 0.001 with hardware, 1.4 with an interpreter (both measured)
TURNS = 100_000
LAPS = 5  # the fastest counts, so that a busy host does not make a good KVM look slow
PORT = 0xF4
PATTERN = 0x5AA5_0FF0_1234_56C3

# Numbers from linux/kvm.h for x86-64.
_GET_API_VERSION = 0xAE00
_CREATE_VM = 0xAE01
_GET_VCPU_MMAP_SIZE = 0xAE04
_GET_SUPPORTED_CPUID = 0xC008AE05
_CREATE_VCPU = 0xAE41
_SET_USER_MEMORY_REGION = 0x4020AE46
_SET_TSS_ADDR = 0xAE47
_RUN = 0xAE80
_SET_REGS = 0x4090AE82
_GET_SREGS = 0x8138AE83
_SET_SREGS = 0x4138AE84
_SET_CPUID2 = 0x4008AE90
_API_VERSION = 12
_CPUID_ENTRIES = 256
_EXIT_IO = 2
_EXITS = {
    5: "KVM_EXIT_HLT",
    6: "KVM_EXIT_MMIO",
    8: "KVM_EXIT_SHUTDOWN",
    9: "KVM_EXIT_FAIL_ENTRY",
    17: "KVM_EXIT_INTERNAL_ERROR",
}

_MEMORY = 2 << 20
_PML4, _PDPT, _DIRECTORY, _STACK, _CODE = 0x1000, 0x2000, 0x3000, 0x8000, 0x9000

GUEST = (
    bytes.fromhex("48 b9")  # start: mov rcx, PATTERN
    + struct.pack("<Q", PATTERN)
    + bytes.fromhex(
        "66 48 0f 6e c1"  # movq xmm0, rcx
        "66 48 0f 7e c3"  # movq rbx, xmm0
        "0f 20 d8"  # mov rax, cr3
        "0f 22 d8"  # mov cr3, rax
        "b9 80 00 00 c0"  # mov ecx, 0xc0000080 (EFER)
        "0f 32"  # rdmsr
        "0f 30"  # wrmsr
        "b9"  # mov ecx, TURNS
    )
    + struct.pack("<I", TURNS)
    + bytes.fromhex(
        "48 ff c9"  # loop: dec rcx
        "75 fb"  # jnz loop
        "88 d8"  # mov al, bl
    )
    + bytes([0xE6, PORT])  # out PORT, al
    + bytes.fromhex("eb cd")  # jmp start: the next lap
)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)


class ProbeError(Exception):
    """The probe ended early: with which outcome, and what is known of it."""

    def __init__(self, outcome: str, detail: str) -> None:
        super().__init__(outcome, detail)
        self.outcome = outcome
        self.detail = detail


def probe(device: str = "/dev/kvm", guest: bytes = GUEST) -> dict[str, object]:
    """Run ``guest`` on ``device`` and return the report; nothing stays open."""
    try:
        system = _open(device)
        try:
            seconds = _with_system(system, guest)
        finally:
            os.close(system)
    except ProbeError as error:
        return {"outcome": error.outcome, "detail": error.detail, "seconds": None}
    return {"outcome": "good" if seconds < GOOD_BELOW else "slow", "detail": "", "seconds": seconds}


def _open(device: str) -> int:
    try:
        return os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        missing = error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV)
        denied = error.errno in (errno.EACCES, errno.EPERM)
        outcome = "absent" if missing else "denied" if denied else "broken"
        raise ProbeError(outcome, f"open: {error.strerror}") from error


def _with_system(system: int, guest: bytes) -> float:
    version = _ioctl("KVM_GET_API_VERSION", system, _GET_API_VERSION)
    if version != _API_VERSION:
        raise ProbeError("broken", f"KVM_GET_API_VERSION: {version}, expected {_API_VERSION}")
    machine = _ioctl("KVM_CREATE_VM", system, _CREATE_VM)
    try:
        with mmap.mmap(-1, _MEMORY) as memory:
            _fill(memory, guest)
            _give_memory(machine, memory)
            _ioctl("KVM_SET_TSS_ADDR", machine, _SET_TSS_ADDR, 0xFFFB_D000)
            return _with_machine(system, machine)
    finally:
        os.close(machine)


def _with_machine(system: int, machine: int) -> float:
    vcpu = _ioctl("KVM_CREATE_VCPU", machine, _CREATE_VCPU, 0)
    try:
        _set_up(system, vcpu)
        size = _ioctl("KVM_GET_VCPU_MMAP_SIZE", system, _GET_VCPU_MMAP_SIZE)
        with mmap.mmap(vcpu, size) as shared:
            return _measure(vcpu, shared)
    finally:
        os.close(vcpu)


def _fill(memory: mmap.mmap, guest: bytes) -> None:
    present, large = 0x3, 0x80  # writable too
    for address, entry in (
        (_PML4, _PDPT | present),
        (_PDPT, _DIRECTORY | present),
        (_DIRECTORY, present | large),  # the first 2 MiB, one to one
    ):
        struct.pack_into("<Q", memory, address, entry)
    memory[_CODE : _CODE + len(guest)] = guest


def _give_memory(machine: int, memory: mmap.mmap) -> None:
    view = ctypes.c_char.from_buffer(memory)
    region = struct.pack("<IIQQQ", 0, 0, 0, _MEMORY, ctypes.addressof(view))
    del view  # a mapping with a view cannot be closed
    _ioctl("KVM_SET_USER_MEMORY_REGION", machine, _SET_USER_MEMORY_REGION, region)


def _set_up(system: int, vcpu: int) -> None:
    cpuid = ctypes.create_string_buffer(8 + 40 * _CPUID_ENTRIES)
    struct.pack_into("<I", cpuid, 0, _CPUID_ENTRIES)
    _ioctl("KVM_GET_SUPPORTED_CPUID", system, _GET_SUPPORTED_CPUID, cpuid)
    _ioctl("KVM_SET_CPUID2", vcpu, _SET_CPUID2, cpuid)

    special = ctypes.create_string_buffer(0x138)
    _ioctl("KVM_GET_SREGS", vcpu, _GET_SREGS, special)
    code, data = _segment(0x08, 0xB, long=1, big=0), _segment(0x10, 0x3, long=0, big=1)
    struct.pack_into("144s", special, 0, code + data * 5)  # cs ds es fs gs ss
    paging, protection, numeric, extension = 1 << 31, 1, 1 << 5, 1 << 4
    cr0 = paging | protection | numeric | extension | 1 << 1
    cr4 = 1 << 5 | 1 << 9 | 1 << 10  # PAE OSFXSR OSXMMEXCPT
    struct.pack_into("<QQQQ", special, 224, cr0, 0, _PML4, cr4)
    struct.pack_into("<Q", special, 264, 1 << 8 | 1 << 10)  # EFER: LME LMA
    _ioctl("KVM_SET_SREGS", vcpu, _SET_SREGS, special)

    registers = [0] * 18
    registers[6], registers[16], registers[17] = _STACK, _CODE, 0x2  # rsp rip rflags
    _ioctl("KVM_SET_REGS", vcpu, _SET_REGS, struct.pack("<18Q", *registers))


def _segment(selector: int, kind: int, *, long: int, big: int) -> bytes:
    # base limit selector type present dpl db s l g avl unusable padding
    return struct.pack("<QIH10B", 0, 0xFFFF_FFFF, selector, kind, 1, 0, big, 1, long, 1, 0, 0, 0)


def _measure(vcpu: int, shared: mmap.mmap) -> float:
    fastest = float("inf")
    for _ in range(LAPS):
        start = time.perf_counter()
        _run(vcpu)
        lap = (time.perf_counter() - start) * 1_000_000 / TURNS
        _judge_exit(shared)
        fastest = min(fastest, lap)
        if fastest < GOOD_BELOW:
            break
    return fastest


def _run(vcpu: int) -> None:
    while True:
        try:
            _ioctl("KVM_RUN", vcpu, _RUN)
        except InterruptedError:
            continue
        return


def _judge_exit(shared: mmap.mmap) -> None:
    (reason,) = struct.unpack_from("<I", shared, 8)
    if reason != _EXIT_IO:
        name = _EXITS.get(reason, f"exit reason {reason}")
        (first,) = struct.unpack_from("<I", shared, 32)
        raise ProbeError("wrong", f"{name}, suberror {first}" if name == "KVM_EXIT_INTERNAL_ERROR" else name)
    port, _, offset = struct.unpack_from("<HIQ", shared, 34)
    if (port, shared[offset]) != (PORT, PATTERN & 0xFF):
        raise ProbeError("wrong", f"the value {shared[offset]:#x} came out of port {port:#x}")


def _ioctl(name: str, descriptor: int, request: int, argument: object = None) -> int:
    result: int = _libc.ioctl(descriptor, request, argument)
    if result < 0:
        number = ctypes.get_errno()
        if number == errno.EINTR:
            raise InterruptedError
        denied = number in (errno.EACCES, errno.EPERM)
        raise ProbeError("denied" if denied else "broken", f"{name}: {os.strerror(number)}")
    return result


def arm() -> None:
    """Have the kernel end this process after `LIMIT` seconds, whatever it does then and whatever it inherited."""
    _libc.signal(14, None)  # SIGALRM, SIG_DFL
    _libc.alarm(LIMIT)


def main(arguments: list[str]) -> None:
    arm()
    report = probe(arguments[0]) if arguments else probe()
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
