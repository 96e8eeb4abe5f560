"""Rewriting a quantized model for another runtime, with the scales that it has."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import ClassVar, final

import attrs
import onnx_ir as ir

from edgeinfer.backends.dialect import QDQDialect
from edgeinfer.devices.profile import Target
from edgeinfer.errors import PreconditionError
from edgeinfer.numerics.qparams import QParams, weight_qparams
from edgeinfer.quantization.placement.dialects import dialect_of
from edgeinfer.quantization.placement.fused_kernels import WEIGHT, Region
from edgeinfer.quantization.placement.placement import Placement, place
from edgeinfer.quantization.placement.pointwise import pointwise_as_gemm
from edgeinfer.quantization.placement.prepare import prepare
from edgeinfer.quantization.qdq.insert import Range, insert_qdq
from edgeinfer.quantization.qdq.marks import DIALECT_KEY, NOTES_KEY, refuse_operators
from edgeinfer.quantization.qdq.strip import Stripped, strip_qdq
from edgeinfer.transforms.contract import GraphTransform, ReportBuilder

__all__ = ["RetargetQDQ"]


@final
@attrs.frozen
class RetargetQDQ(GraphTransform):
    """Rewrite the Q/DQ of a model for another runtime; no calibration is needed.

    The quantizers are taken out and placed again as the target wants them. The integers of the weights stay
    as they are, and so do corrected biases. A model that QuantizeStatic made knows the ranges of all tensors
    that any of the dialects quantizes; for others' models the ranges are those of their quantizers, and an
    operator whose tensors have none stays in float.

    Args:
        target: Where the model will run.
    """

    min_opset: ClassVar[int] = 13

    target: Target | str | QDQDialect

    def rewrite(self, model: ir.Model, report: ReportBuilder, /) -> None:
        """Strip, place, insert.

        Raises:
            PreconditionError: The model has no Q/DQ, or some that cannot be taken out.
        """
        dialect = dialect_of(self.target)
        refuse_operators(model)
        if not any(node.op_type == "QuantizeLinear" for node in model.graph):
            raise PreconditionError(
                "The model has no quantizers to rewrite.",
                expected="a Q/DQ model",
                found="no QuantizeLinear in its graph",
                hint="QuantizeStatic(calibration=..., target=...) quantizes a float model.",
            )
        if model.metadata_props.get(DIALECT_KEY) == dialect.name:
            report.skip("", f"the model is in the dialect of {dialect.name} already")
            return
        notes = json.loads(model.metadata_props.get(NOTES_KEY, "null"))
        stripped = strip_qdq(model)
        ranges: dict[str, Range] = dict(stripped.ranges)
        if notes is not None:
            ranges |= {name: (low, high) for name, (low, high) in notes["ranges"].items()}
            keep_float = set(notes["keep_float"])
        else:
            keep_float = {str(node.name) for node in model.graph if _was_float(node, stripped)}
        prepare(model)
        same = pointwise_as_gemm(model, dialect, keep_float=keep_float)
        ranges |= {new: ranges[old] for new, old in same.items() if old in ranges}
        placement = _place_known(model, ranges, keep_float, dialect, report)
        insert_qdq(model, placement, ranges, _same_weights(stripped), dialect, report, keep_float=keep_float)


def _was_float(node: ir.Node, stripped: Stripped) -> bool:
    """Whether a node has a weight, and it was not in integers."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return False
    weight = node.inputs[WEIGHT]
    return weight is None or str(weight.name) not in stripped.weights


def _place_known(
    model: ir.Model,
    ranges: Mapping[str, Range],
    keep_float: Collection[str],
    dialect: QDQDialect,
    report: ReportBuilder,
) -> Placement:
    """Place, with every node in float whose tensors have no range."""
    unknown: set[str] = set(keep_float)
    while True:
        placement = place(model, dialect, keep_float=unknown)
        missing = {value for value in placement.tensors if str(value.name) not in ranges}
        if not missing:
            return placement
        hit = {str(region.node.name) for region in placement.regions if region.output in missing}
        hit |= {str(node.name) for value in missing for node, _ in placement.tensors[value]}
        hit |= {str(value.producer().name) for value in missing & placement.outputs}  # type: ignore[union-attr]
        for name in sorted(hit - unknown):
            report.skip(name, "the model holds no scale for one of its tensors, so it stays in float")
        unknown |= hit


def _same_weights(stripped: Stripped) -> Callable[[Region], QParams]:
    def scales(region: Region) -> QParams:
        source = region.node.inputs[WEIGHT]
        known = stripped.weights.get(str(source.name)) if source is not None else None
        if known is not None and not known.zero_point.any() and known.axis in (None, region.axis):
            return known
        return weight_qparams(region.weight, region.axis, "int8", True)

    return scales
