"""What users hold: the clones of one fork."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Protocol, TypeVar, overload

from vmimagemanager.boxes.fork import Forked, in_parallel
from vmimagemanager.errors import BoxNotFoundError


class Clone(Protocol):
    """A box that this process leases."""

    def undefine(self, *, force: bool) -> None: ...
    def keep(self) -> None: ...
    def release(self) -> None: ...


Item = TypeVar("Item", bound=Clone)


class Fork(Sequence[Item]):
    """The clones of one fork, leased by this process; a context manager that removes them all.

    Those of a process that was killed are removed by `Manager.gc`.  ``made`` tells of each how long its phases took.
    """

    def __init__(self, boxes: Sequence[Item], made: Sequence[Forked]) -> None:
        self._boxes = tuple(boxes)
        self._kept = False
        self.made = tuple(made)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        return self._boxes[index]

    def __len__(self) -> int:
        return len(self._boxes)

    def keep(self) -> None:
        """Leave the clones to whoever comes: they go on running, as boxes of their own, and are not removed here."""
        for box in self._boxes:
            box.keep()
        self._kept = True
        self._release()

    def remove(self) -> None:
        """Remove the clones with their disks and memory, those that are there still; none after `keep`."""
        if self._kept:
            return
        try:
            tuple(in_parallel(_remove, self._boxes))
        finally:
            self._release()

    def _release(self) -> None:
        tuple(in_parallel(lambda box: box.release(), self._boxes))

    def __enter__(self) -> Fork[Item]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def _remove(clone: Clone) -> None:
    with suppress(BoxNotFoundError):  # removed by its user
        clone.undefine(force=True)
