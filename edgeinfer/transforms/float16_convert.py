"""Rewrites types, weights and Casts once it is decided which nodes compute in float16."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import numpy as np
import onnx_ir as ir

from edgeinfer.graph.no_ops import constant_of
from edgeinfer.transforms.float16_masks import saturated

__all__ = ["Converter"]

_HALF, _FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT


@final
class Converter:
    """Converts the main graph and its subgraphs.

    Args:
        model: The model; it is changed.
        half: The nodes that are to compute in float16, with the inputs and outputs that are float16 then.
        limits: Where values saturate that a Cast takes to float16, and constants.
        keep_io: Keep the inputs and outputs of the model float32. Those of subgraphs always are.

    Attributes:
        saturated: The names of values that now saturate before they become float16, and where.
    """

    def __init__(
        self,
        model: ir.Model,
        half: Mapping[ir.Node, tuple[tuple[int, ...], tuple[int, ...]]],
        limits: Mapping[ir.Value, float],
        *,
        keep_io: bool,
    ) -> None:
        self._graph = model.graph
        self._half = half
        self._limits = limits
        self._keep_io = keep_io
        graphs = [model.graph, *model.graph.subgraphs()]
        self._names = {v.name for n in model.graph.all_nodes() for v in (*n.outputs, *n.inputs) if v}
        self._names |= {value.name for graph in graphs for value in graph.inputs}
        self._names |= {name for graph in graphs for name in graph.initializers}
        self._nodes = {node.name for node in model.graph.all_nodes()}
        self.saturated: dict[str, float] = {}

    def convert(self) -> None:
        """Convert in place."""
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
        shape, producer = value.shape, value.producer()
        assert producer is not None
        graph = _graph_of(producer)
        places = [i for i, output in enumerate(graph.outputs) if output is value]
        value.type = ir.TensorType(_HALF)
        if places and graph is self._graph and not self._keep_io:
            places = []
        collapsed = [use for use in float_uses if self._collapse(use[0], value)]
        float_uses = [use for use in float_uses if use not in collapsed]
        if not (places or float_uses):
            return
        name = value.name or ""
        if places:  # the output keeps its name, so what is computed gets another
            value.name = self._new_name(f"{name}_fp16")
        cast = self._cast(value, _FLOAT, name if places else self._new_name(f"{name}_fp32"), shape)
        graph.insert_after(producer, cast)
        for place in places:
            graph.outputs[place] = cast.outputs[0]
        for node, index in float_uses:
            node.replace_input_with(index, cast.outputs[0])

    def _halve_source(self, value: ir.Value, uses: list[tuple[ir.Node, int]]) -> None:
        """Give float16 nodes a float16 version of an input, a weight or a float32 node's result."""
        array = constant_of(value)
        name = value.name or ""
        if array is not None:
            if value in self._limits:
                array = saturated(array, self._limits[value])
            stored = ir.Tensor(array.astype(np.float16), name=name)
            if value.is_initializer() and len(value.uses()) == len(uses) and not value.is_graph_output():
                value.const_value = stored
                value.type = ir.TensorType(_HALF)
                return
            replacement = self._new_weight(self._new_name(f"{name}_fp16"), stored.numpy())
        elif value in self._graph.inputs and not self._keep_io:
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
        new: list[ir.Node] = []
        if value in self._limits:
            self.saturated[value.name or ""] = self._limits[value]
            new.append(self._clip(source, self._limits[value]))
            source = new[0].outputs[0]
        new.append(self._cast(source, _HALF, self._new_name(f"{value.name}_fp16"), value.shape))
        if producer is not None:
            _graph_of(producer).insert_after(producer, new)
        else:
            assert isinstance(value.graph, ir.Graph)
            value.graph.insert_before(value.graph[0], new)
        return new[-1].outputs[0]

    def _collapse(self, node: ir.Node, value: ir.Value) -> bool:
        """Remove an old Cast to float16 of what is float16 now; let other Casts read float16 directly."""
        if (node.domain, node.op_type) != ("", "Cast"):
            return False
        output = node.outputs[0]
        if node.attributes.get_int("to", 0) == _HALF and not output.is_graph_output():
            output.replace_all_uses_with(value)
            _graph_of(node).remove(node, safe=True)
        return True

    def _cast(self, value: ir.Value, to: ir.DataType, name: str, shape: ir.Shape | None) -> ir.Node:
        return self._node("Cast", [value], {"to": int(to)}, name, to, shape)

    def _clip(self, value: ir.Value, limit: float) -> ir.Node:
        name = self._new_name(f"{value.name}_saturated")
        if self._graph.opset_imports.get("", 0) < 11:  # the bounds were attributes
            return self._node("Clip", [value], {"min": -limit, "max": limit}, name, _FLOAT, value.shape)
        ends = [
            self._new_weight(self._new_name(f"{name}_{end}"), np.float32(number))
            for end, number in (("min", -limit), ("max", limit))
        ]
        return self._node("Clip", [value, *ends], {}, name, _FLOAT, value.shape)

    def _node(
        self,
        op_type: str,
        inputs: list[ir.Value],
        attributes: dict[str, Any],
        name: str,
        dtype: ir.DataType,
        shape: ir.Shape | None,
    ) -> ir.Node:
        """Return a new node whose output has the name; its own is made of both."""
        node = ir.node(op_type, inputs, attributes=attributes)
        node.name = f"{op_type}_{name}"
        while node.name in self._nodes:
            node.name += "_"
        self._nodes.add(node.name)
        output = node.outputs[0]
        output.name, output.type, output.shape = name, ir.TensorType(dtype), shape
        return node

    def _new_name(self, name: str) -> str:
        while name in self._names:
            name += "_"
        self._names.add(name)
        return name

    def _new_weight(self, name: str, array: np.ndarray[Any, Any] | np.generic) -> ir.Value:
        """Register an initializer of the main graph, which subgraphs see, too."""
        tensor = ir.tensor(np.asarray(array), name=name)
        value = ir.Value(
            name=name, shape=ir.Shape(list(array.shape)), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self._graph.register_initializer(value)
        return value

    def _constants(self) -> list[ir.Value]:
        graphs = [self._graph, *self._graph.subgraphs()]
        nodes = [
            node.outputs[0]
            for node in self._graph.all_nodes()
            if node.op_type in ("Constant", "Cast") and not node.domain
        ]
        return [*(value for graph in graphs for value in graph.initializers.values()), *nodes]

    def _drop_unused(self, value: ir.Value) -> None:
        graph, producer = value.graph, value.producer()
        if value.uses() or value.is_graph_output() or value.is_graph_input() or graph is None:
            return
        if producer is not None:
            graph.remove(producer, safe=True)
        elif isinstance(graph, ir.Graph) and value.name in graph.initializers:
            del graph.initializers[value.name or ""]


def _graph_of(node: ir.Node) -> ir.Graph:
    assert isinstance(node.graph, ir.Graph)
    return node.graph
