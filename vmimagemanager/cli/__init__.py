"""The command line: parse, call one method of the library, print, and turn errors into exit codes."""

from __future__ import annotations


def main() -> int:
    """Run ``vmimagemanager`` with this process's arguments and return its exit code."""
    from vmimagemanager.cli.run import run

    return run()
