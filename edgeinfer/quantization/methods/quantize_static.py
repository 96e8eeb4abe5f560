"""Post-training quantization of weights and activations, with ranges from calibration."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar, cast, final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.backends.dialect import QDQDialect
from edgeinfer.calibration.observers import Observer, RangeObserver, RangesObserver, make_observer
from edgeinfer.calibration.statistics import Needs, as_statistics
from edgeinfer.devices.profile import Target
from edgeinfer.errors import CalibrationError, PreconditionError
from edgeinfer.graph.infer_shapes import infer_shapes
from edgeinfer.model.model import Model
from edgeinfer.numerics.qparams import QParams, weight_qparams
from edgeinfer.quantization.placement.dialects import dialect_of, known_dialects
from edgeinfer.quantization.placement.fused_kernels import WEIGHT, Region
from edgeinfer.quantization.placement.placement import Placement, place
from edgeinfer.quantization.placement.pointwise import pointwise_as_gemm
from edgeinfer.quantization.placement.prepare import prepare
from edgeinfer.quantization.qdq.insert import Range, insert_qdq
from edgeinfer.quantization.qdq.marks import REFERENCE_KEY, quantized_for, refuse_half, refuse_quantized
from edgeinfer.quantization.qdq.noted_scale import noted_scale
from edgeinfer.transforms.contract import GraphTransform, ReportBuilder
from edgeinfer.transforms.options import require_nodes
from edgeinfer.values import as_frozenset

__all__ = ["QuantizeStatic"]

_FLOAT8 = ("float8e4m3fn",)


@final
@attrs.frozen
class QuantizeStatic(GraphTransform):
    """Quantize weights and activations (W8A8), with Q/DQ placed as the target's runtime wants it.

    The float model is kept in memory as the result's reference for later correction. Fold batch
    normalizations first (`FuseBatchNorm`).

    Args:
        calibration: Representative feeds; see `edgeinfer.calibration.calibration`.
        target: Where the model will run; None for ONNX Runtime.
        method: How ranges are found: `minmax`, `moving_average`, `percentile`, `entropy` or `mse`.
        keep_float: Names of nodes that stay in float.
        activation_dtype: The dtype of activations; None for the dialect's own.
        weight_bits: Bits of the weights, 2 to 8; they are stored as int8.
        per_channel: One scale for each output channel of a weight, instead of one for all.
        ranges: Lowest and highest values by tensor name that are known already; only the other tensors are
            calibrated.

    Raises:
        CalibrationError: There is no calibration, or it does not fit.
        PreconditionError: The model is quantized already, or computes in float16, or the target cannot run
            the chosen dtype.
    """

    idempotent: ClassVar[bool] = True

    calibration: Any = attrs.field(default=None, eq=False)
    target: Target | str | QDQDialect | None = attrs.field(default=None, kw_only=True)
    method: str = attrs.field(default="mse", kw_only=True)
    keep_float: Collection[str] = attrs.field(default=(), kw_only=True, converter=as_frozenset)
    activation_dtype: str | None = attrs.field(default=None, kw_only=True)
    weight_bits: int = attrs.field(
        default=8, kw_only=True, validator=[attrs.validators.ge(2), attrs.validators.le(8)]
    )
    per_channel: bool = attrs.field(default=True, kw_only=True)
    ranges: Mapping[str, Range] | None = attrs.field(default=None, kw_only=True, eq=False, repr=False)

    names_layers = True

    @property
    def min_opset(self) -> int:  # type: ignore[override]
        """The opset that Q/DQ of the chosen dtype needs."""
        dtype = self.activation_dtype or "uint8"
        return 19 if dtype in _FLOAT8 else 21 if dtype.endswith("16") else 13

    def rewrite(self, model: ir.Model, report: ReportBuilder, /) -> None:
        """Place, calibrate, emit."""
        already = quantized_for(model)
        if already is not None:
            report.skip(
                "",
                f"the model is quantized already, for {already}; RetargetQDQ rewrites it for another runtime",
            )
            return
        refuse_quantized(model)
        names = (node.name for node in model.graph.all_nodes())
        require_nodes(self.keep_float, names, "QuantizeStatic, keep_float")
        if self.calibration is None:
            raise CalibrationError(
                "QuantizeStatic needs calibration data.",
                expected="representative feeds: mappings from input name to array, the batch axis included",
                found="calibration=None",
                hint="Pass QuantizeStatic(calibration=[{...}, ...]), or optimize(..., calibration=...). "
                "QuantizeDynamic and QuantizeWeights need none.",
            )
        dialect = dialect_of(self.target)
        if self.activation_dtype in _FLOAT8 and dialect.fold_relu:
            # Measured in ONNX Runtime 1.32: it drops a ReLU in front of a float8 quantizer, as if float8 had
            # no negative values, and the outputs are garbage (-19 dB where the graph itself gives 15 dB).
            raise PreconditionError(
                f"{dialect.name} does not run float8 activations correctly.",
                expected="an integer dtype, or a target that has float8, such as tensorrt",
                found=f"activation_dtype={self.activation_dtype!r}",
                hint="Use activation_dtype='int16', or None for the target's own.",
            )
        prepare(model)
        statistics = as_statistics(self.calibration, Model(model).signature)
        shapes = _shapes(model, statistics) if dialect.costs is not None else None
        same = pointwise_as_gemm(model, dialect, keep_float=self.keep_float, shapes=shapes)
        placement = place(model, dialect, keep_float=self.keep_float, skip=report.skip, shapes=shapes)
        if not placement.regions:
            refuse_half(model)
            report.skip("", f"nothing in the graph runs in integers in {dialect.name}; it stays in float")
            return
        reference = model.clone()
        ranges = dict(self.ranges or {})
        ranges |= {new: ranges[old] for new, old in same.items() if old in ranges}
        if not ranges.keys() >= {name for group in placement.groups for name in group}:
            needs = self._needs(Model(reference), placement, known=ranges, shared=statistics.shared)
            found = statistics.gather(Model(reference), needs)
            ranges |= {name: self._range(observers[0], dialect) for name, observers in found.items()}
            for note in statistics.notes:
                report.note(note)
        insert_qdq(
            model,
            placement,
            ranges,
            self._weight_qparams,
            dialect,
            report,
            activation_dtype=self.activation_dtype,
            keep_float=self.keep_float,
        )
        model.meta[REFERENCE_KEY] = reference

    def declare(self, model: Model, /) -> Needs:
        """Return what ranges are found from, so that it can be gathered with what others need.

        Args:
            model: A float model whose values have names and shapes (`placement.prepare`).
        """
        dialect = dialect_of(self.target)
        placement = place(model.ir, attrs.evolve(dialect, costs=None), keep_float=self.keep_float)
        return self._needs(model, placement, known={}, shared=True)

    def _needs(
        self, model: Model, placement: Placement, *, known: Collection[str], shared: bool
    ) -> dict[str, list[Observer]]:
        """Return observers of all tensors that any dialect quantizes, so that RetargetQDQ has the ranges."""
        names = [name for group in placement.groups for name in group]
        for each in known_dialects():
            everything = attrs.evolve(each, costs=None, quantize_outputs=True)
            other = place(model.ir, everything, keep_float=self.keep_float)
            names += [str(value.name) for value in other.tensors]
        new = (name for name in dict.fromkeys(names) if name not in known)
        return {name: [self._observer(shared=shared)] for name in new}

    def _observer(self, *, shared: bool) -> Observer:
        if shared and self.method != "moving_average":
            return RangesObserver()
        dialect = dialect_of(self.target)
        dtype = self.activation_dtype or dialect.activation_dtype
        return make_observer(self.method, dtype=dtype, symmetric=dialect.activation_symmetric)

    def _range(self, observer: Observer, dialect: QDQDialect) -> Range:
        if isinstance(observer, RangesObserver):
            dtype = self.activation_dtype or dialect.activation_dtype
            return observer.by(self.method, dtype=dtype, symmetric=dialect.activation_symmetric)
        return cast("RangeObserver", observer).range()

    def _weight_qparams(self, region: Region) -> QParams:
        axis = region.axis if self.per_channel else None
        if self.activation_dtype in _FLOAT8:
            return weight_qparams(region.weight, axis, str(self.activation_dtype), True)
        qparams = weight_qparams(region.weight, axis, "int8", True)
        noted = noted_scale(region.node.inputs[WEIGHT], self.weight_bits)
        if noted is not None and noted.shape == qparams.scale.shape:
            return attrs.evolve(qparams, scale=noted)
        narrower = 127 / (2 ** (self.weight_bits - 1) - 1)
        return attrs.evolve(qparams, scale=(qparams.scale * narrower).astype(np.float32))


def _shapes(model: ir.Model, feeds: Iterable[Mapping[str, np.ndarray]]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors that the first feed leads to, to judge costs by."""
    feed = next(iter(feeds), None)
    sized = model.clone()
    for value in sized.graph.inputs:
        if feed is not None and value.name is not None and value.name in feed and not value.is_initializer():
            value.shape = ir.Shape(np.shape(feed[value.name]))
    for node in sized.graph:
        for value in node.outputs:
            value.shape = None
    infer_shapes(sized, data_prop=True, outputs=True)
    values = [*sized.graph.inputs, *(value for node in sized.graph for value in node.outputs)]
    known = [(value, value.shape) for value in values if value.shape is not None and value.shape.is_static()]
    return {str(value.name): tuple(shape.numpy()) for value, shape in known}
