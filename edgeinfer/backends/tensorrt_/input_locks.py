"""Page-locking of input arrays that come again, so that the GPU reads them where they lie."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, final

import attrs
import numpy as np

from edgeinfer.backends.tensorrt_.cuda import Cuda
from edgeinfer.errors import InferenceError

__all__ = ["InputLocks"]

# An array is page-locked when it is seen for the third time: locking takes longer than a copy. What is beyond
# these limits is copied.
_LOCK_AT = 3
_LOCK_LEAST_BYTES = 128 << 10
_LOCK_MOST_BYTES = 256 << 20
_LOCK_COUNT = 8


@final
class InputLocks:
    """Page-locks the memory of callers' arrays that come again, for as long as they live.

    Only whole arrays that own their memory: for these numpy tells when the memory goes, by a finalizer that
    runs before, and numpy neither moves nor resizes the memory of an array that has one.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda, self._process = cuda, os.getpid()
        self._lock = threading.RLock()  # a finalizer may run within
        self._seen: list[_Sighting] = []
        self._next = 0
        self._locked: dict[int, _Locked] = {}
        self._bytes = 0

    def covers(self, array: np.ndarray) -> bool:
        """Whether the GPU can read the array where it lies. Called for each run: it counts the sightings."""
        if array.nbytes < _LOCK_LEAST_BYTES:
            return False
        owner = _owner(array)
        if owner is None:
            return False
        locked = self._locked.get(id(owner))
        if locked is not None:
            return locked.owner() is owner and locked.address == _address(owner)
        for sighting in self._seen:
            if sighting.owner() is owner:
                sighting.count += 1
                return sighting.count == _LOCK_AT and self._lock_pages(owner)
        self._remember(owner)
        return False

    def close(self) -> None:
        """Undo all locks."""
        for key in list(self._locked):
            self._unlock_pages(key)

    def _remember(self, owner: np.ndarray) -> None:
        made = _Sighting(owner=weakref.ref(owner))
        if len(self._seen) < 2 * _LOCK_COUNT:
            self._seen.append(made)
        else:
            self._seen[self._next] = made
            self._next = (self._next + 1) % len(self._seen)

    def _lock_pages(self, owner: np.ndarray) -> bool:
        with self._lock:
            if len(self._locked) >= _LOCK_COUNT or self._bytes + owner.nbytes > _LOCK_MOST_BYTES:
                return False
            address = _address(owner)
            if not self._cuda.page_lock(address, owner.nbytes):
                return False  # counted past _LOCK_AT, it is not tried again
            key = id(owner)
            finalizer = weakref.finalize(owner, self._unlock_pages, key)
            finalizer.atexit = False
            self._locked[key] = _Locked(
                owner=weakref.ref(owner), address=address, size=owner.nbytes, finalizer=finalizer
            )
            self._bytes += owner.nbytes
            return True

    def _unlock_pages(self, key: int) -> None:
        with self._lock:
            locked = self._locked.pop(key, None)
        if locked is None:
            return
        locked.finalizer.detach()
        self._bytes -= locked.size
        if os.getpid() != self._process:  # a forked child: CUDA is the parent's
            return
        try:
            with self._cuda.current():
                self._cuda.page_unlock(locked.address)
        except InferenceError:
            return  # at the end of the process CUDA may be gone already, and its locks with it


@attrs.define(kw_only=True)
class _Sighting:
    owner: Callable[[], np.ndarray | None]
    count: int = 1


@attrs.frozen(kw_only=True)
class _Locked:
    owner: Callable[[], np.ndarray | None]
    address: int
    size: int
    finalizer: Any


def _owner(array: np.ndarray) -> np.ndarray | None:
    """Return the plain array that owns the memory, if `array` is all of it."""
    owner = array
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    plain = type(owner) is np.ndarray and owner.base is None and owner.flags.owndata
    return owner if plain and owner.nbytes == array.nbytes else None


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])
