"""How noisy each layer is by itself, from its rounding: which are worth measuring at the outputs."""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

import numpy as np

from edgeinfer.backends.dialect import QDQDialect
from edgeinfer.calibration.observers import RangesObserver
from edgeinfer.calibration.statistics import Statistics
from edgeinfer.graph.constants import constant_value
from edgeinfer.graph.weights import find_linear
from edgeinfer.model.model import Model
from edgeinfer.quantization.placement.fused_kernels import DATA
from edgeinfer.quantization.placement.placement import place

__all__ = ["local_noise"]


def local_noise(
    prepared: Model,
    quantized: Model,
    dialect: QDQDialect,
    statistics: Statistics,
    names: Collection[str],
) -> dict[str, float]:
    """Return how coarsely the inputs and weights of layers are rounded, as a share of their power, by node.

    A tensor in steps of d has noise of d² / 12 a value, and a weight's rounding is known. How much of it
    reaches the outputs is not in it.

    Args:
        prepared: The float model that was quantized.
        quantized: What was made of it.
        dialect: The target's.
        statistics: Of the float model; it knows the distributions.
        names: The layers, by their nodes.
    """
    nodes = {node.name or "": node for node in quantized.ir.graph}
    regions = [
        r for r in place(prepared.ir, dialect).regions if r.node.name in names and r.node.name in nodes
    ]
    tensors = {str(data.name) for region in regions if (data := region.node.inputs[DATA]) is not None}
    seen = statistics.gather(prepared, {name: [RangesObserver()] for name in tensors})
    power = {name: _mean_square(cast("RangesObserver", found[0])) for name, found in seen.items()}
    noise = {}
    for region in regions:
        name, data = region.node.name or "", region.node.inputs[DATA]
        tensor = str(data.name) if data is not None else ""
        scale = quantized.ir.graph.initializers.get(f"{tensor}_scale")
        step = constant_value(scale)
        share = 0.0 if step is None else float(step.max()) ** 2 / 12 / max(power[tensor], 1e-30)
        layer = find_linear(nodes[name])
        if not isinstance(layer, str) and layer.dequantize is not None:
            array = region.weight.astype(np.float64)
            share += float(np.square(layer.array() - array).sum() / max(np.square(array).sum(), 1e-30))
        noise[name] = share
    return noise


def _mean_square(observer: RangesObserver) -> float:
    centres, counts = observer.histogram.populated()
    return float((np.square(centres) * counts).sum() / max(observer.histogram.total, 1))
