"""Running a model that OpenVINO compiled."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np

__all__ = ["OpenVINORunner"]


@final
class OpenVINORunner:
    """Runs one `CompiledModel`. Each call takes an infer request from a pool, so threads do not wait."""

    thread_safe = True

    def __init__(self, ov: Any, compiled: Any, device: str) -> None:
        self._ov = ov
        self._compiled = compiled
        self._device = device
        # OpenVINO drops inputs that nothing reads.
        self._inputs = tuple((index, _name(port)) for index, port in enumerate(compiled.inputs))
        self._pool: deque[Any] = deque()

    def run(self, feeds: Mapping[str, np.ndarray], /) -> Sequence[np.ndarray]:
        """Run once; see `Runner`."""
        try:
            request = self._pool.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        result = request.infer({name: feeds[name] for _, name in self._inputs})
        self._pool.append(request)
        return list(result.values())

    def close(self) -> None:
        """Free the compiled model."""
        self._pool.clear()
        del self._compiled


def _name(port: Any) -> str:
    name: str = port.get_any_name()
    return name
