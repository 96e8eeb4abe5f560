"""Whether integers are worth their quantizers, by a runtime's kernel costs.

A coarse model on purpose: it has to tell a convolution that gains from one that does not, not to predict
latencies. What it does not know (a symbolic shape) counts as worth it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Protocol, final

import attrs
import onnx_ir as ir

from edgeinfer.backends.dialect import KernelCosts
from edgeinfer.quantization.placement.fused_kernels import DATA, Region

__all__ = ["Judge"]

# Below this, an integer convolution cannot copy whole channels at once.
_FEW_CHANNELS = 8


class _Plan(Protocol):
    regions: list[Region]

    def borders(self) -> Iterable[tuple[ir.Value, int, int]]: ...


@final
@attrs.frozen
class Judge:
    """Judges regions and plans.

    Args:
        costs: The runtime's.
        shapes: Shapes by tensor name where the graph's own are symbolic.
    """

    costs: KernelCosts
    shapes: Mapping[str, tuple[int, ...]]
    # Plans are compared many times, and what a region costs is the same in all of them.
    _sizes: dict[ir.Value, int | None] = attrs.field(factory=dict, init=False, repr=False)
    _regions: dict[Region, tuple[float, float]] = attrs.field(factory=dict, init=False, repr=False)

    def size(self, value: ir.Value | None) -> int | None:
        """Return the number of elements of a tensor at batch size 1 where the batch is symbolic, or None."""
        if value is None:
            return None
        if value not in self._sizes:
            self._sizes[value] = self._size(value)
        return self._sizes[value]

    def _size(self, value: ir.Value) -> int | None:
        if value.name is not None and value.name in self.shapes:
            return math.prod(self.shapes[value.name])
        if value.shape is None:
            return None
        dims = [dim if isinstance(dim, int) else None for dim in value.shape]
        if dims and dims[0] is None:
            dims[0] = 1
        return None if None in dims else math.prod(dim or 0 for dim in dims)

    def float_us(self, region: Region) -> float:
        """Return what a region costs in float."""
        return self._both(region)[0]

    def integer_us(self, region: Region) -> float:
        """Return what a region costs in integers, without quantizers around it."""
        return self._both(region)[1]

    def _both(self, region: Region) -> tuple[float, float]:
        if region not in self._regions:
            self._regions[region] = self._float_us(region), self._integer_us(region)
        return self._regions[region]

    def _float_us(self, region: Region) -> float:
        macs = self._macs(region) or 0
        rate = self.costs.float_depthwise_macs if _is_depthwise(region) else self.costs.float_macs
        reading = region.weight.size * self.costs.float_weight_us
        if region.node.op_type == "Conv" and region.weight.ndim == 3:
            reading *= 2  # one-dimensional convolutions have no weights packed for them
        return max(macs / rate, reading) + self.costs.float_call_us

    def _integer_us(self, region: Region) -> float:
        macs, outputs = self._macs(region), self.size(region.output)
        if macs is None or outputs is None:
            return 0.0
        costs = self.costs
        rate, gathered = costs.integer_macs, 0.0
        channels = region.weight.shape[0]
        if _is_depthwise(region):
            rate = costs.integer_ragged_macs if channels % costs.lanes else costs.integer_depthwise_macs
        elif region.node.op_type == "Conv" and region.weight.shape[1] < _FEW_CHANNELS:
            gathered = outputs / channels * math.prod(region.weight.shape[1:]) * costs.gather_us
        looked_up = sum(user.op_type in ("LeakyRelu", "Sigmoid") for user in region.output.consumers())
        stored = outputs * (costs.integer_store_us + looked_up * costs.table_us)
        computed = max(macs / rate, region.weight.size * costs.integer_weight_us)
        return computed + gathered + stored + costs.integer_call_us

    def gain_us(self, region: Region) -> float:
        """Return what integers save in a region, without quantizers around it."""
        return self.float_us(region) - self.integer_us(region)

    def border_us(self, region: Region) -> float:
        """Return what quantizing on both sides of a region would cost at most."""
        inputs, outputs = self.size(region.node.inputs[DATA]) or 0, self.size(region.output) or 0
        both = self.costs.quantize_us + self.costs.dequantize_us
        return (inputs + outputs) * both + 2 * self.costs.integer_call_us

    def total_us(self, plan: _Plan, every: Collection[Region]) -> float:
        """Return what all of `every` cost when those of the plan run in integers, with the quantizers."""
        chosen = set(plan.regions)
        total = 0.0
        for region in every:
            if region in chosen:
                total += self.integer_us(region)
            else:
                around = (self.size(region.node.inputs[DATA]) or 0) + (self.size(region.output) or 0)
                total += self.float_us(region) + bool(chosen) * around * self.costs.reorder_us
        for value, quantized, dequantized in plan.borders():
            elements = self.size(value) or 0
            total += quantized * (elements * self.costs.quantize_us + self.costs.float_call_us)
            producer = value.producer()
            if quantized and producer is not None and producer.op_type == "MaxPool":
                total += (self.size(producer.inputs[DATA]) or 0) * self.costs.pool_us
            total += dequantized * (elements * self.costs.dequantize_us + self.costs.float_call_us)
        return total

    def _macs(self, region: Region) -> float | None:
        """Return the multiply-accumulates of a region: per output element, the weights that it sees."""
        outputs = self.size(region.node.outputs[0])
        if outputs is None:
            return None
        weight = region.weight
        return outputs * weight.size / float(weight.shape[region.axis])


def _is_depthwise(region: Region) -> bool:
    return (
        region.node.op_type == "Conv"
        and region.weight.shape[1] == 1
        and region.weight.shape[0] > 1
        and (region.node.attributes.get("group") is not None and region.node.attributes["group"].as_int() > 1)
    )
