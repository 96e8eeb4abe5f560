"""A stopwatch for tests: times are what the test says, so that what hangs on them is decided the same way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import final

from edgeinfer.measure import LayerLatencies, LayerLatency
from edgeinfer.measure.speedup import Feed, NotMeasured, Speedup
from edgeinfer.model.model import Model
from edgeinfer.quantization.search.layer_gains import integer_nodes

__all__ = ["MadeUpTime"]


@final
class MadeUpTime:
    """A Stopwatch (`edgeinfer.measure.speedup`).

    Args:
        ratio: How many times as fast as its reference a candidate is, from the nodes that it has in integers.
        layers: The times of layers in microseconds, in the float model and in an int8 one.

    Attributes:
        compared: The nodes in integers of what was compared, the reference's first.
        shapes: Shapes of the feeds of the last comparison.
    """

    def __init__(
        self,
        ratio: Callable[[set[str]], float] = lambda _: 1.0,
        layers: tuple[Mapping[str, float], Mapping[str, float]] | None = None,
    ) -> None:
        self._ratio, self._layers = ratio, layers
        self.compared: list[tuple[set[str], set[str]]] = []
        self.shapes: list[tuple[int, ...]] = []

    def compare(
        self, reference: Model, candidate: Model, feeds: Sequence[Feed], *, seconds: float
    ) -> Speedup | NotMeasured:
        """Return the ratio that the test wants."""
        before, after = integer_nodes(reference.ir), integer_nodes(candidate.ir)
        self.compared.append((before, after))
        self.shapes = [array.shape for feed in feeds for array in feed.values()]
        ratio = self._ratio(after)
        return Speedup(ratio=ratio, reference_ms=1.0, candidate_ms=1.0 / ratio, where="made up")

    def layers(self, model: Model, feed: Feed) -> LayerLatencies | NotMeasured:
        """Return the times that the test wants."""
        if self._layers is None:
            return NotMeasured(reason="made up has no profiler")
        times = self._layers[1 if integer_nodes(model.ir) else 0]
        layers = [
            LayerLatency(node=node, op_type="", us=us, layer=node, kernel="") for node, us in times.items()
        ]
        return LayerLatencies(where="made up", layers=layers, runs=1, threads=1)
