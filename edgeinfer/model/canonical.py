"""The canonical serialization of a model, for its digest.

Two models have one digest exactly when they compute the same thing in the same way: the same nodes in
the same order with the same names, the same weights, the same signature. What does not count: where the
weights are stored (inline, external, which file), the order of the initializers, inferred dtypes and shapes
of intermediate values (the inputs and outputs of subgraphs are such), documentation strings, producer names
and metadata.

Every field is written with its length in front, so that no two different models give the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

__all__ = ["canonical_digest"]


def canonical_digest(model: ir.Model) -> str:
    """Return the SHA-256 of the canonical serialization, 64 hexadecimal digits."""
    writer = _Writer()
    writer.text("edgeinfer-model-1", str(model.ir_version))
    for domain, version in sorted(model.opset_imports.items()):
        writer.text("opset", domain, str(version))
    _graph(writer, model.graph)
    for identifier, function in sorted(model.functions.items()):
        writer.text("function", *identifier)
        for domain, version in sorted(function.opset_imports.items()):
            writer.text("opset", domain, str(version))
        _values(writer, "input", function.inputs)
        _values(writer, "output", function.outputs)
        _attributes(writer, function.attributes.values())
        _nodes(writer, function)
    return writer.hexdigest()


class _Writer:
    """Feeds length-prefixed fields to SHA-256."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def bytes(self, data: bytes | memoryview) -> None:
        self._hash.update(len(data).to_bytes(8, "little"))
        self._hash.update(data)

    def text(self, *fields: str) -> None:
        for field in fields:
            self.bytes(field.encode())

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def _graph(writer: _Writer, graph: ir.Graph, *, typed: bool = True) -> None:
    _values(writer, "input", graph.inputs, typed=typed)
    _values(writer, "output", graph.outputs, typed=typed)
    for name, value in sorted(graph.initializers.items()):
        writer.text("initializer", name)
        if value.const_value is not None:
            _tensor(writer, value.const_value)
    _nodes(writer, graph)


def _values(writer: _Writer, label: str, values: Iterable[ir.Value], *, typed: bool = True) -> None:
    for value in values:
        described = (str(value.type), _shape_text(value.shape)) if typed else ()
        writer.text(label, value.name or "", *described)


def _shape_text(shape: ir.Shape | None) -> str:
    if shape is None:
        return "?"
    return ",".join(str(d) if isinstance(d, int) else f"<{d.value}>" for d in shape)


def _nodes(writer: _Writer, nodes: Iterable[ir.Node]) -> None:
    for node in nodes:
        writer.text("node", node.domain, node.op_type, node.overload, node.name or "")
        writer.text("inputs", *(value.name or "" if value is not None else "" for value in node.inputs))
        writer.text("outputs", *(value.name or "" for value in node.outputs))
        _attributes(writer, node.attributes.values())


def _attributes(writer: _Writer, attributes: Iterable[ir.Attr]) -> None:
    for attr in sorted(attributes, key=lambda a: a.name):
        writer.text("attribute", attr.name, attr.type.name)
        if attr.is_ref():
            writer.text("ref", attr.ref_attr_name or "")
        elif attr.type is ir.AttributeType.GRAPH:
            _graph(writer, attr.as_graph(), typed=False)
        elif attr.type is ir.AttributeType.GRAPHS:
            for graph in attr.as_graphs():
                _graph(writer, graph, typed=False)
        elif attr.type is ir.AttributeType.TENSOR:
            _tensor(writer, attr.as_tensor())
        elif attr.type is ir.AttributeType.TENSORS:
            for tensor in attr.as_tensors():
                _tensor(writer, tensor)
        elif isinstance(attr.value, float):
            writer.bytes(np.float64(attr.value).tobytes())
        elif isinstance(attr.value, (tuple, list)):
            writer.text(*(repr(item) for item in attr.value))
        else:
            writer.text(repr(attr.value))


def _tensor(writer: _Writer, tensor: ir.TensorProtocol) -> None:
    writer.text(tensor.dtype.name, ",".join(str(d) for d in tensor.shape))
    if tensor.dtype is ir.DataType.STRING:
        for item in np.asarray(tensor.numpy(), dtype=object).ravel():
            writer.bytes(item if isinstance(item, bytes) else str(item).encode())
        return
    writer.bytes(tensor.tobytes())
