"""`ToFloat16`: weights and arithmetic in float16, with what is not safe there left in float32.

Each node, those of subgraphs included, computes in one of the two; Casts are put where a tensor crosses
over, one for each tensor and direction. Subgraphs take and give float32 as before. A node stays in float32,
with its reason in `report.skipped`, when

- the caller names it or its operator,
- the dtype of one of its tensors is not known, as behind an operator of another domain,
- its operator sums, squares or exponentiates (`float16_policy` has the list with reasons); Softmax and
  LayerNormalization are not among them: the first subtracts the maximum, the second's specification has
  float32 statistics (stash_type), and every runtime accumulates both in float32,
- a weight overflows float16 (65504), or a noticeable part of it underflows to 0. Masks saturate instead
  (`float16_masks`),
- it belongs to a group that runtimes fuse, such as a normalization, and another node of the group stays,
- with calibration: a tensor that it reads or writes goes beyond 65504, or it is in a subgraph, where
  calibration cannot look.

Tensors that the specification wants in float32, such as Resize's scales, stay so, node or no node.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, final

import attrs
import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgeinfer.errors import PreconditionError
from edgeinfer.graph.fused_patterns import fused_patterns
from edgeinfer.graph.infer_shapes import infer_shapes
from edgeinfer.graph.no_ops import constant_of
from edgeinfer.model.model import Model
from edgeinfer.transforms.contract import GraphTransform, ReportBuilder
from edgeinfer.transforms.float16_convert import Converter
from edgeinfer.transforms.float16_masks import FLOAT16_MAX, MASK_LIMIT, is_mask, limits_of
from edgeinfer.transforms.float16_policy import (
    MOVES_DATA,
    activation_peaks,
    convertible,
    flushed_count,
    unknown_dtype,
    unsafe_reason,
    weight_problem,
)
from edgeinfer.transforms.options import near_matches, require_nodes

__all__ = ["ToFloat16"]


def _names(value: Iterable[str]) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else tuple(value)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"names are text, not {value!r}")
    return names


@final
@attrs.frozen
class ToFloat16(GraphTransform):
    """Convert float32 weights and computation to float16.

    Args:
        keep_ops: Operators to keep in float32, besides those that are kept by default.
        keep_float: Names of nodes to keep in float32.
        keep_io: Keep the inputs and outputs float32, with Casts inside. False changes the signature.
        calibration: Feeds (mappings from input name to array); nodes whose tensors leave float16's range on
            them stay in float32. Memory does not grow with their number.
    """

    keep_ops: tuple[str, ...] = attrs.field(default=(), converter=_names)
    keep_float: tuple[str, ...] = attrs.field(default=(), converter=_names)
    keep_io: bool = attrs.field(default=True, validator=attrs.validators.instance_of(bool))
    calibration: Iterable[Mapping[str, np.ndarray[Any, Any]]] | None = attrs.field(
        default=None, eq=False, repr=False
    )

    @property
    def changes_signature(self) -> bool:  # type: ignore[override]
        """Whether inputs and outputs become float16."""
        return not self.keep_io

    def config(self) -> dict[str, object]:
        """Return the configuration; of the samples, only that there were some."""
        config: dict[str, object] = {"calibrated": True} if self.calibration is not None else {}
        if self.keep_ops:
            config["keep_ops"] = list(self.keep_ops)
        if self.keep_float:
            config["keep_float"] = list(self.keep_float)
        if not self.keep_io:
            config["keep_io"] = False
        return config

    def rewrite(self, model: ir.Model, report: ReportBuilder, /) -> None:
        """Decide for every node, then convert."""
        self._check_names(model)
        _free_weights(model, report)
        infer_shapes(model)
        masks = _masks(model)
        kept = self._kept(model, masks)
        opset = model.opset_imports.get("", 0)
        half = {}
        for node in model.graph.all_nodes():
            inputs, outputs = convertible(node, opset)
            if node.op_type in ("Constant", "Cast") or not _touches_float32(node):
                continue
            if node in kept or not (inputs or outputs):
                reason = kept.get(node, f"the specification of opset {opset} has no float16 for it")
                report.skip(node, f"{node.op_type} stays in float32: {reason}")
            else:
                half[node] = (inputs, outputs)
        for node, (inputs, _) in half.items():
            report.apply(node, f"{node.op_type} computes in float16")
            for value in (node.inputs[index] for index in inputs):
                array = constant_of(value)
                if value is not None and array is not None and (lost := flushed_count(array)):
                    report.note(f"{node.name}: {lost} of {array.size} numbers of {value.name} become 0")
        for value in masks:
            report.note(f"the mask {value.name} saturates at {MASK_LIMIT:.0f}, which Softmax makes 0, too")
        if half:
            model.ir_version = max(model.ir_version, 4)  # before it, every initializer had to be an input
            limits = limits_of(model.graph) | dict.fromkeys(masks, MASK_LIMIT)
            converter = Converter(model, half, limits, keep_io=self.keep_io)
            converter.convert()
            for name, limit in converter.saturated.items():
                report.note(f"{name} saturates at {limit:.0f} where it becomes float16")

    def _check_names(self, model: ir.Model) -> None:
        nodes = list(model.graph.all_nodes())
        require_nodes(self.keep_float, (node.name for node in nodes), "ToFloat16, keep_float")
        known = {node.op_type for node in nodes} | {schema.name for schema in onnx.defs.get_all_schemas()}
        for operator in sorted(set(self.keep_ops) - known):
            raise PreconditionError(
                "There is no such operator.",
                where="ToFloat16, keep_ops",
                expected="operators of ONNX or of the model",
                found=operator,
                hint=near_matches(operator, known),
            )

    def _kept(self, model: ir.Model, masks: Collection[ir.Value]) -> dict[ir.Node, str]:
        opset = model.opset_imports.get("", 0)
        patterns = fused_patterns(model.graph)
        main = set(model.graph)
        kept: dict[ir.Node, str] = {}
        touched: dict[ir.Node, list[str]] = {}
        for node in model.graph.all_nodes():
            inputs, outputs = convertible(node, opset)
            reason = self._asked(node) or unknown_dtype(node)
            if reason is None and _saturates_for_a_cast(node):
                reason = "it saturates what a Cast takes to float16"
            if reason is None and not (node in patterns and patterns[node].saturates):
                reason = unsafe_reason(node)
            for index in inputs:
                value = node.inputs[index]
                array = constant_of(value)
                if array is None or value is None or reason is not None or value in masks:
                    continue
                if (problem := weight_problem(array)) is not None:
                    reason = f"its weight {value.name} {problem}"
            if reason is None and self.calibration is not None and node not in main:
                reason = "the calibration does not look into subgraphs"
            if reason is not None:
                kept[node] = reason
            elif node.op_type not in ("Constant", "Cast"):
                values = [node.inputs[i] for i in inputs] + [node.outputs[i] for i in outputs]
                touched[node] = [v.name or "" for v in values if v is not None and constant_of(v) is None]
        if self.calibration is not None:
            names = dict.fromkeys(name for node in touched for name in touched[node])
            peaks = activation_peaks(Model(model), names, self.calibration)
            for node, own in touched.items():
                worst = max(own, key=lambda name: peaks[name], default=None)
                if worst is not None and not peaks[worst] <= FLOAT16_MAX:
                    kept[node] = f"{worst} reaches {peaks[worst]:.3g}, more than {FLOAT16_MAX:.0f}"
        for node, pattern in patterns.items():
            if node not in kept and any(member in kept for member in pattern.nodes):
                kept[node] = f"it is part of {pattern.name}, which stays together"
        _keep_between(model, kept, keep_io=self.keep_io)
        return kept

    def _asked(self, node: ir.Node) -> str | None:
        if node.op_type in self.keep_ops:
            return f"keep_ops has {node.op_type}"
        return "keep_float has it" if node.name in self.keep_float else None


def _saturates_for_a_cast(node: ir.Node) -> bool:
    """Whether the node is what this transform puts before a Cast; see `float16_masks`."""
    users = [use.node for use in node.outputs[0].uses()]
    return (
        node.op_type == "Clip"
        and bool(users)
        and all(
            (user.domain, user.op_type, user.attributes.get_int("to", 0)) == ("", "Cast", ir.DataType.FLOAT16)
            for user in users
        )
    )


def _masks(model: ir.Model) -> tuple[ir.Value, ...]:
    """Return the constants that are beyond float16 because they mask."""
    found: dict[ir.Value, None] = {}
    for node in model.graph.all_nodes():
        for value in node.inputs:
            array = constant_of(value)
            if value is None or array is None or array.dtype != np.float32 or value in found:
                continue
            if is_mask(array, [(use.node, use.idx) for use in value.uses()]):
                found[value] = None
    return tuple(found)


def _touches_float32(node: ir.Node) -> bool:
    """Whether the node reads or gives float32, or something whose dtype is not known."""
    return unknown_dtype(node) is not None or any(
        value is not None and value.dtype is ir.DataType.FLOAT for value in (*node.inputs, *node.outputs)
    )


def _keep_between(model: ir.Model, kept: dict[ir.Node, str], *, keep_io: bool) -> None:
    """Keep nodes that only move data when all that they move comes from and goes to where it is float32."""

    def is_float32_before(value: ir.Value) -> bool:
        producer = value.producer()
        if producer is not None:
            return producer in kept
        return keep_io or value.graph is not model.graph

    def is_float32_behind(value: ir.Value) -> bool:
        if value.is_graph_output() and not (keep_io or value.graph is not model.graph):
            return False
        return all(use.node in kept for use in value.uses())

    changed = True
    while changed:
        changed = False
        for node in model.graph.all_nodes():
            if node in kept or node.op_type not in MOVES_DATA or node.domain:
                continue
            sources = [
                value
                for value in node.inputs
                if value is not None and value.dtype is ir.DataType.FLOAT and constant_of(value) is None
            ]
            read = [value for value in node.outputs if value.uses() or value.is_graph_output()]
            if (
                sources
                and read
                and all(map(is_float32_before, sources))
                and all(map(is_float32_behind, read))
            ):
                kept[node] = "it only moves data between places in float32"
                changed = True


def _free_weights(model: ir.Model, report: ReportBuilder) -> None:
    """Make weights constants where old models have them as inputs, too; see `Simplify`."""
    names = [v.name or "" for v in model.graph.inputs if v.name in model.graph.initializers]
    if names:
        model.ir_version = max(model.ir_version, 4)
        common_passes.RemoveInitializersFromInputsPass()(model)
        for name in names:
            report.apply(name, "removed the weight from the inputs")
