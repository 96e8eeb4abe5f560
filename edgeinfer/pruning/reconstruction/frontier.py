"""Running a graph from the middle: what is before a cut is computed once and kept.

Layers are refitted one after another, and each needs new inputs. Running the entire model for each would
take time that grows with the square of its depth. A *cut* is a tensor through which everything passes (the
end of a residual block): once all layers before it are done, the model can be run from there.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import final

import attrs
import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgeinfer.feeds.feeds import FeedIterable
from edgeinfer.graph.subgraphs import read_values
from edgeinfer.graph.taps import probe
from edgeinfer.model.model import Model
from edgeinfer.runtime.session import Session

__all__ = ["Frontier", "cuts", "run", "tap"]

_MAX_BYTES = 128 << 20
_MAX_WORKERS = 8


def tap(model: ir.Model, names: Sequence[str], *, start: str | None = None) -> Session:
    """Return a session that computes the named tensors of a graph and nothing that they do not need.

    Args:
        model: The graph.
        names: Tensors of it.
        start: A cut: this tensor is fed instead of computed.
    """
    work = model.clone()
    values = {v.name: v for v in work.graph.inputs} | {v.name: v for n in work.graph for v in n.outputs}
    work.graph.outputs.clear()
    if start is not None:
        old = values[start]
        fed = ir.Value(name=start, type=old.type, shape=ir.Shape([None] * len(old.shape or ())))
        old.name = f"{start}__before"
        old.replace_all_uses_with(fed)
        values[start] = fed
        work.graph.inputs.append(fed)
    for name in names:
        value = values[name]
        if value.is_graph_input():  # a runtime may refuse an input as an output
            node = ir.node("Identity", [value])
            node.outputs[0].name = f"{name}__tap"
            node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
            work.graph.append(node)
            value = node.outputs[0]
        work.graph.outputs.append(value)
    common_passes.RemoveUnusedNodesPass()(work)
    for value in [v for v in work.graph.inputs if not v.uses()]:
        work.graph.inputs.remove(value)
    # One thread a run: how a runtime splits its sums among threads decides their last bits.
    return probe(Model(work), [v.name or "" for v in work.graph.outputs], threads=1)


def run(session: Session, feeds: FeedIterable) -> Iterator[dict[str, np.ndarray]]:
    """Yield the tapped tensors for each feed, in order. Feeds run side by side, each on one thread."""
    names = {spec.name for spec in session.signature.inputs}

    def infer(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = session.infer({k: v for k, v in feed.items() if k in names})
        return {name.removesuffix("__tap"): array for name, array in outputs.items()}

    running: deque[Future[dict[str, np.ndarray]]] = deque()
    workers = min(_MAX_WORKERS, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        for feed in feeds:
            running.append(pool.submit(infer, feed))
            if len(running) > workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def cuts(graph: ir.Graph) -> dict[str, int]:
    """Return the tensors through which all that follows passes, with the index of the node that makes them.

    Inputs of the graph may be read anywhere: they are at hand.
    """
    nodes = list(graph)
    last: dict[ir.Value, int] = {}
    for index, node in enumerate(nodes):
        for value in read_values(node):
            if value.producer() is not None:
                last[value] = index
    last.update(dict.fromkeys((v for v in graph.outputs if v.producer() is not None), len(nodes)))
    result: dict[str, int] = {}
    live: set[ir.Value] = set()
    for index, node in enumerate(nodes):
        live |= {value for value in node.outputs if last.get(value, -1) > index}
        live = {value for value in live if last[value] > index}
        if len(live) == 1:
            (only,) = live
            if only.name and only.shape is not None and only.name not in result:
                result[only.name] = index
    return result


@final
@attrs.define(eq=False)
class Frontier:
    """The feeds of a model at the last cut that was reached.

    Attributes:
        feeds: The calibration, or what it has become at the cut.
        start: The cut's tensor; None at the model's inputs.
        max_bytes: How much may be kept.
    """

    feeds: FeedIterable
    start: str | None = None
    max_bytes: int = _MAX_BYTES

    def copy(self) -> Frontier:
        """Return a frontier at the same cut that moves on its own."""
        return Frontier(self.feeds, self.start, self.max_bytes)

    def advance(self, model: ir.Model, cut: str) -> bool:
        """Move to a later cut if what must be kept fits; return whether it does."""
        if cut == self.start:
            return True
        kept: list[Mapping[str, np.ndarray]] = []
        size = 0
        with tap(model, [cut], start=self.start) as session:
            for feed, values in zip(self.feeds, run(session, self.feeds), strict=True):
                size += values[cut].nbytes
                if size > self.max_bytes:
                    return False
                inputs = {k: v for k, v in feed.items() if k != self.start}
                kept.append({**inputs, cut: values[cut]})
        self.feeds, self.start = kept, cut
        return True

    def tap(self, model: ir.Model, names: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        """Yield the named tensors, all at or behind the cut, for each feed."""
        with tap(model, names, start=self.start) as session:
            yield from run(session, self.feeds)
