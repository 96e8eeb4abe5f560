"""What the parsers of older versions lack or misread, written in operators that they have."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeinfer.backends.tensorrt_.flavours import Flavour
from edgeinfer.errors import CompileError
from edgeinfer.model.model import Model

__all__ = ["fill_gaps"]

# The newest opset that the parsers of 8.5 and 8.6 know (docs/operators.md of onnx-tensorrt 8.5 and 8.6). They
# read newer models without complaint, and overlook what became an input or an attribute in opset 18.
_OLD_OPSET = 17
_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})


def fill_gaps(model: Model, flavour: Flavour) -> Model:
    """Return the model as the parser of a version reads it rightly; the model itself where it does already.

    Raises:
        CompileError: The model's opset is too new, and has a node that the parser would misread.
    """
    opset = model.ir.opset_imports.get("", 0)
    if not flavour.has("new_opsets") and opset > _OLD_OPSET:
        misread = [node for node in _all_nodes(model.ir) if _is_misread(node)]
        if misread:
            raise CompileError(
                f"{flavour} knows opsets up to {_OLD_OPSET}, and would read {len(misread)} nodes wrongly.",
                where=f"node {misread[0].name!r} ({misread[0].op_type})",
                expected=f"opset {_OLD_OPSET} or older",
                found=f"opset {opset}",
                hint=f"Convert it: ei.optimize(model, [ConvertOpset({_OLD_OPSET})]), or use a newer version.",
            )
    if any(_missing_kernel(node) for node in _all_nodes(model.ir)):
        model = _with_kernel_shapes(model)
    if not flavour.has("unnamed_outputs"):
        model = _with_named_outputs(model)
    if not flavour.has("layer_normalization"):
        model = _without_layer_normalization(model)
    return model


def _is_misread(node: ir.Node) -> bool:
    """Whether a node says in the way of opset 18 what older ones said otherwise, or could not."""
    if node.domain not in ("", "ai.onnx"):
        return False
    count = len(node.inputs)
    if node.op_type == "Resize":
        return "axes" in node.attributes
    if node.op_type == "Split":
        return "num_outputs" in node.attributes
    reduces = node.op_type.startswith("Reduce") and node.op_type != "ReduceSum"  # that one changed in 13
    return (reduces and count > 1) or (node.op_type == "Pad" and count > 3)


def _missing_kernel(node: ir.Node) -> list[int]:
    """Return the shape of a convolution's kernel where the node leaves it to the weight; else nothing."""
    if node.op_type not in ("Conv", "ConvTranspose") or "kernel_shape" in node.attributes:
        return []
    weight = node.inputs[1]
    while weight is not None and weight.shape is None:
        source = weight.producer()
        weight = source.inputs[0] if source is not None and source.op_type in _QUANTIZERS else None
    sizes = list(weight.shape or ())[2:] if weight is not None else []
    known = [size for size in sizes if isinstance(size, int)]
    return known if len(known) == len(sizes) else []


def _with_kernel_shapes(model: Model) -> Model:
    """Write the shape of each kernel into its convolution.

    Behind DequantizeLinear the parser does not look at the weight, and takes 1 for each size (seen with 8.5).
    """
    changed = model.copy_ir()
    for node in _all_nodes(changed):
        sizes = _missing_kernel(node)
        if sizes:
            node.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", sizes)
    return Model.from_ir(changed)


def _with_named_outputs(model: Model) -> Model:
    """Name the outputs that are left out, as those of an LSTM.

    TensorRT 8 takes an input that is left out for one of them, and sees a cycle.
    """
    unnamed = [
        (index, position)
        for index, node in enumerate(ir.traversal.RecursiveGraphIterator(model.ir.graph))
        for position, output in enumerate(node.outputs)
        if not output.name
    ]
    if not unnamed:
        return model
    changed = model.copy_ir()
    nodes = list(ir.traversal.RecursiveGraphIterator(changed.graph))
    for index, position in unnamed:
        nodes[index].outputs[position].name = f"edgeinfer_unused_{index}_{position}"
    return Model.from_ir(changed)


def _without_layer_normalization(model: Model) -> Model:
    """Take LayerNormalization apart, as its specification does (opset 17).

    Where an axis counts from the front and the rank is not known, the node stays, and the parser names it.
    """
    if not any(_axes(node) for node in _all_nodes(model.ir)):
        return model
    changed = model.copy_ir()
    for node in [node for node in _all_nodes(changed) if _axes(node)]:
        _take_apart(node)
    return Model.from_ir(changed)


def _all_nodes(model: ir.Model) -> list[ir.Node]:
    return list(ir.traversal.RecursiveGraphIterator(model.graph))


def _axes(node: ir.Node) -> list[int]:
    """Return what a LayerNormalization normalizes over; nothing for other nodes, or where it is unknown."""
    if node.op_type != "LayerNormalization" or node.domain not in ("", "ai.onnx"):
        return []
    axis = node.attributes.get_int("axis", -1)
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if axis >= 0 and shape is None:
        return []
    return list(range(axis if axis < 0 else axis - len(shape or ()), 0))


def _take_apart(node: ir.Node) -> None:
    """Put its parts before a LayerNormalization, and remove it.

    y = cast((x - mean) / sqrt(mean((x - mean)^2) + epsilon)) * scale + bias, up to the cast in float32.
    """
    graph, name = node.graph, node.name
    assert graph is not None
    x, scale, bias = (*node.inputs, None)[:3]
    mean_out, inverse_out = (*node.outputs[1:], None, None)[:2]
    assert x is not None
    made: list[ir.Node] = []

    def op(op_type: str, *inputs: ir.Value | None, **attributes: object) -> ir.Value:
        made.append(
            ir.node(op_type, list(inputs), attributes=attributes, name=f"{name}/{op_type}_{len(made)}")  # type: ignore[arg-type]
        )
        made[-1].outputs[0].name = f"{node.outputs[0].name}/{op_type}_{len(made)}"
        return made[-1].outputs[0]

    def constant(value: float) -> ir.Value:
        return op("Constant", value=ir.tensor(np.array(value, np.float32)))

    wide = x.dtype not in (None, ir.DataType.FLOAT)
    axes, epsilon = _axes(node), node.attributes.get_float("epsilon", 1e-5)
    inner = op("Cast", x, to=int(ir.DataType.FLOAT)) if wide else x
    mean = op("ReduceMean", inner, axes=axes, keepdims=1)
    centred = op("Sub", inner, mean)
    variance = op("ReduceMean", op("Mul", centred, centred), axes=axes, keepdims=1)
    deviation = op("Sqrt", op("Add", variance, constant(epsilon)))
    y = op("Div", centred, deviation)
    if wide:
        assert x.dtype is not None
        y = op("Cast", y, to=int(x.dtype))
    y = op("Mul", y, scale)
    if bias is not None:
        y = op("Add", y, bias)
    pairs = [(node.outputs[0], y)]
    if mean_out is not None and mean_out.name:
        pairs.append((mean_out, op("Identity", mean)))
    if inverse_out is not None and inverse_out.name:
        pairs.append((inverse_out, op("Div", constant(1.0), deviation)))
    graph.insert_before(node, made)
    for old, new in pairs:
        new.shape = old.shape
        if old.dtype is not None:
            new.dtype = old.dtype
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        new.name = old.name
    graph.remove(node, safe=False)
