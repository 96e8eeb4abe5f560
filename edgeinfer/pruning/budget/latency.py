"""A cost model of measured latency: each layer is timed on the target's backend at a few channel counts.

Counting multiply-accumulates misses what a runtime makes of them: blocked kernels round channels up, and thin
layers are bound by memory. So every layer is run alone at a grid of input and output channels, and the time
of any other count is interpolated. The sum over layers only says where time can be saved: whether a budget is
met is decided by the whole model's latency, measured.

On CPUs all timing is on one thread, and in processor time: other work on the machine hardly matters to it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.artifact.signature import Signature
from edgeinfer.backends.registry import reference_backend
from edgeinfer.devices.profile import Target
from edgeinfer.display import track
from edgeinfer.errors import PreconditionError
from edgeinfer.graph.build import compile_model
from edgeinfer.graph.channels.labels import dims
from edgeinfer.graph.weights import Linear
from edgeinfer.measure.timing import timing_clock, timing_options
from edgeinfer.model.model import Model
from edgeinfer.pruning.budget.allocate import step_of
from edgeinfer.pruning.budget.cost import Axis, CostModel
from edgeinfer.runtime.open import load

__all__ = ["latency_cost", "least_ms", "timing_target"]

_GRID_POINTS = 5
_LEAST_KEPT = 0.15
_RUNS = 12


@final
@attrs.frozen(kw_only=True, eq=False)
class _LatencyTerm:
    """The time of one layer, interpolated on a grid of output and input channels."""

    node: str
    out_axis: Axis
    in_axis: Axis
    outs: tuple[int, ...]
    ins: tuple[int, ...]
    times_ms: np.ndarray

    @property
    def axes(self) -> tuple[Axis, ...]:
        return self.out_axis, self.in_axis

    def value(self, removed: Mapping[str, int]) -> float:
        along = [
            np.interp(self.in_axis.size(removed), self.ins, row) if len(self.ins) > 1 else row[0]
            for row in self.times_ms
        ]
        return float(np.interp(self.out_axis.size(removed), self.outs, along) if len(along) > 1 else along[0])


def latency_cost(
    parameters: CostModel,
    layers: Sequence[Linear],
    shapes: Mapping[str, tuple[int, ...]],
    target: Target,
    multiple: int,
    *,
    progress: bool | None = None,
) -> CostModel:
    """Return a cost model whose terms are milliseconds.

    Args:
        parameters: The model of parameters, which knows how channel counts follow from groups.
        layers: The layers of the graph.
        shapes: The shapes of activations as seen in a run, by name.
        target: The backend and device to measure on.
        multiple: The multiple that channel counts keep; between two of them nothing is measured.
        progress: Show it.
    """
    sizes = {term.node: term.axes for term in parameters.terms}
    known: dict[object, np.ndarray] = {}
    terms: list[_LatencyTerm] = []
    for layer in track(layers, "timing layers", progress=progress):
        axes = sizes[layer.name]
        out_axis, in_axis = axes[layer.channel_axis], axes[layer.input_axis]
        outs, ins = _grid(out_axis, multiple), _grid(in_axis, multiple)
        seen = shapes.get(layer.input.name or "")
        key = (layer.kind, layer.groups, outs, ins, seen, str(layer.node.attributes))
        if key not in known:
            known[key] = np.array([[_time(layer, shapes, o, i, target) for i in ins] for o in outs])
        terms.append(
            _LatencyTerm(
                node=layer.name, out_axis=out_axis, in_axis=in_axis, outs=outs, ins=ins, times_ms=known[key]
            )
        )
    return attrs.evolve(parameters, terms=tuple(terms))


def timing_target(given: Target | None) -> Target:
    """Return the target to measure on: that of the reference backend where none was given."""
    return Target(backend=reference_backend().name) if given is None else given


def _grid(axis: Axis, multiple: int) -> tuple[int, ...]:
    """Return the sizes to measure: some of the multiples below the full size, and that itself."""
    full = axis.size({})
    if not axis.per_channel:
        return (full,)
    step = step_of(full, multiple)
    below = [size for size in range(step, full, step) if size >= _LEAST_KEPT * full]
    chosen = np.linspace(0, len(below) - 1, min(len(below), _GRID_POINTS - 1)).round().astype(int)
    return (*(below[index] for index in chosen), full)


def _time(layer: Linear, shapes: Mapping[str, tuple[int, ...]], outs: int, ins: int, target: Target) -> float:
    (least,) = least_ms([_alone(layer, shapes, outs, ins)], None, target, seconds=0.0)
    return least


def least_ms(
    models: Sequence[Model], feed: Mapping[str, np.ndarray] | None, target: Target, *, seconds: float
) -> list[float]:
    """Return the least latency of each model, run in turns. Other work can only add to it.

    On a CPU it is the processor time that one thread takes, which is the latency of an idle machine even
    where others are at work.

    Args:
        models: Models of one signature.
        feed: The input; None for zeros.
        target: The backend and device.
        seconds: How long to go on, about; at least a dozen runs of each are made.
    """
    options = timing_options(target.backend, threads=1)
    with contextlib.ExitStack() as stack:
        sessions = []
        for model in models:
            artifact = compile_model(model, target.backend, device=target.device or None)
            sessions.append(stack.enter_context(load(artifact, options=options)))
        clock = timing_clock(sessions, options)
        given = _zeros(sessions[0].signature) if feed is None else feed
        least = [np.inf] * len(sessions)
        ends, runs = time.monotonic() + seconds, 0
        while runs < _RUNS or time.monotonic() < ends:
            for index, session in enumerate(sessions):
                started = clock()
                session.infer(given)
                if runs > 1:  # the first ones fill caches
                    least[index] = min(least[index], 1e3 * (clock() - started))
            runs += 1
    return [float(value) for value in least]


def _zeros(signature: Signature) -> dict[str, np.ndarray]:
    """Return a feed of zeros, of a batch of one.

    Raises:
        PreconditionError: Another size is not known.
    """
    for spec in signature.inputs:
        if spec.shape is None or not all(isinstance(size, int) for size in spec.shape[1:]):
            raise PreconditionError(
                "The latency cannot be measured: a size of the input is not known.",
                where=f"input {spec.name!r}",
                expected="static sizes, but for the batch",
                found=spec.describe(),
                hint="Give calibration=, or fix the sizes first: FixShapes({'name': (1, ...)}).",
            )
    return {
        spec.name: np.zeros([size if isinstance(size, int) else 1 for size in spec.shape or ()], spec.dtype)
        for spec in signature.inputs
    }


def _alone(layer: Linear, shapes: Mapping[str, tuple[int, ...]], outs: int, ins: int) -> Model:
    """Return a model of one layer with so many channels, its weights random."""
    weight_shape = [int(d) for d in dims(layer.weight)]  # type: ignore[arg-type]
    weight_shape[layer.channel_axis], weight_shape[layer.input_axis] = outs, ins
    x_shape = [1, *(shapes.get(layer.input.name or "") or (1,))[1:]]
    channels = ins if layer.kind != "Conv" else ins * layer.groups
    attributes = dict(layer.node.attributes.items())
    if layer.groups > 1 and layer.kind == "Conv" and dims(layer.weight)[1] == 1:
        channels = outs
        attributes["group"] = ir.AttrInt64("group", outs)
    x_shape[1 if layer.is_conv else -1] = channels
    if layer.kind == "Gemm":
        attributes.pop("transA", None)
    rng = np.random.default_rng(0)
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(x_shape))
    array = (rng.standard_normal(weight_shape) / np.sqrt(np.prod(weight_shape[1:]) + 1)).astype(np.float32)
    weight = ir.Value(
        name="w",
        const_value=ir.tensor(array),
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape(array.shape),
    )
    node = ir.Node("", layer.node.op_type, [x, weight], attributes=list(attributes.values()))
    node.outputs[0].name = "y"
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    node.outputs[0].shape = ir.Shape([None] * len(dims(layer.node.outputs[0])))
    opset = layer.node.graph.opset_imports if layer.node.graph is not None else {"": 13}
    graph = ir.Graph(
        [x],
        [node.outputs[0]],
        nodes=[node],
        initializers=[weight],
        opset_imports={"": opset.get("", 13)},
        name="one",
    )
    return Model(ir.Model(graph, ir_version=8))
