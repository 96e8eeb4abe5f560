"""Rounding weights by their effect on the layer's output; see `gptq` for the algorithm.

It aims at the layer's own float weights for the inputs that it has in the float model: those of the quantized
one differ by less than the damping, and would have to be gathered again for each attempt. Aiming at the float
model's *output* instead, so that the weights would make good the inputs' errors, too, was tried in one pass
for all layers and lost 8 to 20 dB: each layer corrects for errors that the layers before it have corrected
already.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from typing import Any, TypeAlias, cast, final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.calibration.moments import MomentObserver
from edgeinfer.calibration.observers import Observer
from edgeinfer.calibration.statistics import Needs, as_statistics
from edgeinfer.errors import CalibrationError
from edgeinfer.graph.im2col import layout_of_node
from edgeinfer.graph.weights import LINEAR_OPS, Linear, constant, find_linear, set_constant
from edgeinfer.model.model import Model, ModelSource
from edgeinfer.numerics.gptq import Grid, output_error, round_weights
from edgeinfer.numerics.pair_sums import partners
from edgeinfer.quantization.methods.float_pair import find_reference, is_quantized, quantized_layers
from edgeinfer.quantization.qdq.marks import pairs_in_int16
from edgeinfer.quantization.qdq.noted_scale import SCALE_KEY
from edgeinfer.quantization.qdq.pair_safe import weight_neighbours
from edgeinfer.transforms.contract import GraphTransform, ReportBuilder

__all__ = ["SCALE_KEY", "RoundWeights"]


# A moment of K rows is estimated well from so many times K columns, whatever number of feeds they come from:
# twice as many brought nothing in seven models.
_COLUMNS_PER_ROW = 12
_MIN_COLUMNS = 8192
_MAX_BYTES = 1 << 30  # of moments held at a time; more layers take more passes

# A layer's node, and digests of its weights before and of their grid.
_Memo: TypeAlias = "MutableMapping[tuple[str, str, str], np.ndarray]"


@final
@attrs.frozen
class RoundWeights(GraphTransform):
    """Round the weights of Conv, Gemm and MatMul so that the layers' outputs change least (GPTQ).

    On a Q/DQ graph the quantized weights are rounded again from those of the float model, on the same
    scales, for the inputs that the layers have in the float model. On a float graph the weights are
    moved onto the grid of `bits`, one scale a channel, and stay float; the scales are kept in the tensors'
    metadata under `edgeinfer.scale`.

    Apply it before CorrectBias.

    Args:
        calibration: Representative feeds.
        bits: Bits of the grid on a float graph, 2 to 8; a Q/DQ graph has its own.
        reference: The float model of a Q/DQ graph; None for the one that QuantizeStatic left in memory.
        damping: Added to the diagonal of the inputs' moments, as a part of its mean.
        memo: Keeps the integers of the layers of one float model and one calibration, for a search that
            rounds most of them again; None for none.
    """

    calibration: Any = attrs.field(default=None, eq=False)
    bits: int = attrs.field(
        default=8, kw_only=True, validator=[attrs.validators.ge(2), attrs.validators.le(8)]
    )
    reference: ModelSource | None = attrs.field(default=None, kw_only=True, eq=False)
    damping: float = attrs.field(default=0.01, kw_only=True, validator=attrs.validators.gt(0))
    memo: _Memo | None = attrs.field(default=None, kw_only=True, eq=False, repr=False)

    names_layers = True
    reports_on = frozenset(("Conv", "Gemm", "MatMul"))

    def rewrite(self, model: ir.Model, report: ReportBuilder, /) -> None:
        """Round the weights."""
        if self.calibration is None:
            raise CalibrationError(
                "RoundWeights needs calibration data.", hint="RoundWeights(calibration=feeds)"
            )
        if is_quantized(model):
            self._rewrite_quantized(model, report)
        else:
            self._rewrite_float(model, report)

    def _rewrite_quantized(self, model: ir.Model, report: ReportBuilder) -> None:
        reference = find_reference(model, self.reference, wanted_by="RoundWeights")
        frozen = Model(reference.clone())
        layers = list(quantized_layers(model, reference, report))
        quantized = {layer.reference.node.name or "": layer.quantized for layer in layers}
        limited = pairs_in_int16(model)
        for linear, moment in self._moments(frozen, [layer.reference.owned() for layer in layers]):
            own = quantized[linear.node.name or ""]
            self._round(own, linear.array(), moment, report, limited=limited)

    def _rewrite_float(self, model: ir.Model, report: ReportBuilder) -> None:
        frozen = Model(model.clone())
        layers: list[Linear] = []
        for node in model.graph:
            if node.op_type not in LINEAR_OPS:
                continue
            linear = find_linear(node)
            if isinstance(linear, str):
                report.skip(node, linear)
            elif _on_grid(linear, self.bits):
                report.skip(node, f"its weights lie on a grid of {self.bits} bits already")
            else:
                layers.append(linear)
        for linear, moment in self._moments(frozen, [linear.owned() for linear in layers]):
            self._snap(linear, moment)
            report.apply(linear.node, f"weights moved onto a grid of {self.bits} bits")

    def declare(self, model: Model, /) -> Needs:
        """Return the moments of the layers' inputs, as many as fit the memory together; see `Declares`."""
        layers = [find_linear(node) for node in model.ir.graph if node.op_type in LINEAR_OPS]
        chunk = next(_chunks(layer for layer in layers if not isinstance(layer, str)), [])
        statistics = as_statistics(self.calibration, model.signature)
        needs: dict[str, list[Observer]] = {}
        for linear in chunk:
            needs.setdefault(linear.input.name or "", []).append(_observer(linear, statistics.count))
        return needs

    def _moments(self, model: Model, layers: Sequence[Linear]) -> Iterator[tuple[Linear, np.ndarray]]:
        """Yield each layer with `X Xᵀ / n` of its inputs, in as few passes as memory allows.

        Args:
            model: The float model.
            layers: Of a copy of it, where they may have been changed.
        """
        statistics = as_statistics(self.calibration, model.signature)
        for number, chunk in enumerate(_chunks(layers)):
            needs: dict[str, list[Observer]] = {}
            places = []
            for linear in chunk:
                observers = needs.setdefault(linear.input.name or "", [])
                observers.append(_observer(linear, statistics.count))
                places.append((linear, len(observers) - 1))
            found = statistics.gather(model, needs, keep=number == 0)
            for linear, place in places:
                moments = cast("MomentObserver", found[linear.input.name or ""][place])
                yield linear, moments.hessian

    def _round(
        self,
        linear: Linear,
        targets: np.ndarray,
        moment: np.ndarray,
        report: ReportBuilder,
        *,
        limited: bool,
    ) -> None:
        stored = constant(linear.weight)
        weights = linear.to_matrices(targets)
        grid = _stored_grid(linear, stored)
        if limited:
            pairs = weight_neighbours(linear.node, stored.shape)
            grid = attrs.evolve(grid, partners=partners(pairs, weights.shape[2]) if pairs.size else None)
        integers = self._rounded(linear, stored, weights, moment, grid)
        new = linear.from_matrices(integers, stored.shape).astype(stored.dtype)
        if np.array_equal(new, stored):
            report.skip(linear.node, "its weights are rounded best already")
            return
        before = linear.to_matrices(stored.astype(np.float32))
        ratio = _ratio(weights, grid, before, integers, moment)
        changed = float(np.mean(new != stored))
        set_constant(linear.weight, new)
        report.apply(
            linear.node, f"{changed:.1%} of the weights rounded otherwise, output error x {ratio:.2f}"
        )

    def _rounded(
        self, linear: Linear, stored: np.ndarray, weights: np.ndarray, moment: np.ndarray, grid: Grid
    ) -> np.ndarray:
        if self.memo is None:
            return round_weights(weights, moment, grid, damping=self.damping)
        key = (linear.node.name or "", _digest(stored), _digest(grid.scale))
        if key not in self.memo:
            self.memo[key] = round_weights(weights, moment, grid, damping=self.damping)
        return self.memo[key]

    def _snap(self, linear: Linear, moment: np.ndarray) -> None:
        array = constant(linear.weight)
        weights = linear.to_matrices(array.astype(np.float32))
        high = 2 ** (self.bits - 1) - 1
        scale = np.abs(weights).max(axis=2, keepdims=True) / np.float32(high)
        scale = np.where(scale > 0, scale, np.float32(1)).astype(np.float32)
        grid = Grid(scale=scale, low=-high, high=high)
        integers = round_weights(weights, moment, grid, damping=self.damping)
        new = linear.from_matrices(grid.dequantize(integers), array.shape)
        set_constant(linear.weight, new.astype(array.dtype))
        tensor = linear.weight.const_value
        assert tensor is not None
        facts = {"scale": scale.reshape(-1).tolist(), "axis": linear.channel_axis, "bits": self.bits}
        tensor.metadata_props[SCALE_KEY] = json.dumps(facts)


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _observer(linear: Linear, feeds: int) -> MomentObserver:
    layout = layout_of_node(linear.node, constant(linear.weight).shape)
    columns = max(_COLUMNS_PER_ROW * layout.rows, _MIN_COLUMNS)
    return MomentObserver(layout, max_columns=-(-columns // max(feeds, 1)), coarse=True)


def _chunks(layers: Iterable[Linear]) -> Iterator[list[Linear]]:
    held = 0
    chunk: list[Linear] = []
    for linear in layers:
        groups, _, inputs = linear.to_matrices(linear.array()).shape
        size = 8 * groups * inputs * inputs
        if chunk and held + size > _MAX_BYTES:
            yield chunk
            held, chunk = 0, []
        held += size
        chunk.append(linear)
    if chunk:
        yield chunk


def _stored_grid(linear: Linear, stored: np.ndarray) -> Grid:
    scale, zero_point = linear.grid()
    info = ir.DataType.from_numpy(stored.dtype)
    high = 2 ** (int(info.bitwidth) - 1) - 1
    low, high = (-high, high) if info.is_signed() else (0, 2 * high + 1)
    # A coarser grid in a wider type, such as 4 bits stored as int8, must not be left.
    used = int(np.abs(stored.astype(np.int32)).max(initial=0))
    if info.is_signed():
        while high > 1 and used <= high // 2:
            high //= 2
        low = -high
    full = np.broadcast_to(scale, stored.shape)
    zeros = np.broadcast_to(zero_point, stored.shape)
    return Grid(scale=linear.to_matrices(full), zero_point=linear.to_matrices(zeros), low=low, high=high)


def _ratio(
    weights: np.ndarray, grid: Grid, before: np.ndarray, after: np.ndarray, moment: np.ndarray
) -> float:
    """Return the output's root mean square error after, as a part of that before."""
    old = output_error(weights, grid.dequantize(before), moment).sum()
    new = output_error(weights, grid.dequantize(after), moment).sum()
    return float(np.sqrt(max(new, 0.0) / old)) if old > 0 else 1.0


def _on_grid(linear: Linear, bits: int) -> bool:
    tensor = linear.weight.const_value
    text = tensor.metadata_props.get(SCALE_KEY) if tensor is not None else None
    return text is not None and int(json.loads(text)["bits"]) == bits
