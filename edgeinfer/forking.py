"""What must not be touched in a forked child.

A runtime's threads do not exist in a child that `os.fork` made, and its locks may be held by them: to run
there hangs or crashes, and to free there, too (measured on ONNX Runtime 1.32 and OpenVINO 2026.4). So the
child is told at the fork, which costs nothing on any other call, and what belongs to the parent is never
freed there, not even when the interpreter ends.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Protocol, final

__all__ = ["Forkable", "abandon_in_children", "keep_forever"]


class Forkable(Protocol):
    """Something that a child of a fork must leave alone."""

    def _after_fork(self) -> None:
        """Called in the child, before anything else there."""
        ...


@final
class _Watched:
    """What lives in this process, by weak reference: it may go at any time."""

    def __init__(self) -> None:
        self._objects: weakref.WeakSet[Forkable] = weakref.WeakSet()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._tell)

    def add(self, watched: Forkable) -> None:
        self._objects.add(watched)

    def _tell(self) -> None:
        for watched in list(self._objects):
            watched._after_fork()


_WATCHED = _Watched()


def abandon_in_children(watched: Forkable) -> None:
    """Call `watched._after_fork()` in every child that is forked while it lives."""
    _WATCHED.add(watched)


def keep_forever(kept: object) -> None:
    """Take a reference that nothing gives back: what it refers to is never freed in this process."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))
