"""Files into and out of a running guest, over SSH: one tar stream each, whose other end is the guest's own tar.

What comes out of a guest is not trusted: see `files.unpack`.  Nothing of it is visible before it is whole.  Each stream
ends with DeadlineError when it takes longer than a ``limit`` that was given, and its session with it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from vmimagemanager.errors import TransferError
from vmimagemanager.files import landing, pack
from vmimagemanager.files.landing import Arrival
from vmimagemanager.files.pack import Laying
from vmimagemanager.guest.result import Result
from vmimagemanager.guest.session import Session

# $1 is a folder that exists, or is made when $2 says so.  What GNU tar alone knows is left out where there is another.
_RECEIVE = """\
if [ "$2" = make ]; then mkdir -p -- "$1" || exit; fi
[ -d "$1" ] || { echo "No such file or directory" >&2; exit 1; }
cd -- "$1" || exit
more=
case $(tar --version 2>/dev/null) in
*GNU*)
    more="--warning=no-unknown-keyword --warning=no-timestamp --keep-directory-symlink"
    [ "$2" = make ] && more="$more --no-overwrite-dir --acls --xattrs"
    ;;
esac
tar -xp --numeric-owner $more -f -
"""
# Each of "$@" is followed when it is a symbolic link, and sent by its own name.
SEND = """\
left=$#
while [ $left -gt 0 ]; do
    path=$1
    shift
    left=$((left - 1))
    found=$(readlink -f -- "$path"; printf x)
    found=${found%x}
    found=${found%?}
    [ -n "$found" ] && [ -e "$found" ] || { echo "$path: No such file or directory" >&2; exit 44; }
    if [ "$found" = / ]; then set -- "$@" -C / .; else set -- "$@" -C "${found%/*}/" "./${found##*/}"; fi
done
tar -c -f - "$@"
status=$?
# What changes while it is read, a log for instance, is no failure; GNU tar alone has a status for that.
if [ $status = 1 ]; then case $(tar --version 2>/dev/null) in *GNU*) status=0 ;; esac; fi
exit $status
"""


def says_full(text: str) -> bool:
    """Tell whether tar says that a disk is full; its first write that fails is only a short one."""
    return "No space left on device" in text or "Wrote only" in text


def put(session: Session, source: Path, target: PurePosixPath, *, limit: timedelta | None = None) -> int:
    """Copy a file or a folder into the guest, with permissions and symbolic links; return the bytes of its files.

    ``target`` is the new path, or an existing folder that the copy goes into.  Raises TransferError; what was copied
    until then is left.
    """
    if not source.exists():
        raise TransferError(f"There is no file or folder '{source}' on the host.")
    is_update = source.is_dir() and source.name == target.name  # 'put tree/ /srv/tree' again is not meant to nest it
    into = not is_update and session.run(["test", "-d", str(target)], limit=limit).status == 0
    folder, name = (target, source.name) if into else (target.parent, target.name)
    written = 0

    def feed(stream: BinaryIO) -> None:
        nonlocal written
        written = pack.pack(source, stream, name)

    said = f"'{source}' cannot be copied to '{target}' in the guest"
    _send(session, feed, folder, make=False, said=said, limit=limit)
    return written


def insert(session: Session, layings: Sequence[Laying], *, limit: timedelta | None = None) -> None:
    """Lay tar streams over folders of the guest, in their order; a folder is made if need be.

    Folders and links to folders that are there stay what they are.  Raises TransferError; what was laid until then is
    left.
    """
    for laying in layings:
        said = f"The files cannot be laid into '{laying.folder}' in the guest"
        _send(session, laying.feed, laying.folder, make=True, said=said, limit=limit)


def get(session: Session, source: PurePosixPath, target: Path, *, limit: timedelta | None = None) -> int:
    """Copy a file or a folder out of the guest, with permissions and symbolic links; return the bytes of its files.

    ``target`` is the new path, or an existing folder that the copy goes into.  Raises TransferError, leaving nothing of
    the copy; an existing file is replaced, an existing folder is not.
    """
    return extract(session, [source], target, limit=limit)


def extract(session: Session, sources: Sequence[PurePosixPath], target: Path, *, limit: timedelta | None = None) -> int:
    """Copy files and folders out of the guest as `get` does; several go into ``target``, a folder that exists."""
    said = ", ".join(f"'{source}'" for source in sources)
    with landing.prepared([source.name for source in sources], target) as arrival:
        result = _receive(session, ["sh", "-c", SEND, "sh", *map(str, sources)], arrival, said=said, limit=limit)
        if result.status != 0:
            raise TransferError(f"{said} cannot be copied out of the guest: {_last_line(result)}.")
        return arrival.land()


def _send(
    session: Session,
    feed: Callable[[BinaryIO], object],
    folder: PurePosixPath,
    *,
    make: bool,
    said: str,
    limit: timedelta | None,
) -> None:
    reading, writing = os.pipe()
    failures: list[BaseException] = []

    def write() -> None:
        try:
            with os.fdopen(writing, "wb") as stream:
                feed(stream)
        except BrokenPipeError:  # the guest reads no more, and says why
            return
        except BaseException as error:  # noqa: BLE001 - raised by `_raise`
            failures.append(error)

    thread = threading.Thread(target=write, daemon=True)
    argv = ["sh", "-c", _RECEIVE, "sh", str(folder), "make" if make else "keep"]
    with os.fdopen(reading, "rb") as stream:
        thread.start()
        try:
            result = session.run(argv, stdin=stream, limit=limit)
        finally:
            with suppress(OSError):
                stream.close()
            thread.join()
    _raise(failures, said)
    if result.status != 0:
        raise TransferError(f"{said}: {_last_line(result)}.", hint=_hint(result))


def _receive(session: Session, argv: Sequence[str], arrival: Arrival, *, said: str, limit: timedelta | None) -> Result:
    reading, writing = os.pipe()
    failures: list[BaseException] = []

    def read() -> None:
        with os.fdopen(reading, "rb") as stream:
            try:
                arrival.receive(stream)
            except BaseException as error:  # noqa: BLE001 - raised by `_raise`
                failures.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    result: Result | None = None
    try:
        with os.fdopen(writing, "wb", buffering=0) as stream:
            result = session.run(argv, stdout=stream.write, limit=limit)
    except BrokenPipeError:  # nobody reads any more: the reader has failed, and knows why
        pass
    finally:
        thread.join()
    if result is not None and result.status != 0:
        return result
    _raise(failures, f"{said} cannot be copied out of the guest")
    assert result is not None
    return result


def _raise(failures: Sequence[BaseException], said: str) -> None:
    for failure in failures:
        if isinstance(failure, OSError):
            raise TransferError(f"{said}: {failure.strerror or failure}.") from failure
        raise failure


def _last_line(result: Result) -> str:
    said = result.stderr.decode("utf-8", "replace").splitlines()
    lines = [line for line in said if line.strip() and "Exiting with failure status" not in line]
    last = lines[-1] if lines else f"tar ended with status {result.status}"
    return last.removeprefix("sh: ").removeprefix("tar: ").rstrip(".")


def _hint(result: Result) -> str:
    if says_full(result.stderr.decode("utf-8", "replace")):
        return "The guest's disk is full."
    return "The guest needs the program tar." if result.status == 127 else ""
