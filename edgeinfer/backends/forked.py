"""What a runtime holds is not freed in forked children.

A forked child has a copy of the runtime's memory, but not its threads. Freeing a session there waits for
them for ever, or crashes, and Python frees everything when the child ends. So in a child one more reference
is taken to what was alive at the fork: it goes with the child's memory.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Any, TypeVar

__all__ = ["keep_in_forked_children"]

T = TypeVar("T")

_alive: weakref.WeakSet[Any] = weakref.WeakSet()


def keep_in_forked_children(item: T) -> T:
    """Return the object, which will not be freed in children that are forked while it is alive."""
    _alive.add(item)
    return item


def _keep() -> None:
    for item in _alive:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(item))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep)
