"""The command line: parse, call one method of the library, print, and turn errors into exit codes."""

from __future__ import annotations

from vmimagemanager.errors import INTERRUPTED


def main() -> int:
    """Run ``vmimagemanager`` with this process's arguments and return its exit code.

    An interrupt that comes while the modules load ends without a traceback, too; one that comes when the verb has
    ended changes nothing any more.
    """
    import signal

    try:
        from vmimagemanager.cli.run import run

        code = run()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what remains is the interpreter's own end
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return INTERRUPTED
    return code
