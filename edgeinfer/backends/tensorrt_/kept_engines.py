"""Engines that were built for a search, kept while the process lives.

A search for the best precision loads one model several times: to judge it, to time its layers, to time it
against one model and then against another. Each engine takes tens of seconds to build.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import TypeAlias, final

from edgeinfer.backends.tensorrt_.record import BuildRecord

__all__ = ["ENGINES", "KeptEngines"]

# An engine, in memory or in a file, and how it was built.
Built: TypeAlias = "tuple[bytes | Path, BuildRecord]"

_MOST_BYTES = 512 << 20


@final
class KeptEngines:
    """The engines that were used last, by what they were built from, up to a number of bytes."""

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._engines: OrderedDict[Hashable, Built] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, build: Callable[[], Built]) -> Built:
        """Return an engine that is kept, or build it.

        Args:
            key: All that decides what is built.
            build: Builds it.
        """
        with self._lock:
            found = self._engines.pop(key, None)
        found = found or build()  # without the lock: it takes minutes
        with self._lock:
            self._engines[key] = found
            while sum(_size(engine) for engine, _ in self._engines.values()) > self._most_bytes:
                self._engines.popitem(last=False)
        return found


def _size(engine: bytes | Path) -> int:
    return engine.stat().st_size if isinstance(engine, Path) else len(engine)


ENGINES = KeptEngines()
