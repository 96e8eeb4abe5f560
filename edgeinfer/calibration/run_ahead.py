"""Running several feeds at once, each on one thread, with results in the order of the feeds.

So nothing depends on how many cores there are, and all of them work.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeAlias, final

import numpy as np

from edgeinfer.calibration.sampler import TensorSampler
from edgeinfer.errors import CalibrationError

__all__ = ["RunAhead"]

Feed: TypeAlias = "Mapping[str, np.ndarray]"
Tensor: TypeAlias = tuple[str, np.ndarray, int]
Tensors: TypeAlias = list[Tensor]


@final
class RunAhead:
    """Runs some feeds at once, and shows what they give in the order of the feeds; a context manager.

    Args:
        sampler: Computes the tensors.
        show: Called with the number of the feed, and name, value and weight of each tensor.
        saw: Called with each feed whose tensors were shown.
    """

    def __init__(
        self,
        sampler: TensorSampler,
        show: Callable[[int, str, np.ndarray, int], None],
        saw: Callable[[Feed], None] | None = None,
    ) -> None:
        self._sampler, self._show, self._saw = sampler, show, saw
        self._pool: ThreadPoolExecutor | None = None
        self._pending: deque[tuple[int, Feed, Future[Tensors]]] = deque()

    def show(self, index: int, feed: Feed, turn: int) -> None:
        """Show a feed's tensors now, or when those before it are shown."""
        job = self._sampler.job(feed, turn)
        if job is None:
            self.finish()
            self._seen(index, feed, self._sampler.tensors(feed, turn))
            return
        self._pool = self._pool or ThreadPoolExecutor(thread_name_prefix="edgeinfer-calibrate")
        while len(self._pending) >= self._sampler.at_once():
            self._next()
        self._pending.append((index, feed, self._pool.submit(job)))

    def finish(self) -> None:
        """Show all that is under way."""
        while self._pending:
            self._next()

    def _next(self) -> None:
        index, feed, future = self._pending.popleft()
        self._seen(index, feed, future.result())

    def _seen(self, index: int, feed: Feed, tensors: Iterable[Tensor]) -> None:
        for name, array, weight in tensors:
            self._show(index, name, array, weight)
        if self._saw is not None:
            self._saw(feed)

    def __enter__(self) -> RunAhead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # What was read before an interruption counts.
            if not isinstance(error, CalibrationError):
                self.finish()
        finally:
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)
