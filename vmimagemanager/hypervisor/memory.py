"""The host's memory."""

from __future__ import annotations

import re
from pathlib import Path

from vmimagemanager.units import Size

MEMORY = Path("/proc/meminfo")


def available() -> Size | None:
    """Return how much memory programs can still get (proc(5): MemAvailable), or None where the kernel does not say."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", MEMORY.read_text(), re.MULTILINE)
    return None if found is None else Size(int(found[1]) << 10)
