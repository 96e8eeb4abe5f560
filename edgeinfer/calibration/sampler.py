"""`TensorSampler`: the values of inner tensors for one feed, a bounded number of bytes at a time.

Most of what calibration costs is not the observers but the exposing: a tensor that is an output is copied
into the plain layout and leaves the cache. On MobileNetV2 all inputs of convolutions together cost as much
as half a forward pass. So tensors whose observers only estimate a distribution take turns, and at each turn
the model is run only as far as they need.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TypeAlias, final

import numpy as np
import onnx_ir as ir

from edgeinfer.graph.taps import probe, probe_sizes
from edgeinfer.model.model import Model
from edgeinfer.runtime.machine import usable_cores
from edgeinfer.runtime.session import Session

__all__ = ["DEFAULT_MAX_BYTES", "TensorSampler"]

DEFAULT_MAX_BYTES = 256 << 20
# The error on held-out data of ranges by MSE, against that of ranges from all values (geometric mean over the
# tensors of MobileNetV2 and of SqueezeNet, 160 samples): 1.00 and 0.96 with two turns, 1.00 and 1.03 with
# three, 1.00 and 1.04 with four.
_MAX_TURNS = 3

_Group: TypeAlias = tuple[str, ...]
# Gives the name, the value and the weight of each tensor; see `TensorSampler.tensors`.
Job: TypeAlias = "Callable[[], list[tuple[str, np.ndarray, int]]]"


@final
class TensorSampler:
    """Computes named tensors of a model; a context manager.

    The first feed is run once for the sizes of the tensors alone. If they need more than `max_bytes`, the
    tensors are dealt into groups with a session each. A later feed that may need more is measured again.

    Args:
        model: The model.
        names: Tensors of its main graph. Graph inputs are taken from the feed.
        estimated: Those of which every k-th value is enough once `take_turns` was called.
        max_bytes: How many bytes of these tensors may exist at once. One tensor may exceed it alone.
        threads: How many feeds may be run at once, each on one thread: values that several threads add up
            depend on how many they are. 0 for one a core.
    """

    def __init__(
        self,
        model: Model,
        names: Sequence[str],
        *,
        estimated: Collection[str] = (),
        max_bytes: int = DEFAULT_MAX_BYTES,
        threads: int = 0,
    ) -> None:
        self._model = model
        inputs = {spec.name for spec in model.signature.inputs}
        self._inputs = [name for name in names if name in inputs]
        place = {v.name: i for i, node in enumerate(model.ir.graph) for v in node.outputs}
        self._names = sorted(set(names) - inputs, key=lambda name: place.get(name, 0))
        self._estimated = frozenset(estimated)
        self._dropped: frozenset[str] = frozenset()
        self._max_bytes = max_bytes
        self._threads = threads or usable_cores()
        self._can_cut = _has_free_batch(model)
        self._planned_for = -1  # elements of the largest feed that the groups are known to hold for
        self._rows: int | None = None
        self._taking_turns = False
        self._turns: list[list[_Group]] = []
        self._sessions: dict[_Group, Session] = {}
        self._measured: tuple[int, list[int]] = (-1, [])  # elements of a feed, and the tensors' bytes for it
        self._at_once = 1
        self.runs = 0
        self.notes: list[str] = []

    def take_turns(self, dropped: Collection[str] = ()) -> None:
        """From the next feed on, show each estimated tensor at every k-th feed only, k up to 3.

        Args:
            dropped: Tensors that are not to be shown any more.
        """
        self._taking_turns = True
        self._dropped = frozenset(dropped)
        self._planned_for = -1

    @property
    def taking_turns(self) -> bool:
        """Whether `take_turns` was called."""
        return self._taking_turns

    @property
    def turns(self) -> int:
        """How many feeds it takes to show every estimated tensor once."""
        return max(1, len(self._turns))

    def batch(self, feed: Mapping[str, np.ndarray]) -> int:
        """Return how many samples a feed has, as far as the model tells: 1 if its batch size is fixed."""
        return self._rows_of(feed) or 1

    def tensors(
        self, feed: Mapping[str, np.ndarray], index: int = 0
    ) -> Iterator[tuple[str, np.ndarray, int]]:
        """Yield name, value and weight of each tensor; a tensor of a cut batch comes in parts.

        Args:
            feed: The inputs.
            index: The number of the feed since `take_turns`. It decides whose turn it is.

        Yields:
            The weight is for how many feeds the value stands: k for an estimated tensor at its turn, else 1.
        """
        turn, weight = self._prepare(feed, index)
        self.runs += len(turn) * sum(1 for _ in self._parts(feed))
        yield from self._run(feed, turn, weight)

    def job(self, feed: Mapping[str, np.ndarray], index: int = 0) -> Job | None:
        """Return what gives all of `tensors` when called, in another thread, or None.

        None where the tensors of one feed need several runs, or those of two do not fit the memory.
        """
        turn, weight = self._prepare(feed, index)
        if self._at_once < 2 or len(turn) > 1 or len(list(self._parts(feed))) > 1:
            return None
        for group in turn:
            self._session(group)
        self.runs += len(turn)
        return lambda: list(self._run(feed, turn, weight))

    def at_once(self) -> int:
        """Return how many jobs may be under way, as far as memory and cores allow."""
        return self._at_once

    def _prepare(self, feed: Mapping[str, np.ndarray], index: int) -> tuple[list[_Group], int]:
        if not self._names:
            return [], 1
        elements = sum(array.size for array in feed.values())
        if elements > self._planned_for:
            self._plan(feed)
            self._planned_for = elements
        weight = len(self._turns)
        # Shifted in each round, so that data which repeats every k feeds does not meet the same tensors.
        turn = self._turns[(index + index // weight) % weight]
        return turn, weight

    def _run(
        self, feed: Mapping[str, np.ndarray], turn: list[_Group], weight: int
    ) -> Iterator[tuple[str, np.ndarray, int]]:
        for name in self._inputs:
            yield name, feed[name], 1
        for part in self._parts(feed):
            for group in turn:
                outputs = self._session(group).infer(part)
                for name in list(outputs):
                    yield name, outputs.pop(name), weight if name in self._estimated else 1

    def close(self) -> None:
        """Free the sessions."""
        for session in self._sessions.values():
            session.close()
        self._sessions = {}

    def __enter__(self) -> TensorSampler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _plan(self, feed: Mapping[str, np.ndarray]) -> None:
        sizes = dict(zip(self._names, self._bytes(feed), strict=True))
        total = sum(sizes.values())
        rows = self._rows_of(feed)
        if total > self._max_bytes and rows is not None and rows > 1:
            self._rows = max(1, rows * self._max_bytes // total)
            share = self._rows / rows
            sizes = {name: math.ceil(size * share) for name, size in sizes.items()}
        self._turns = [_deal(turn, self._max_bytes) for turn in self._take_apart(sizes)]
        self._at_once = max(1, min(self._threads, self._max_bytes // max(sum(sizes.values()), 1)))
        planned = {group for turn in self._turns for group in turn}
        for group in self._sessions.keys() - planned:
            self._sessions.pop(group).close()
        runs = max(map(len, self._turns))
        if runs > 1 and not self._taking_turns:
            self.notes.append(
                f"the observed tensors of one feed need {total / 1e6:.0f} MB; with at most "
                f"{self._max_bytes / 1e6:.0f} MB at once, each feed is run {runs} times"
            )

    def _take_apart(self, sizes: Mapping[str, int]) -> list[dict[str, int]]:
        """Return what is shown at each turn: stretches of the graph with about equal sizes.

        For an early stretch the runtime computes only the beginning of the model.
        """
        sizes = {name: size for name, size in sizes.items() if name not in self._dropped}
        estimated = [name for name in sizes if name in self._estimated]
        count = self._turn_count() if self._taking_turns and estimated else 1
        total = sum(sizes[name] for name in estimated)
        turn_of = {}
        before = 0
        for name in estimated:
            turn_of[name] = min(before * count // max(total, 1), count - 1)  # the last may be empty
            before += sizes[name]
        return [
            {name: size for name, size in sizes.items() if turn_of.get(name, turn) == turn}
            for turn in range(count)
        ]

    def _turn_count(self) -> int:
        weights = [value.const_value for value in self._model.ir.graph.initializers.values()]
        # Each turn has a session with weights of its own.
        size = sum(weight.nbytes for weight in weights if weight is not None)
        return max(1, min(_MAX_TURNS, self._max_bytes // max(size, 1)))

    def _session(self, group: _Group) -> Session:
        if group not in self._sessions:
            self._sessions[group] = probe(self._model, group, threads=1)
        return self._sessions[group]

    def _bytes(self, feed: Mapping[str, np.ndarray]) -> list[int]:
        elements = sum(array.size for array in feed.values())
        if self._measured[0] != elements:
            sizes = self._known_bytes(feed)
            if sizes is None:
                most = self._most_bytes(elements)
                if most is not None and sum(most) <= self._max_bytes:
                    return most
                # Closed at once: a session has weights and buffers of its own.
                with probe_sizes(self._model, self._names, threads=1) as session:
                    sizes = [int(value) * 4 for value in session.infer(feed).values()]
            self._measured = (elements, sizes)
        return self._measured[1]

    def _most_bytes(self, elements: int) -> list[int] | None:
        """Return what a feed with so many elements may need, by the one that was measured, or None.

        Tensors grow with the square of a sequence's length at most: a session to measure each longer one
        would take more time than all else.
        """
        measured, sizes = self._measured
        if measured <= 0:
            return None
        ratio = max(elements / measured, 1.0)
        return [math.ceil(size * ratio**2) for size in sizes]

    def _known_bytes(self, feed: Mapping[str, np.ndarray]) -> list[int] | None:
        """Return the bytes as far as the graph's own shapes tell, or None: it saves a session to measure."""
        graph = self._model.ir.graph
        known: dict[object, int] = {}
        for value in graph.inputs:
            if value.name is not None and value.name in feed and value.shape is not None:
                known |= {
                    dim.value: size
                    for dim, size in zip(value.shape, np.shape(feed[value.name]), strict=False)
                    if isinstance(dim, ir.SymbolicDim) and dim.value is not None
                }
        values = {value.name: value for node in graph for value in node.outputs}
        sizes = []
        for name in self._names:
            shape = values[name].shape if name in values else None
            dims = None if shape is None else [known.get(getattr(dim, "value", dim), dim) for dim in shape]
            if dims is None or not all(isinstance(dim, int) for dim in dims):
                return None
            sizes.append(4 * math.prod(dim for dim in dims if isinstance(dim, int)))
        return sizes

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


def _deal(sizes: Mapping[str, int], max_bytes: int) -> list[_Group]:
    """Deal tensors, in graph order, into groups of at most `max_bytes`; none makes no group."""
    groups: list[list[str]] = []
    used = 0
    for name, size in sizes.items():
        if not groups or used + size > max_bytes:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    return [tuple(group) for group in groups]
