"""The shapes of activations that costs are counted with: from a run of one sample, or from the graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.errors import PreconditionError
from edgeinfer.feeds.feeds import FeedIterable
from edgeinfer.pruning.reconstruction.batches import one_sample
from edgeinfer.pruning.reconstruction.frontier import run, tap

__all__ = ["ObservedShapes", "observe_shapes"]

_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@final
@attrs.frozen(kw_only=True, eq=False)
class ObservedShapes:
    """Shapes of one sample.

    Attributes:
        tensors: The shapes of the layers' inputs and outputs, by name.
        inputs: The shapes of the model's inputs that they follow from.
        source: Where they are from, for the report.
    """

    tensors: Mapping[str, tuple[int, ...]]
    inputs: Mapping[str, tuple[int, ...]]
    source: str

    def describe(self) -> str:
        """Return one line for people."""
        shapes = ", ".join(f"{name} {shape}" for name, shape in self.inputs.items())
        return f"sizes are counted for {shapes}, {self.source}"


def observe_shapes(model: ir.Model, feeds: FeedIterable, *, needed: bool = True) -> ObservedShapes:
    """Return the shapes that matter for cost.

    Args:
        model: The graph, its shapes inferred.
        feeds: The calibration, of which the first sample is run; or nothing.
        needed: Whether sizes other than that of the batch matter; else unknown ones count as 1.

    Raises:
        PreconditionError: There is no sample, and a size that matters is not in the graph.
    """
    nodes = [node for node in model.graph if node.op_type in _PRODUCTS]
    values = {v.name: v for node in nodes for v in (node.inputs[0], node.outputs[0]) if v is not None}
    tensors = {name: v for name, v in values.items() if v.const_value is None and name}
    first = next(iter(feeds), None)
    if first is not None:
        sample = one_sample(model.graph, first)
        with tap(model, list(tensors)) as session:
            outputs = next(run(session, [sample]))
        shapes = {name: array.shape for name, array in outputs.items()}
        inputs = {name: np.shape(array) for name, array in sample.items()}
        return ObservedShapes(tensors=shapes, inputs=inputs, source="the first sample of the calibration")
    if needed:
        _require_sizes(tensors)
    return ObservedShapes(
        tensors={name: _sizes(value) for name, value in tensors.items() if value.shape is not None},
        inputs={value.name or "": _sizes(value) for value in model.graph.inputs},
        source="as the graph declares them, for a batch of one",
    )


def _require_sizes(tensors: Mapping[str, ir.Value]) -> None:
    for name, value in tensors.items():
        shape = value.shape
        if shape is None or not all(isinstance(size, int) for size in list(shape)[1:]):
            raise PreconditionError(
                "The cost cannot be counted: a size is not known.",
                where=f"tensor {name!r}",
                expected="static sizes, but for the batch",
                found="a tensor of any rank" if shape is None else str(list(shape)),
                hint="Give calibration=, or fix the sizes first: FixShapes({'name': (1, ...)}).",
            )


def _sizes(value: ir.Value) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else 1 for size in value.shape or ())
