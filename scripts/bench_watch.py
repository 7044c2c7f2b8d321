"""How much of a deed's time is spent in others: libvirt, other programs, and waiting for QEMU or the guest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import libvirt
import libvirt_qemu

from vmimagemanager import process


class Elsewhere:
    """The seconds that the calling thread spent in others; what one of them calls itself is counted once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._inside = False

    def call(self, found: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:  # noqa: ANN401
        if self._inside:
            return found(*arguments, **keywords)
        self._inside = True
        start = time.monotonic()
        try:
            return found(*arguments, **keywords)
        finally:
            self.seconds += time.monotonic() - start
            self._inside = False


class _Watched:
    def __init__(self, module: Any, elsewhere: Elsewhere) -> None:  # noqa: ANN401 - a C module
        self._module = module
        self._elsewhere = elsewhere

    def __getattr__(self, name: str) -> Callable[..., Any]:
        found: Callable[..., Any] = getattr(self._module, name)
        return lambda *arguments, **keywords: self._elsewhere.call(found, *arguments, **keywords)


@contextmanager
def elsewhere() -> Iterator[Elsewhere]:
    """Count what the block's calls of libvirt, its programs and its waits take; a thread of ours is not one of them."""
    watch = Elsewhere()
    sleep, run = time.sleep, process.run
    modules = libvirt.libvirtmod, libvirt_qemu.libvirtmod_qemu
    libvirt.libvirtmod = _Watched(modules[0], watch)
    libvirt_qemu.libvirtmod_qemu = _Watched(modules[1], watch)
    time.sleep = lambda seconds: watch.call(sleep, seconds)
    # Its own signature is of no use here: what comes is passed on as it is.
    process.run = lambda *arguments, **keywords: watch.call(run, *arguments, **keywords)  # type: ignore[assignment]
    try:
        yield watch
    finally:
        libvirt.libvirtmod, libvirt_qemu.libvirtmod_qemu = modules
        time.sleep, process.run = sleep, run
