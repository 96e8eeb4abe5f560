"""Rewriting a quantized model for another runtime, with the scales that it has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, final

import attrs
import onnx_ir as ir

from edgeinfer.errors import PreconditionError
from edgeinfer.quantization.dialects import dialect_of
from edgeinfer.quantization.insert import Range, insert_qdq, prepare
from edgeinfer.quantization.placement import Placement, place
from edgeinfer.quantization.qparams import QParams, weight_qparams
from edgeinfer.quantization.regions import WEIGHT, Region
from edgeinfer.quantization.state import DIALECT_KEY, RANGES_KEY, REFERENCE_KEY, refuse_operators
from edgeinfer.quantization.strip import Stripped, strip_qdq
from edgeinfer.transforms.base import GraphTransform, ReportBuilder

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

    target: Any

    min_opset = 13

    def rewrite(self, model: ir.Model, report: ReportBuilder, /) -> None:
        """Strip, place, insert."""
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
        recorded = model.metadata_props.get(RANGES_KEY)
        stripped = strip_qdq(model)
        ranges: dict[str, Range] = dict(stripped.ranges)
        if recorded is not None:
            ranges |= {name: (low, high) for name, (low, high) in json.loads(recorded).items()}
        prepare(model)
        placement = _place_known(model, ranges, report, dialect)
        insert_qdq(model, placement, ranges, _same_weights(stripped), dialect, report)


def _place_known(model: ir.Model, ranges: Mapping[str, Range], report: ReportBuilder, dialect: Any) -> Placement:
    """Place, with every region in float whose tensors have no range."""
    unknown: set[str] = set()
    while True:
        placement = place(model, dialect, keep_float=unknown)
        missing = {value for value in placement.tensors if str(value.name) not in ranges}
        if not missing:
            return placement
        hit = {
            region.node.name or ""
            for region in placement.regions
            if region.node.inputs[0] in missing or region.output in missing
        }
        hit |= {node.name or "" for value in missing for node, _ in placement.tensors[value]}
        hit |= {producer.name or "" for value in missing if (producer := value.producer()) is not None}
        for name in sorted(hit - unknown):
            report.skip(name, "the model holds no scale for one of its tensors, so it stays in float")
        unknown |= hit


def _same_weights(stripped: Stripped) -> Any:
    def scales(region: Region) -> QParams:
        source = region.node.inputs[WEIGHT]
        known = stripped.weights.get(str(source.name)) if source is not None else None
        if known is not None and not known.zero_point.any():
            return known
        return weight_qparams(region.weight, region.axis, "int8", True)

    return scales
