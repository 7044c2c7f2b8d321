"""Other programs: argv lists only, never a shell.

The one place that starts programs.  Standard input is /dev/null unless given, the environment is the caller's with
``LC_ALL=C.UTF-8`` laid over it, a failure is one ToolError with a command that can be pasted, and nothing that was
started outlives an exception or ^C.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO

from vmimagemanager.deadline import Deadline
from vmimagemanager.errors import ToolError

_log = logging.getLogger(__name__)
_GRACE = 5.0
_TAIL = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a program ended: its exit status (negative: the signal that ended it) and what it wrote."""

    argv: tuple[str, ...]
    status: int
    stdout: bytes
    stderr: bytes


def find(program: str) -> Path | None:
    """Return where ``program`` is, looking in the sbin folders too, or None."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
    found = shutil.which(program, path=path)
    return Path(found) if found else None


def require(program: str, *, package: str) -> Path:
    """Return where ``program`` is, or raise a ToolError that names Debian's ``package`` that holds it."""
    found = find(program)
    if found is None:
        raise ToolError(
            f"The program '{program}' is not installed.", hint=f"apt-get install {package}", argv=(program,)
        )
    return found


def run(
    argv: Sequence[str | Path],
    *,
    stdin: bytes = b"",
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    limit: timedelta | None = None,
    check: bool = True,
) -> Finished:
    """Run a program to its end and return how it ended.

    ``limit`` is not scaled: callers that mean a guest scale it themselves.  Raises ToolError when the program is
    missing, when it ends with another status than 0 (unless ``check`` is false), and DeadlineError when ``limit`` is
    over; then, and on ^C, the program's whole process group is ended first.
    """
    words = tuple(str(word) for word in argv)
    _log.debug("running %s", shlex.join(words))
    deadline = Deadline(limit, scaled=False) if limit is not None else None
    with _started(words, environment, folder, stdin=bool(stdin)) as child:
        try:
            stdout, stderr = child.communicate(stdin or None, timeout=deadline.remaining if deadline else None)
        except subprocess.TimeoutExpired:
            assert deadline is not None
            raise deadline.error(f"'{shlex.join(words)}' to end") from None
    finished = Finished(argv=words, status=child.returncode, stdout=stdout, stderr=stderr)
    if check and finished.status != 0:
        raise failure(finished)
    return finished


@contextmanager
def beside(argv: Sequence[str | Path], ready: Callable[[], bool], *, limit: timedelta) -> Iterator[None]:
    """Run a program beside the block: from the moment when ``ready`` holds until the block's end, when it is ended.

    It ends with us, too, however that comes.  Raises ToolError when it ends before it is ready, DeadlineError when that
    takes longer than ``limit``, which is not scaled.
    """
    words = tuple(map(str, (require("setpriv", package="util-linux"), "--pdeathsig", "TERM", "--", *argv)))
    _log.debug("running %s beside", shlex.join(words))
    with _started(words, None, None, stdin=False) as child:
        try:

            def is_ready() -> bool:
                if child.poll() is not None and not ready():
                    stdout, stderr = child.communicate()
                    raise failure(Finished(argv=words, status=child.returncode, stdout=stdout, stderr=stderr))
                return ready()

            Deadline(limit, scaled=False).wait_for(f"'{argv[0]}' to be ready", is_ready, every=0.005)
            yield
        finally:
            _end_group(child)


class Companion:
    """A program that runs while its caller goes on; the last of what it writes is kept."""

    def __init__(self, argv: tuple[str, ...], child: subprocess.Popen[bytes]) -> None:
        self._argv = argv
        self._child = child
        self._tails = [_Tail(stream) for stream in (child.stdout, child.stderr) if stream is not None]

    def finish(self, limit: timedelta) -> Finished:
        """Wait for the program's end; raise DeadlineError when that takes longer than ``limit``."""
        deadline = Deadline(limit, scaled=False)
        try:
            self._child.wait(timeout=deadline.remaining)
        except subprocess.TimeoutExpired:
            raise deadline.error(f"'{self._argv[0]}' to end") from None
        self.close()
        stdout, stderr = (tail.text for tail in self._tails)
        return Finished(argv=self._argv, status=self._child.returncode, stdout=stdout, stderr=stderr)

    def close(self) -> None:
        """Wait until all that it wrote is read."""
        for tail in self._tails:
            tail.join(_GRACE)


class _Tail(threading.Thread):
    """Reads all that a program writes and keeps the end of it."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(daemon=True)
        self._stream = stream
        self.text = b""
        self.start()

    def run(self) -> None:
        with suppress(OSError, ValueError):  # ValueError: it was closed, because nobody wants to know any more
            while chunk := os.read(self._stream.fileno(), _TAIL):
                self.text = (self.text + chunk)[-_TAIL:]


@contextmanager
def companion(argv: Sequence[str | Path], *, descriptors: Collection[int] = ()) -> Iterator[Companion]:
    """Run a program beside a block, which gets to keep ``descriptors``; when the block raises, it is ended.

    Raises ToolError when it cannot be started.
    """
    words = tuple(str(word) for word in argv)
    _log.debug("running %s as a companion", shlex.join(words))
    with _started(words, None, None, stdin=False, descriptors=descriptors) as child:
        running = Companion(words, child)
        try:
            yield running
            if child.poll() is None:
                raise ToolError(f"'{words[0]}' did not end.", argv=words)
        except BaseException:
            _end_group(child)
            raise
        finally:
            running.close()


def attached(argv: Sequence[str | Path], *, environment: Mapping[str, str] | None = None) -> int:
    """Run a program on the caller's own terminal and return its exit status; ^C goes to the program."""
    words = [str(word) for word in argv]
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return subprocess.call(  # noqa: S603
            words, env=_environment(environment), preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
        )
    except OSError as error:
        raise _not_started(words, error) from error
    finally:
        signal.signal(signal.SIGINT, previous)


def failure(finished: Finished) -> ToolError:
    """Return the error that says how a program failed, with its last lines as detail."""
    said = finished.stderr or finished.stdout
    lines = said.decode("utf-8", "replace").strip().splitlines()[-20:]
    ending = (
        f"was ended by {_signal_name(-finished.status)}"
        if finished.status < 0
        else f"ended with status {finished.status}"
    )
    return ToolError(
        f"'{shlex.join(finished.argv)}' {ending}.", detail="\n".join(lines), argv=finished.argv, status=finished.status
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have no name
        return f"signal {number}"


def _not_started(words: Sequence[str], error: OSError) -> ToolError:
    if error.filename not in {None, words[0]}:
        return ToolError(f"'{words[0]}' cannot run in '{error.filename}': {error.strerror}.", argv=words)
    # A folder on PATH that may not be searched makes a missing program look like a forbidden one.
    is_missing = os.sep not in words[0] and shutil.which(words[0]) is None
    if is_missing or isinstance(error, FileNotFoundError):
        return ToolError(f"The program '{words[0]}' is not installed.", argv=words)
    return ToolError(f"The program '{words[0]}' may not be run: {error.strerror}.", argv=words)


def _environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C.UTF-8", **(extra or {})}


@contextmanager
def _started(
    words: tuple[str, ...],
    environment: Mapping[str, str] | None,
    folder: Path | None,
    *,
    stdin: bool,
    descriptors: Collection[int] = (),
) -> Iterator[subprocess.Popen[bytes]]:
    try:
        child = subprocess.Popen(  # noqa: S603
            words,
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(environment),
            cwd=folder,
            process_group=0,
            pass_fds=tuple(descriptors),
        )
    except OSError as error:
        raise _not_started(words, error) from error
    try:
        yield child
    except BaseException:
        _end_group(child)  # even when it has ended by itself: its own children may have kept our pipes open
        raise
    finally:
        for stream in (child.stdin, child.stdout, child.stderr):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()


def _end_group(child: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with suppress(subprocess.TimeoutExpired):
            child.wait(timeout=_GRACE)
