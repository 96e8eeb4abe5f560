"""ONNX shape inference on an `onnx_ir` graph.

Unlike the pass of onnx-ir it never writes into a type object, which copies of a model share, and it does not
log: what cannot be inferred stays unknown.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import onnx
import onnx_ir as ir

__all__ = ["run_inference"]

# Inference reads the numbers of small tensors only (shapes, axes); weights are kept out of protobuf.
LARGE_BYTES = 1024


def run_inference(
    model: ir.Model, *, data_prop: bool = False, strict: bool = False, disposable: bool = False
) -> None:
    """Fill in types and shapes as far as they can be inferred, in place.

    Args:
        model: The model. Shapes that it has already are merged with what is found.
        data_prop: Follow the values of small integer tensors, too.
        strict: Raise what `onnx` raises. Else a node that contradicts itself costs only its own shapes.
        disposable: `model` is a copy for this purpose, which may lose its weights.
    """
    light = model if disposable else model.clone()
    _turn_weights_into_inputs(light)
    try:
        with _known_to_onnx(light):
            proto = ir.to_proto(light)
        inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=strict, data_prop=data_prop)
    except Exception:
        if strict:
            raise
        return  # the graph stays as it was, with fewer shapes than it might have
    for ours, theirs in zip(model.graphs(), ir.from_proto(inferred).graphs(), strict=True):
        found = ir.convenience.create_value_mapping(theirs)
        for name, value in ir.convenience.create_value_mapping(ours).items():
            other = found.get(name)
            if other is None:
                continue
            if value.type is None:
                value.type = other.type
            if other.shape is not None and value.shape != other.shape and value.const_value is None:
                value.shape = other.shape


@contextlib.contextmanager
def _known_to_onnx(model: ir.Model) -> Iterator[None]:
    """Give operators that ONNX 1.23 infers nothing for the name of one that gives the same shape."""
    nodes = [
        node
        for node in ir.traversal.RecursiveGraphIterator(model.graph)
        if node.op_type == "GroupNormalization" and node.domain in ("", "ai.onnx")
    ]
    for node in nodes:
        node.op_type = "Identity"
    try:
        yield
    finally:
        for node in nodes:
            node.op_type = "GroupNormalization"


def _turn_weights_into_inputs(model: ir.Model) -> None:
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is not None and tensor.nbytes > LARGE_BYTES:
            del model.graph.initializers[value.name or ""]
            value.const_value = None
            value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
            if not value.is_graph_input():
                model.graph.inputs.append(value)
