"""Post-training quantization of weights and activations, with ranges from calibration."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, final

import attrs
import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgeinfer.backends.base import QDQDialect
from edgeinfer.devices.profile import Target
from edgeinfer.errors import CalibrationError
from edgeinfer.model import Model
from edgeinfer.quantization.calibration import as_calibration, observe
from edgeinfer.quantization.dialects import dialect_of
from edgeinfer.quantization.emit import Emitter
from edgeinfer.quantization.observers import make_observer
from edgeinfer.quantization.placement import Placement, place
from edgeinfer.quantization.qparams import QParams, activation_qparams, weight_qparams
from edgeinfer.quantization.regions import BIAS, DATA, WEIGHT, Region
from edgeinfer.quantization.state import DIALECT_KEY, REFERENCE_KEY, quantized_for, refuse_half, refuse_quantized
from edgeinfer.transforms.base import GraphTransform, ReportBuilder

__all__ = ["QuantizeStatic"]

_FLOAT8 = ("float8e4m3fn", "float8e5m2")
# An int32 bias must leave room for the accumulator beside it.
_MAX_BIAS = 2.0**30


@final
@attrs.frozen
class QuantizeStatic(GraphTransform):
    """Quantize weights and activations (W8A8), with Q/DQ placed as the target's runtime wants it.

    The float model is kept in memory as the result's reference for later correction. Fold batch
    normalizations first (`FuseBatchNorm`).

    Args:
        calibration: Representative feeds; see `edgeinfer.quantization.calibration`.
        target: Where the model will run; None for ONNX Runtime.
        method: How ranges are found: `minmax`, `moving_average`, `percentile`, `entropy` or `mse`.
        keep_float: Names of nodes that stay in float.
        activation_dtype: The dtype of activations; None for the dialect's own.
        weight_bits: Bits of the weights, 2 to 8; they are stored as int8.
        per_channel: One scale for each output channel of a weight, instead of one for all.

    Raises:
        CalibrationError: There is no calibration, or it does not fit.
        PreconditionError: The model is quantized already, or computes in float16.
    """

    idempotent: ClassVar[bool] = True

    calibration: Any = attrs.field(default=None, eq=False)
    target: Target | str | None = attrs.field(default=None, kw_only=True)
    method: str = attrs.field(default="mse", kw_only=True)
    keep_float: Collection[str] = attrs.field(default=(), kw_only=True, converter=frozenset)
    activation_dtype: str | None = attrs.field(default=None, kw_only=True)
    weight_bits: int = attrs.field(default=8, kw_only=True, validator=[attrs.validators.ge(2), attrs.validators.le(8)])
    per_channel: bool = attrs.field(default=True, kw_only=True)

    @property
    def min_opset(self) -> int:  # type: ignore[override]
        """The opset that Q/DQ of the chosen dtype needs."""
        dtype = self.activation_dtype or "uint8"
        return 19 if dtype in _FLOAT8 else 21 if dtype.endswith("16") else 13

    def rewrite(self, model: ir.Model, report: ReportBuilder, /) -> None:
        """Place, calibrate, emit."""
        already = quantized_for(model)
        if already is not None:
            report.skip("", f"the model is quantized already, for {already}; RetargetQDQ rewrites it for another runtime")
            return
        refuse_quantized(model)
        if self.calibration is None:
            raise CalibrationError(
                "QuantizeStatic needs calibration data.",
                expected="representative feeds: mappings from input name to array, the batch axis included",
                found="calibration=None",
                hint="Pass QuantizeStatic(calibration=[{...}, ...]), or optimize(..., calibration=...). "
                "QuantizeDynamic and QuantizeWeights need none.",
            )
        dialect = dialect_of(self.target)
        _name_values(model)
        _infer_types(model)
        placement = place(model, dialect, keep_float=self.keep_float, skip=report.skip)
        if not placement.regions:
            refuse_half(model)
            report.skip("", f"nothing in the graph runs in integers in {dialect.name}; it stays in float")
            return
        reference = model.clone()
        ranges = self._calibrate(Model(reference), placement, dialect)
        _write(model, placement, ranges, self, dialect, report)
        model.metadata_props[DIALECT_KEY] = dialect.name
        model.meta[REFERENCE_KEY] = reference

    def _calibrate(self, model: Model, placement: Placement, dialect: QDQDialect) -> dict[str, QParams]:
        dtype = self.activation_dtype or dialect.activation_dtype
        symmetric = dialect.activation_symmetric
        observers = {str(value.name): make_observer(self.method) for value in placement.tensors}
        observe(model, as_calibration(self.calibration), observers)
        found: dict[str, QParams] = {}
        for group in placement.groups:
            bounds = [observers[name].range() for name in group]
            low, high = min(low for low, _ in bounds), max(high for _, high in bounds)
            shared = activation_qparams(low, high, dtype, symmetric)
            found |= dict.fromkeys(group, shared)
        return found


def _write(
    model: ir.Model,
    placement: Placement,
    ranges: Mapping[str, QParams],
    options: QuantizeStatic,
    dialect: QDQDialect,
    report: ReportBuilder,
) -> None:
    emitter = Emitter(model.graph)
    written: dict[tuple[str, int], ir.Value] = {}
    scales: dict[ir.Node, QParams] = {}
    for region in placement.regions:  # before the activations: those reroute the inputs
        node = region.node
        data, source = node.inputs[DATA], node.inputs[WEIGHT]
        assert data is not None
        assert source is not None
        qparams = _weight_qparams(region, ranges[str(data.name)], options, dialect)
        key = str(source.name), region.axis
        if key not in written or dialect.quantize_bias:
            name = str(source.name) if key not in written else f"{source.name}_{node.name}"
            written[key] = emitter.constant(name, qparams.quantize(region.weight), qparams)
        node.replace_input_with(WEIGHT, written[key])
        scales[node] = qparams
        if dialect.quantize_bias:
            _write_bias(emitter, region, ranges[str(data.name)], qparams)
        report.apply(node, f"{node.op_type} in integers")
    for value, uses in placement.tensors.items():
        emitter.activation(value, ranges[str(value.name)], uses)
    _remove_unused(model)


def _weight_qparams(
    region: Region, data: QParams, options: QuantizeStatic, dialect: QDQDialect
) -> QParams:
    qparams = weight_qparams(
        region.weight, axis=region.axis, bits=options.weight_bits, per_channel=options.per_channel
    )
    bias = _bias(region)
    if bias is None or not dialect.quantize_bias:
        return qparams
    # A channel of tiny weights and a large bias would overflow int32: its weights take a larger scale.
    least = np.abs(bias) / (_MAX_BIAS * float(data.scale))
    least = least if options.per_channel else least.max()
    return attrs.evolve(qparams, scale=np.maximum(qparams.scale, least).astype(np.float32))


def _bias(region: Region) -> np.ndarray | None:
    from edgeinfer.quantization.constants import constant_value

    node = region.node
    if len(node.inputs) <= BIAS or region.node.op_type == "MatMul":
        return None
    bias = constant_value(node.inputs[BIAS])
    channels = region.weight.shape[region.axis]
    return bias if bias is not None and bias.shape == (channels,) else None


def _write_bias(emitter: Emitter, region: Region, data: QParams, weight: QParams) -> None:
    bias = _bias(region)
    if bias is None:
        return
    scale = (np.float32(data.scale) * weight.scale).astype(np.float32)
    stored = np.rint(bias.astype(np.float64) / scale).astype(np.int32)
    axis = None if scale.ndim == 0 else 0
    qparams = QParams(scale=scale, zero_point=np.zeros(scale.shape, np.int32), dtype="int32", axis=axis)
    source = region.node.inputs[BIAS]
    assert source is not None
    name = f"{source.name}_{region.node.name}"
    region.node.replace_input_with(BIAS, emitter.constant(name, stored, qparams))


def _name_values(model: ir.Model) -> None:
    """Values that a runtime is to show during calibration need names."""
    for node in model.graph:
        for index, value in enumerate(node.outputs):
            if value.name is None:
                value.name = f"{node.name}_output_{index}"


def _infer_types(model: ir.Model) -> None:
    """Infer dtypes and shapes of intermediate values; the signature stays as it is declared."""
    declared = [(value, value.shape) for value in (*model.graph.inputs, *model.graph.outputs)]
    common_passes.ShapeInferencePass()(model)
    for value, shape in declared:
        value.shape = shape


def _remove_unused(model: ir.Model) -> None:
    common_passes.RemoveUnusedNodesPass()(model)
