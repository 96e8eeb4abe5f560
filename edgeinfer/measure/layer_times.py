"""`measure_layers`: the latency of each layer by the runtime's own profiler, under the names of the model."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.backends.registry import reference_backend
from edgeinfer.backends.reports import LayerTime
from edgeinfer.devices.profile import Target
from edgeinfer.display import Table
from edgeinfer.feeds.choose import choose_feeds
from edgeinfer.feeds.shapes import InputShape, Shapes, describe_inputs
from edgeinfer.graph.build import compile_model
from edgeinfer.measure.timing import timing_options
from edgeinfer.model.model import Model, ModelSource
from edgeinfer.runtime.open import load
from edgeinfer.runtime.session import Session
from edgeinfer.values import as_tuple

__all__ = ["LayerLatencies", "LayerLatency", "measure_layers"]

_SECONDS = 0.3  # to run for, where `runs` is not given
_RUNS = (16, 48)  # at least and at most
# What a kernel's type says of the operator with the weight that it implements.
_WORK = (
    (("conv",), frozenset({"Conv", "ConvTranspose"})),
    (("gemm", "matmul", "fullyconnected", "matrixmultiply"), frozenset({"Gemm", "MatMul"})),
)
_WORKING = frozenset().union(*(operators for _, operators in _WORK))
_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})


@final
@attrs.frozen(kw_only=True)
class LayerLatency:
    """One layer as the runtime executed it.

    Attributes:
        node: The ONNX node that it stands for: the one with the weight, if there is one. Empty for what the
            runtime added itself, such as a change of layout.
        op_type: That node's operator, or the runtime's type.
        us: Microseconds of one inference.
        layer: The runtime's name of it.
        kernel: The runtime's type or implementation of it.
        fused: The other ONNX nodes in it, as far as the runtime tells.
    """

    node: str
    op_type: str
    us: float
    layer: str
    kernel: str
    fused: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)


@final
@attrs.frozen(kw_only=True)
class LayerLatencies:
    """The latency of each layer of a model.

    Attributes:
        where: The backend and device.
        layers: In execution order.
        runs: Inferences that the figures are from: the mean of the fastest quarter.
        threads: Threads of the runtime; 0 was its own choice.
        inputs: The shapes that were run, and where each size is from.
        notes: What else must be said.
    """

    where: str
    layers: tuple[LayerLatency, ...] = attrs.field(converter=as_tuple)
    runs: int
    threads: int
    inputs: tuple[InputShape, ...] = attrs.field(default=(), converter=as_tuple)
    notes: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)

    @property
    def total_us(self) -> float:
        """The sum over all layers. What the runtime spends between them is not in it."""
        return sum(layer.us for layer in self.layers)

    @property
    def by_node(self) -> dict[str, float]:
        """Microseconds by the name of the ONNX node; what stands for no node is under the empty name."""
        found: dict[str, float] = {}
        for layer in self.layers:
            found[layer.node] = found.get(layer.node, 0.0) + layer.us
        return found

    def to_dict(self) -> dict[str, object]:
        """Return the figures as JSON-compatible values."""
        return {
            **attrs.asdict(self),
            "inputs": [each.to_dict() for each in self.inputs],
            "total_us": self.total_us,
        }

    def table(self) -> Table:
        """Return one row a layer, in execution order."""
        total = self.total_us or 1.0
        rows = [
            (
                layer.node or f"({layer.layer})",
                layer.op_type,
                layer.kernel,
                f"{layer.us:.1f}",
                f"{100 * layer.us / total:.1f}",
            )
            for layer in self.layers
        ]
        footer = [f"{self.total_us:.1f} µs in all", f"{self.runs} runs of {describe_inputs(self.inputs)}"]
        return Table(
            title=f"Latency by layer in {self.where}",
            columns=("node", "operator", "kernel", "µs", "%"),
            rows=rows,
            footer="; ".join([*footer, *self.notes]),
        )

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table().to_html()


def measure_layers(
    model: ModelSource,
    feeds: Any = None,
    *,
    target: Target | str | None = None,
    threads: int = 1,
    runs: int | None = None,
    shapes: Shapes | None = None,
    batch: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> LayerLatencies:
    """Time each layer of a model on a target, by the profiler of its runtime.

    A profiler slows small layers down, so compare its figures with each other, not with a latency.

    Args:
        model: The model.
        feeds: What to run: the first feed of it, as for `benchmark`. None: made up from the signature.
        target: Where to measure; None for ONNX Runtime.
        threads: Threads within an operator, for backends with such an option; 0 leaves it to the runtime.
        runs: How many inferences; None for about 0.3 s of them.
        shapes: As for `benchmark`.
        batch: As for `benchmark`.
        options: Options of the backend beside the threads.

    Returns:
        The layers; none, and a note, where the backend has no profiler.

    Raises:
        InputError: The feeds do not fit, or a size is missing that is not that of the batch.
        BackendUnavailableError: The target's backend is not on this machine.
        CompileError: It refuses the model.
    """
    loaded = Model.load(model)
    parsed = Target.parse(target or reference_backend().name)
    chosen = choose_feeds(feeds, loaded.signature, shapes=shapes, batch=batch)
    feed = chosen.feeds[0]
    timed = timing_options(parsed.backend, threads=threads)
    device = parsed.device or None
    artifact = compile_model(
        loaded, parsed.backend, device=device, options={**(timed or {}), **(options or {})}, trial=False
    )
    with load(artifact) as session:
        count = runs if runs is not None else _runs_for(session, feed)
        times = session.profile(feed, runs=count)
        where = f"{session.backend}:{session.device}"
    graph = _Names(loaded.ir.graph)
    return LayerLatencies(
        where=where,
        layers=[_as_layer(time, graph) for time in times],
        runs=count,
        threads=threads if timed else 0,
        inputs=chosen.inputs,
        notes=[*chosen.notes, *(() if times else (f"backend {parsed.backend!r} has no profiler",))],
    )


def _runs_for(session: Session, feed: Mapping[str, np.ndarray]) -> int:
    taken = []
    for _ in range(2):
        started = time.perf_counter()
        session.infer(feed)
        taken.append(time.perf_counter() - started)
    least, most = _RUNS
    return int(min(most, max(least, _SECONDS / min(taken))))


class _Names:
    """The nodes of a graph by their names, and by those of the tensors that they make."""

    def __init__(self, graph: ir.Graph) -> None:
        self.nodes: dict[str, ir.Node] = {}
        self.makers: dict[str, ir.Node] = {}
        self.position: dict[ir.Node, int] = {}
        for node in ir.traversal.RecursiveGraphIterator(graph):
            self.position[node] = len(self.position)
            if node.name:
                self.nodes.setdefault(node.name, node)
            for value in node.outputs:
                if value.name:
                    self.makers.setdefault(value.name, node)

    def find(self, names: Iterable[str]) -> list[ir.Node]:
        """Return the nodes that the names stand for, in the graph's order."""
        found = (self.nodes.get(name) or self.makers.get(name) for name in names)
        return sorted({node for node in found if node is not None}, key=self.position.__getitem__)


def _as_layer(time: LayerTime, graph: _Names) -> LayerLatency:
    nodes = graph.find(time.onnx_names)
    kind = time.op_type.lower()
    operators = next((ops for words, ops in _WORK if any(word in kind for word in words)), frozenset[str]())
    if nodes and operators and not any(node.op_type in operators for node in nodes):
        above = _above(nodes, operators)
        nodes = [*([above] if above is not None else []), *nodes]
    chosen = next((node for node in nodes if node.op_type in operators), None)
    chosen = chosen or next((node for node in nodes if node.op_type not in _QUANTIZERS), None)
    chosen = chosen or (nodes[0] if nodes else None)
    return LayerLatency(
        node=(chosen.name or "") if chosen is not None else "",
        op_type=chosen.op_type if chosen is not None else time.op_type,
        us=time.us,
        layer=time.name,
        kernel=time.kernel or time.op_type,
        fused=[node.name or "" for node in nodes if node is not chosen],
    )


def _above(nodes: Iterable[ir.Node], operators: frozenset[str]) -> ir.Node | None:
    """Return the nearest node of such an operator that the nodes, which a kernel took in, follow from."""
    front = deque(nodes)
    seen = set(front)
    while front:
        for value in front.popleft().inputs:
            node = value.producer() if value is not None else None
            if node is None or node in seen:
                continue
            if node.op_type in operators:
                return node
            if node.op_type not in _WORKING:
                seen.add(node)
                front.append(node)
    return None
