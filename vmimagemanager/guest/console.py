"""What a guest prints on its serial console, made fit to be read."""

from __future__ import annotations

import re

_ESCAPE_SEQUENCE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|[ -/]*[0-Z\\-~])")  # ECMA-48: colours, moves of the cursor


def last_lines(output: bytes, count: int) -> str:
    """Return the last ``count`` lines that are not empty, without escape sequences and control characters."""
    text = _ESCAPE_SEQUENCE.sub("", output.decode("utf-8", "replace"))
    lines = ["".join(character for character in line if character.isprintable()) for line in text.splitlines()]
    return "\n".join([line for line in lines if line.strip()][-count:])
