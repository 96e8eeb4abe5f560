"""`TensorSampler`: the values of inner tensors for one feed, a bounded number of bytes at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import final

import numpy as np

from edgeinfer.executor import probe, probe_sizes
from edgeinfer.model import Model
from edgeinfer.session import Session

__all__ = ["DEFAULT_MAX_BYTES", "TensorSampler"]

DEFAULT_MAX_BYTES = 256 << 20


@final
class TensorSampler:
    """Computes named tensors of a model; a context manager.

    The first feed is run once for the sizes of the tensors alone. If they need more than `max_bytes`, the
    tensors are dealt into groups with a session each. A later, larger feed is measured again.

    Args:
        model: The model.
        names: Tensors of its main graph. Graph inputs are taken from the feed.
        max_bytes: How many bytes of these tensors may exist at once. One tensor may exceed it alone.
        threads: Threads within an operator; 0 lets the runtime choose.
    """

    def __init__(
        self, model: Model, names: Sequence[str], *, max_bytes: int = DEFAULT_MAX_BYTES, threads: int = 0
    ) -> None:
        self._model = model
        inputs = {spec.name for spec in model.signature.inputs}
        self._inputs = [name for name in names if name in inputs]
        self._names = [name for name in dict.fromkeys(names) if name not in inputs]
        self._max_bytes = max_bytes
        self._threads = threads
        self._can_cut = _has_free_batch(model)
        self._planned_for = -1  # elements of the largest feed that the groups are known to hold for
        self._rows: int | None = None
        self._groups: list[tuple[str, ...]] = []
        self._sessions: list[Session] = []
        self._sizes: Session | None = None
        self.runs = 0
        self.notes: list[str] = []

    def tensors(self, feed: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the name and value of each tensor; a tensor of a cut batch comes in parts."""
        for name in self._inputs:
            yield name, feed[name]
        if not self._names:
            return
        elements = sum(array.size for array in feed.values())
        if elements > self._planned_for:
            self._plan(feed)
            self._planned_for = elements
        for part in self._parts(feed):
            for session in self._sessions:
                outputs = session.infer(part)
                self.runs += 1
                for name in list(outputs):
                    yield name, outputs.pop(name)

    def close(self) -> None:
        """Free the sessions."""
        for session in self._sessions:
            session.close()
        self._sessions = []
        if self._sizes is not None:
            self._sizes.close()
            self._sizes = None

    def __enter__(self) -> TensorSampler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _plan(self, feed: Mapping[str, np.ndarray]) -> None:
        if self._sizes is None:
            self._sizes = probe_sizes(self._model, self._names, threads=self._threads)
        sizes = dict(zip(self._names, self._bytes(feed), strict=True))
        total = sum(sizes.values())
        rows = self._rows_of(feed)
        if total > self._max_bytes and rows is not None and rows > 1:
            self._rows = max(1, rows * self._max_bytes // total)
            share = self._rows / rows
            sizes = {name: math.ceil(size * share) for name, size in sizes.items()}
        groups = _deal(sizes, self._max_bytes)
        if groups != self._groups:
            for session in self._sessions:
                session.close()
            self._groups = groups
            self._sessions = [probe(self._model, group, threads=self._threads) for group in groups]
            if len(groups) > 1:
                self.notes.append(
                    f"the observed tensors of one feed need {total / 1e6:.0f} MB; with at most "
                    f"{self._max_bytes / 1e6:.0f} MB at once, each feed is run {len(groups)} times"
                )

    def _bytes(self, feed: Mapping[str, np.ndarray]) -> list[int]:
        assert self._sizes is not None
        outputs = self._sizes.infer(feed)
        return [int(value) * 4 for value in outputs.values()]

    def _rows_of(self, feed: Mapping[str, np.ndarray]) -> int | None:
        """Return the batch size, if the feed may be cut along it."""
        if not self._can_cut:
            return None
        sizes = {array.shape[0] for array in feed.values() if array.ndim}
        return sizes.pop() if len(sizes) == 1 else None

    def _parts(self, feed: Mapping[str, np.ndarray]) -> Iterator[Mapping[str, np.ndarray]]:
        rows = self._rows_of(feed)
        if self._rows is None or rows is None or rows <= self._rows:
            yield feed
            return
        for start in range(0, rows, self._rows):
            yield {name: array[start : start + self._rows] for name, array in feed.items()}


def _has_free_batch(model: Model) -> bool:
    """Return whether the first axis of every input is one dynamic dimension."""
    first = {spec.shape[0] if spec.shape else 0 for spec in model.signature.inputs}
    return len(first) == 1 and not isinstance(next(iter(first)), int)


def _deal(sizes: Mapping[str, int], max_bytes: int) -> list[tuple[str, ...]]:
    """Deal tensors, in graph order, into groups of at most `max_bytes`."""
    groups: list[list[str]] = [[]]
    used = 0
    for name, size in sizes.items():
        if groups[-1] and used + size > max_bytes:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    return [tuple(group) for group in groups]
