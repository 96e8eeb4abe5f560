"""What int8 gains layer by layer, by the runtime's own profiler.

For each layer in int8: the time of its node, and of what its kernel takes in, in the float model, less the
same in the int8 model with the quantizers that run beside it. Quantizers that only appear, or vanish, when
one layer changes are not in it, so a decision by these figures is checked on the whole model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.backends.registry import get_backend
from edgeinfer.devices.profile import Target
from edgeinfer.display import Table
from edgeinfer.errors import EdgeInferError
from edgeinfer.measure.layer_times import LayerLatencies, measure_layers
from edgeinfer.model.model import Model
from edgeinfer.quantization.placement.dialects import dialect_of
from edgeinfer.quantization.placement.fused_kernels import DATA, WEIGHT, Region
from edgeinfer.quantization.placement.placement import place
from edgeinfer.quantization.placement.pointwise import follow_gemms
from edgeinfer.quantization.placement.prepare import prepare
from edgeinfer.values import as_tuple

__all__ = ["LayerGain", "LayerGains", "costs_of_float", "integer_nodes", "layer_gains"]

# Less than this is the profiler's rounding, and other work on the machine.
_NOISE_US, _NOISE_SHARE = 0.5, 0.05


@final
@attrs.frozen(kw_only=True)
class LayerGain:
    """One layer that runs in int8.

    Attributes:
        node: The name of its ONNX node.
        op_type: Its operator.
        float_us: Its time in the float model, in microseconds.
        int8_us: Its time in the int8 model, with the quantizers beside it.
    """

    node: str
    op_type: str
    float_us: float
    int8_us: float

    @property
    def gain_us(self) -> float:
        """What int8 saves; below 0 the layer is slower in int8."""
        return self.float_us - self.int8_us

    @property
    def slower(self) -> bool:
        """Whether it is slower in int8 by more than the measurement may be wrong."""
        return -self.gain_us > max(_NOISE_US, _NOISE_SHARE * self.float_us)


@final
@attrs.frozen(kw_only=True)
class LayerGains:
    """The layers of a model that run in int8, with their times.

    Attributes:
        where: The backend and device.
        layers: In the graph's order.
        float_us: All layers of the float model together, those without a weight, too.
        int8_us: All layers of the int8 model together.
    """

    where: str
    layers: tuple[LayerGain, ...] = attrs.field(converter=as_tuple)
    float_us: float
    int8_us: float

    def nodes_within(self, us: float) -> set[str]:
        """Return the names of the layers in which int8 gains at most so many microseconds."""
        return {layer.node for layer in self.layers if layer.gain_us <= us}

    def to_dict(self) -> dict[str, object]:
        """Return the figures as JSON-compatible values."""
        layers = [{**attrs.asdict(layer), "gain_us": layer.gain_us} for layer in self.layers]
        return {**attrs.asdict(self), "layers": layers}

    def table(self) -> Table:
        """Return one row a layer."""
        rows = [
            (each.node, each.op_type, f"{each.float_us:.1f}", f"{each.int8_us:.1f}", f"{each.gain_us:+.1f}")
            for each in self.layers
        ]
        return Table(
            title=f"What int8 gains in {self.where}",
            columns=("node", "operator", "float µs", "int8 µs", "gain µs"),
            rows=rows,
            footer=f"all layers: {self.float_us:.1f} -> {self.int8_us:.1f} µs",
        )

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table().to_html()


def integer_nodes(model: ir.Model) -> set[str]:
    """Return the names of the nodes whose weight is stored in integers."""
    found = set()
    for node in model.graph:
        weight = node.inputs[WEIGHT] if len(node.inputs) > WEIGHT else None
        producer = weight.producer() if weight is not None else None
        if producer is not None and producer.op_type == "DequantizeLinear" and node.name:
            source = producer.inputs[0]
            if source is not None and source.is_initializer():
                found.add(node.name)
    return found


def layer_gains(
    model: Model, quantized: Model, feed: Mapping[str, np.ndarray], *, target: Target | str | None = None
) -> LayerGains | None:
    """Profile a model in float and in int8.

    Args:
        model: The float model.
        quantized: What `QuantizeStatic` made of it.
        feed: Inputs of both.
        target: Where to measure; None for ONNX Runtime.

    Returns:
        The gains, or None where the target's backend is not here or has no profiler.
    """
    parsed = Target.parse(target or "onnxruntime")
    if not get_backend(parsed.backend).capabilities().available:
        return None
    try:
        before, after = (measure_layers(each, feed, target=parsed) for each in (model, quantized))
    except EdgeInferError:
        return None  # the device is not here, or it takes one of the two only
    if not before.layers or not after.layers:
        return None
    graph = model.copy_ir()
    prepare(graph)
    follow_gemms(graph, quantized.ir)
    integer = integer_nodes(quantized.ir)
    dialect = attrs.evolve(dialect_of(parsed), costs=None, quantize_outputs=True)
    regions = [region for region in place(graph, dialect).regions if region.node.name in integer]
    return LayerGains(
        where=before.where,
        layers=_compare(regions, before, after),
        float_us=before.total_us,
        int8_us=after.total_us,
    )


def costs_of_float(macs: Mapping[str, float], gains: LayerGains | None) -> dict[str, float]:
    """Return what it costs to give each layer back to float; 0 where that is not known.

    Args:
        macs: The layers' multiply-accumulates by node, 0 where they are not known.
        gains: What int8 gains, where that was measured.

    Returns:
        By node: microseconds where there are gains, for layers that are not among them by their
        multiply-accumulates; without any, the multiply-accumulates.
    """
    if gains is None:
        return dict(macs)
    measured = {layer.node: max(layer.gain_us, _NOISE_US) for layer in gains.layers}
    known = [name for name in measured if macs.get(name)]
    per_mac = sum(measured[name] for name in known) / max(1.0, sum(macs[name] for name in known))
    return {name: measured.get(name, macs[name] * per_mac) for name in macs}


def _compare(regions: list[Region], before: LayerLatencies, after: LayerLatencies) -> list[LayerGain]:
    float_us, int8_us = before.by_node, after.by_node
    # A quantizer between two layers is half of either's.
    sharers = Counter(name for region in regions for name in _tensors(region))
    found = []
    for region in regions:
        nodes = [node.name or "" for node in (region.node, *region.chain)]
        quantizers = sum(
            int8_us.get(f"{name}_{kind}", 0.0) / sharers[name]
            for name in _tensors(region)
            for kind in ("QuantizeLinear", "DequantizeLinear")
        )
        found.append(
            LayerGain(
                node=nodes[0],
                op_type=region.node.op_type,
                float_us=sum(float_us.get(name, 0.0) for name in nodes),
                int8_us=sum(int8_us.get(name, 0.0) for name in nodes) + quantizers,
            )
        )
    return found


def _tensors(region: Region) -> set[str]:
    data = region.node.inputs[DATA]
    return {value.name for value in (data, region.output) if value is not None and value.name}
