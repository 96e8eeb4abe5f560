"""`ToFloat16`: weights and arithmetic in float16, with what is not safe there left in float32.

Each node of the main graph computes in one of the two; Casts are put where a tensor crosses over, one for
each tensor and direction. A node stays in float32, with its reason in `report.skipped`, when

- the caller names it or its operator,
- its operator sums, squares or exponentiates (`float16_policy` has the list with reasons); Softmax and
  LayerNormalization are not among them: the first subtracts the maximum, the second's specification has
  float32 statistics (stash_type), and every runtime accumulates both in float32,
- a weight overflows float16 (65504), or a noticeable part of it underflows to 0,
- with calibration: a tensor that it reads or writes goes beyond 65504.

Tensors that the specification wants in float32, such as Resize's scales, stay so, node or no node.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, final

import attrs
import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgeinfer.errors import PreconditionError
from edgeinfer.graph.infer_shapes import infer_shapes
from edgeinfer.graph.no_ops import constant_of
from edgeinfer.model.model import Model
from edgeinfer.transforms.contract import GraphTransform, ReportBuilder
from edgeinfer.transforms.float16_policy import (
    FLOAT16_MAX,
    MOVES_DATA,
    activation_peaks,
    convertible,
    flushed_count,
    unsafe_reason,
    weight_problem,
)

__all__ = ["ToFloat16"]

_HALF, _FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT


def _names(value: Iterable[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


@final
@attrs.frozen
class ToFloat16(GraphTransform):
    """Convert float32 weights and computation to float16.

    Args:
        keep_ops: Operators to keep in float32, besides those that are kept by default.
        keep_nodes: Names of nodes to keep in float32.
        keep_io: Keep the inputs and outputs float32, with Casts inside. False changes the signature.
        calibration: Feeds (mappings from input name to array); nodes whose tensors leave float16's range on
            them stay in float32. Memory does not grow with their number.
    """

    keep_ops: tuple[str, ...] = attrs.field(default=(), converter=_names)
    keep_nodes: tuple[str, ...] = attrs.field(default=(), converter=_names)
    keep_io: bool = True
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
        if self.keep_nodes:
            config["keep_nodes"] = list(self.keep_nodes)
        if not self.keep_io:
            config["keep_io"] = False
        return config

    def rewrite(self, model: ir.Model, report: ReportBuilder, /) -> None:
        """Decide for every node, then convert."""
        self._check_names(model)
        _free_weights(model, report)
        infer_shapes(model)
        kept = self._kept(model)
        opset = model.opset_imports.get("", 0)
        half = {}
        for node in model.graph:
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
        if half:
            _Converter(model, half, keep_io=self.keep_io).convert()

    def _check_names(self, model: ir.Model) -> None:
        unknown = set(self.keep_nodes) - {node.name for node in model.graph.all_nodes()}
        if unknown:
            raise PreconditionError(
                "A node that is to be kept in float32 does not exist.",
                where=f"ToFloat16, keep_nodes: {sorted(unknown)[0]!r}",
                hint="Simplify keeps the names of nodes that survive it; `inspect` lists them.",
            )

    def _kept(self, model: ir.Model) -> dict[ir.Node, str]:
        opset = model.opset_imports.get("", 0)
        kept: dict[ir.Node, str] = {}
        touched: dict[ir.Node, list[str]] = {}
        for node in model.graph:
            inputs, outputs = convertible(node, opset)
            reason = self._asked(node) or unsafe_reason(node)
            for index in inputs:
                value = node.inputs[index]
                array = constant_of(value)
                problem = weight_problem(array) if array is not None and reason is None else None
                if problem is not None and value is not None:
                    reason = f"its weight {value.name} {problem}"
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
        _keep_between(model, kept)
        return kept

    def _asked(self, node: ir.Node) -> str | None:
        if node.op_type in self.keep_ops:
            return f"keep_ops has {node.op_type}"
        return "keep_nodes has it" if node.name in self.keep_nodes else None


def _touches_float32(node: ir.Node) -> bool:
    return any(value is not None and value.dtype is _FLOAT for value in (*node.inputs, *node.outputs))


def _keep_between(model: ir.Model, kept: dict[ir.Node, str]) -> None:
    """Keep nodes that only move data when all that they move comes from and goes to kept nodes."""
    changed = True
    while changed:
        changed = False
        for node in model.graph:
            if node in kept or node.op_type not in MOVES_DATA or node.domain:
                continue
            sources = [
                value.producer()
                for value in node.inputs
                if value is not None and value.dtype is _FLOAT and constant_of(value) is None
            ]
            consumers = [use.node for value in node.outputs for use in value.uses()]
            if sources and consumers and all(n is not None and n in kept for n in (*sources, *consumers)):
                kept[node] = "it only moves data between nodes in float32"
                changed = True


def _free_weights(model: ir.Model, report: ReportBuilder) -> None:
    """Make weights constants where old models have them as inputs, too; see `Simplify`."""
    names = [v.name or "" for v in model.graph.inputs if v.name in model.graph.initializers]
    if names:
        model.ir_version = max(model.ir_version, 4)
        common_passes.RemoveInitializersFromInputsPass()(model)
        for name in names:
            report.apply(name, "removed the weight from the inputs")


@final
class _Converter:
    """Rewrites types, weights and Casts once it is decided which nodes compute in float16."""

    def __init__(
        self,
        model: ir.Model,
        half: Mapping[ir.Node, tuple[tuple[int, ...], tuple[int, ...]]],
        *,
        keep_io: bool,
    ) -> None:
        self._graph = model.graph
        self._half = half
        self._keep_io = keep_io
        self._names = {v.name for n in model.graph.all_nodes() for v in (*n.outputs, *n.inputs) if v}
        self._names |= {value.name for value in model.graph.inputs}
        self._nodes = {node.name for node in model.graph.all_nodes()}

    def convert(self) -> None:
        used = [value for value in self._constants() if value.uses()]
        crossing: dict[ir.Value, list[tuple[ir.Node, int]]] = {}
        for node, (inputs, _) in self._half.items():
            for index in inputs:
                value = node.inputs[index]
                assert value is not None
                crossing.setdefault(value, []).append((node, index))
        produced = [node.outputs[index] for node, (_, outputs) in self._half.items() for index in outputs]
        for value in produced:
            self._halve_result(value, crossing.pop(value, []))
        for value, uses in crossing.items():
            self._halve_source(value, uses)
        for value in used:
            self._drop_unused(value)

    def _halve_result(self, value: ir.Value, half_uses: list[tuple[ir.Node, int]]) -> None:
        """Make what a float16 node gives float16, with a Cast back for those that need float32."""
        float_uses = [(use.node, use.idx) for use in value.uses() if (use.node, use.idx) not in half_uses]
        shape = value.shape
        places = [i for i, output in enumerate(self._graph.outputs) if output is value]
        value.type = ir.TensorType(_HALF)
        if places and not self._keep_io:
            places = []
        collapsed = [use for use in float_uses if self._collapse(use[0], value)]
        float_uses = [use for use in float_uses if use not in collapsed]
        if not (places or float_uses):
            return
        name = value.name or ""
        producer = value.producer()
        assert producer is not None
        if places:  # the output keeps its name, so what is computed gets another
            value.name = self._new_name(f"{name}_fp16")
        cast = self._cast(value, _FLOAT, name if places else self._new_name(f"{name}_fp32"), shape)
        self._graph.insert_after(producer, cast)
        for place in places:
            self._graph.outputs[place] = cast.outputs[0]
        for node, index in float_uses:
            node.replace_input_with(index, cast.outputs[0])

    def _halve_source(self, value: ir.Value, uses: list[tuple[ir.Node, int]]) -> None:
        """Give float16 nodes a float16 version of an input, a weight or a float32 node's result."""
        array = constant_of(value)
        name = value.name or ""
        if array is not None:
            if value.is_initializer() and len(value.uses()) == len(uses) and not value.is_graph_output():
                value.const_value = ir.Tensor(array.astype(np.float16), name=name)
                value.type = ir.TensorType(_HALF)
                return
            replacement = self._new_weight(self._new_name(f"{name}_fp16"), array.astype(np.float16))
        elif value.is_graph_input() and not self._keep_io:
            value.type = ir.TensorType(_HALF)
            others = [(u.node, u.idx) for u in value.uses() if (u.node, u.idx) not in uses]
            if others:
                back = self._cast(value, _FLOAT, self._new_name(f"{name}_fp32"), value.shape)
                self._graph.insert_before(self._graph[0], back)
                for node, index in others:
                    node.replace_input_with(index, back.outputs[0])
            return
        else:
            replacement = self._narrowed(value)
        for node, index in uses:
            node.replace_input_with(index, replacement)

    def _narrowed(self, value: ir.Value) -> ir.Value:
        """Return the float16 version of a value, computed by a Cast, or its source where that is exact."""
        producer = value.producer()
        source = value
        if producer is not None and (producer.domain, producer.op_type) == ("", "Cast"):
            before = producer.inputs[0]
            assert before is not None
            if before.dtype is _HALF:
                return before
            if before.dtype in (ir.DataType.BOOL, ir.DataType.INT8, ir.DataType.UINT8):
                source = before  # one Cast instead of two; these fit
        cast = self._cast(source, _HALF, self._new_name(f"{value.name}_fp16"), value.shape)
        if producer is None:
            self._graph.insert_before(self._graph[0], cast)
        else:
            self._graph.insert_after(producer, cast)
        return cast.outputs[0]

    def _collapse(self, node: ir.Node, value: ir.Value) -> bool:
        """Remove an old Cast to float16 of what is float16 now; let other Casts read float16 directly."""
        if (node.domain, node.op_type) != ("", "Cast") or node.graph is not self._graph:
            return False
        output = node.outputs[0]
        if node.attributes.get_int("to", 0) == _HALF and not output.is_graph_output():
            output.replace_all_uses_with(value)
            self._graph.remove(node, safe=True)
        return True

    def _cast(self, value: ir.Value, to: ir.DataType, name: str, shape: ir.Shape | None) -> ir.Node:
        node = ir.node("Cast", [value], attributes={"to": int(to)})
        node.name = f"Cast_{name}"
        while node.name in self._nodes:
            node.name += "_"
        self._nodes.add(node.name)
        output = node.outputs[0]
        output.name, output.type, output.shape = name, ir.TensorType(to), shape
        return node

    def _new_name(self, name: str) -> str:
        while name in self._names:
            name += "_"
        self._names.add(name)
        return name

    def _new_weight(self, name: str, array: np.ndarray[Any, Any]) -> ir.Value:
        tensor = ir.Tensor(array, name=name)
        value = ir.Value(
            name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self._graph.register_initializer(value)
        return value

    def _constants(self) -> list[ir.Value]:
        nodes = [n.outputs[0] for n in self._graph if n.op_type in ("Constant", "Cast") and not n.domain]
        return [*self._graph.initializers.values(), *nodes]

    def _drop_unused(self, value: ir.Value) -> None:
        if value.uses() or value.is_graph_output() or value.is_graph_input() or value.graph is None:
            return
        producer = value.producer()
        if producer is not None:
            self._graph.remove(producer, safe=True)
        elif value.name in self._graph.initializers:
            del self._graph.initializers[value.name or ""]
