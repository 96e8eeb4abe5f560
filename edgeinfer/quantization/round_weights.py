"""Rounding weights by their effect on the layer's output; see `gptq` for the algorithm."""

from __future__ import annotations

import json
from typing import Any, final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.errors import CalibrationError
from edgeinfer.model import ModelSource
from edgeinfer.quantization.gptq import Grid, output_error, reconstruct, round_weights
from edgeinfer.quantization.layer_moments import Moments, Probe, collect, unsupported
from edgeinfer.quantization.linear import LINEAR_OPS, Linear, constant, find_linear, set_constant
from edgeinfer.quantization.twin import Twin, find_reference, is_quantized
from edgeinfer.transforms.base import GraphTransform, ReportBuilder

__all__ = ["SCALE_KEY", "RoundWeights"]

# Metadata of a weight tensor that lies on a grid: {"scale": [...], "axis": int, "bits": int}.
SCALE_KEY = "edgeinfer.scale"


@final
@attrs.frozen
class RoundWeights(GraphTransform):
    """Round the weights of Conv, Gemm and MatMul so that the layers' outputs change least (GPTQ).

    On a Q/DQ graph the quantized weights are rounded anew from those of the float model, on the same scales, for
    the inputs that the layers have in the quantized model. On a float graph the weights are moved onto the
    grid of `bits`, one scale a channel, and stay float; the scales are kept in the tensors' metadata under
    `edgeinfer.scale`.

    Apply it before CorrectBias.

    Args:
        calibration: Representative feeds.
        bits: Bits of the grid on a float graph, 2 to 8; a Q/DQ graph has its own.
        reference: The float model of a Q/DQ graph; None for the one that QuantizeStatic left in memory.
        absorb: On a Q/DQ graph: aim at the float model's output from the quantized inputs, so that the weights
            make good a part of the inputs' errors, too.
        damping: Added to the diagonal of the inputs' moments, as a part of its mean.
    """

    calibration: Any = attrs.field(default=None, eq=False)
    bits: int = attrs.field(
        default=8, kw_only=True, validator=[attrs.validators.ge(2), attrs.validators.le(8)]
    )
    reference: ModelSource | None = attrs.field(default=None, kw_only=True, eq=False)
    absorb: bool = attrs.field(default=True, kw_only=True)
    damping: float = attrs.field(default=0.01, kw_only=True, validator=attrs.validators.gt(0))

    # On a Q/DQ graph the inputs' errors depend on the rounding of the layers before.
    idempotent = False

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
        twin = Twin(model, find_reference(model, self.reference, wanted_by="RoundWeights"))
        probes: dict[str, Probe] = {}
        targets: dict[str, np.ndarray] = {}
        for layer in twin.layers(report):
            name = layer.quantized.node.name or ""
            reason = unsupported(layer.quantized)
            if reason:
                report.skip(name, reason)
                continue
            probes[name] = Probe(
                layer=layer.quantized, wanted=layer.reference.output if self.absorb else None
            )
            targets[name] = layer.reference.array()
        nodes = {node.name or "": node for node in model.graph}
        for name, moments in collect(twin.model, probes, self.calibration):
            linear = find_linear(nodes[name])
            assert not isinstance(linear, str)
            stored = constant(linear.weight)
            weights = linear.to_matrices(targets[name])
            grid = _stored_grid(linear, stored)
            second, cross = moments.centred()
            if cross is not None:
                weights = reconstruct(weights, second, cross, damping=self.damping).astype(np.float32)
            integers = round_weights(weights, second, grid, damping=self.damping)
            new = linear.from_matrices(integers, stored.shape).astype(stored.dtype)
            if np.array_equal(new, stored):
                report.skip(name, "its weights are rounded best already")
                continue
            before = linear.to_matrices(stored.astype(np.float32))
            ratio = _ratio(weights, grid, before, integers, second)
            set_constant(linear.weight, new)
            changed = float(np.mean(new != stored))
            report.apply(name, f"{changed:.1%} of the weights rounded otherwise, output error x {ratio:.2f}")

    def _rewrite_float(self, model: ir.Model, report: ReportBuilder) -> None:
        copy = model.clone()
        probes: dict[str, Probe] = {}
        for node in copy.graph:
            if node.op_type not in LINEAR_OPS:
                continue
            linear = find_linear(node)
            reason = linear if isinstance(linear, str) else unsupported(linear)
            if reason or isinstance(linear, str):
                report.skip(node, reason or "")
            elif _on_grid(linear, self.bits):
                report.skip(node, f"its weights lie on a grid of {self.bits} bits already")
            else:
                probes[node.name or ""] = Probe(layer=linear)
        nodes = {node.name or "": node for node in model.graph}
        for name, moments in collect(copy, probes, self.calibration):
            linear = find_linear(nodes[name])
            assert not isinstance(linear, str)
            self._snap(linear, moments)
            report.apply(name, f"weights moved onto a grid of {self.bits} bits")

    def _snap(self, linear: Linear, moments: Moments) -> None:
        array = constant(linear.weight)
        weights = linear.to_matrices(array.astype(np.float32))
        high = 2 ** (self.bits - 1) - 1
        scale = np.abs(weights).max(axis=2, keepdims=True) / np.float32(high)
        scale = np.where(scale > 0, scale, np.float32(1)).astype(np.float32)
        grid = Grid(scale=scale, low=-high, high=high)
        integers = round_weights(weights, moments.second, grid, damping=self.damping)
        new = linear.from_matrices(grid.dequantize(integers), array.shape)
        set_constant(linear.weight, new.astype(array.dtype))
        tensor = linear.weight.const_value
        assert tensor is not None
        facts = {"scale": scale.reshape(-1).tolist(), "axis": linear.channel_axis, "bits": self.bits}
        tensor.metadata_props[SCALE_KEY] = json.dumps(facts)


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
