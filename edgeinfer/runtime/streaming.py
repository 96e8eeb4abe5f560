"""Several requests in flight, their outputs in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = ["stream_in_order"]

Feed = TypeVar("Feed")
Taken = TypeVar("Taken")
Output = TypeVar("Output")


def stream_in_order(
    source: Iterator[Feed],
    take: Callable[[Feed], Taken],
    run: Callable[[Taken], Output],
    *,
    in_flight: int,
    check: Callable[[], None],
) -> Iterator[Output]:
    """Yield `run(take(feed))` for each feed of the source.

    Args:
        source: Read in the caller's thread, at most `in_flight` feeds ahead of the output consumed last. When
            reading or taking one fails, the outputs of those before it come first, then the error.
        take: Checks and copies a feed, in the caller's thread, before the source is read again.
        run: Runs in other threads.
        in_flight: How many may run at once, at least 1.
        check: Raises in a forked child, where the threads that run are not.
    """
    from concurrent.futures import ThreadPoolExecutor  # with logging, for sessions that stream

    pending: deque[Future[Output]] = deque()
    failure: Exception | None = None
    process = os.getpid()
    pool = ThreadPoolExecutor(in_flight, thread_name_prefix="edgeinfer-stream")
    try:
        while True:
            check()
            try:
                taken = take(next(source))
            except StopIteration:
                break
            except Exception as error:  # raised below, behind the outputs that come before it
                failure = error
                break
            if len(pending) == in_flight:
                yield pending.popleft().result()
                check()
            pending.append(pool.submit(run, taken))
        while pending:
            check()
            yield pending.popleft().result()
    finally:
        if os.getpid() == process:  # a forked child has none of the pool's threads, and perhaps its locks
            for future in pending:
                future.cancel()
            pool.shutdown()
    if failure is not None:
        raise failure
