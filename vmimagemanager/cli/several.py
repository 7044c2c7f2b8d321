"""Several boxes in one call: in parallel, with one report at the end."""

from __future__ import annotations

import ctypes
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from vmimagemanager.cli import failures, screen
from vmimagemanager.cli.invocation import Invocation
from vmimagemanager.deadline import Stopwatch
from vmimagemanager.errors import SeveralError, VmimError

if TYPE_CHECKING:
    from vmimagemanager.box import Box

Value = TypeVar("Value")
_AT_ONCE = max(4, os.cpu_count() or 1)
_GLANCE = 0.2  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Task(Generic[Value]):
    """What is to be done to one box; tasks of the same ``row``, by default the box, are done one after the other."""

    title: str
    box: str
    deed: Callable[[Box], Value]
    row: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome(Generic[Value]):
    """What came of a task: a value or an error, and the seconds that it took, waiting for the box included."""

    title: str
    box: str
    value: Value | None
    error: VmimError | None
    seconds: float


def for_each(
    invocation: Invocation,
    kind: str,
    tasks: Iterable[Task[Value]],
    *,
    lines: Callable[[str, Value, float], Iterable[str]],
    document: Callable[[Value], Mapping[str, Any]],
) -> int:
    """Do all tasks, print what came of them in the order in which they were asked for, and return the exit code.

    The code is that of the errors when they agree on one, else SeveralError's.
    """
    outcomes = _done(invocation, list(tasks))
    for outcome in outcomes:
        if outcome.value is not None:
            invocation.say(*lines(outcome.title, outcome.value, outcome.seconds))
    if invocation.json:
        screen.emit(kind, {"results": [_document(outcome, document) for outcome in outcomes]})
    sys.stdout.flush()
    errors = {outcome.title: outcome.error for outcome in outcomes if outcome.error is not None}
    for error in errors.values():
        failures.tell(error)
    codes = {error.exit_code for error in errors.values()}
    return SeveralError.exit_code if len(codes) > 1 else next(iter(codes), 0)


def _document(outcome: Outcome[Value], document: Callable[[Value], Mapping[str, Any]]) -> Mapping[str, Any]:
    shown: dict[str, Any] = {"name": outcome.title, "seconds": round(outcome.seconds, 4)}
    if outcome.error is not None or outcome.value is None:
        assert outcome.error is not None
        return {**shown, "outcome": "failed", "failure": failures.document(outcome.error)}
    return {**shown, "outcome": "done", **document(outcome.value)}


def _done(invocation: Invocation, tasks: list[Task[Value]]) -> list[Outcome[Value]]:
    rows: dict[str, list[int]] = {}
    for number, task in enumerate(tasks):
        rows.setdefault(task.row or task.box, []).append(number)
    outcomes: dict[int, Outcome[Value]] = {}
    configuration = invocation.configuration()

    def do(numbers: Iterable[int]) -> None:
        with invocation.open(configuration) as manager:
            for number in numbers:
                outcomes[number] = _outcome(tasks[number], manager.box)

    if len(rows) == 1:
        do(range(len(tasks)))
    else:
        _in_threads([partial(do, numbers) for numbers in rows.values()])
    return [outcomes[number] for number in range(len(tasks))]


def _outcome(task: Task[Value], box: Callable[[str], Box]) -> Outcome[Value]:
    watch = Stopwatch()
    value, failure = None, None
    try:
        with box(task.box) as held:
            value = task.deed(held)
    except VmimError as error:
        failure = error
    return Outcome(title=task.title, box=task.box, value=value, error=failure, seconds=watch.total)


def _in_threads(works: list[Callable[[], None]]) -> None:
    """Do all works, some at once.  ^C reaches each of them as KeyboardInterrupt; the second one does not wait."""
    waiting: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    for work in works:
        waiting.put(work)
    unexpected: list[BaseException] = []
    stopped = threading.Event()
    ended: queue.SimpleQueue[None] = queue.SimpleQueue()

    def serve() -> None:
        try:
            while not stopped.is_set():
                waiting.get_nowait()()
        except queue.Empty:
            pass
        except BaseException as error:
            unexpected.append(error)
        finally:
            ended.put(None)

    threads = [threading.Thread(target=serve, daemon=True) for _ in range(min(len(works), _AT_ONCE))]
    left = len(threads)
    # Not by Thread.join: in Python 3.11 one that is interrupted takes the thread for ended (bpo-45274).
    try:
        for thread in threads:
            thread.start()
        while left:
            with suppress(queue.Empty):  # a signal that the kernel gave to another thread wakes nobody here
                ended.get(timeout=_GLANCE)
                left -= 1
    except KeyboardInterrupt:
        stopped.set()
        left -= sum(not _interrupt(thread) for thread in threads)
        for _ in range(left):
            ended.get()
        raise
    if unexpected:
        raise unexpected[0]


def _interrupt(thread: threading.Thread) -> bool:
    """Raise KeyboardInterrupt in a thread; return whether it had been started."""
    # Python gives signals to the main thread alone; this is how the interpreter's own API raises in another one.  A
    # thread that has ended is unknown to it.
    if thread.ident is None:
        return False
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(KeyboardInterrupt))
    return True
