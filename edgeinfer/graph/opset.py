"""Opset conversion, for transforms that need newer operators than the model has.

The ONNX version converter does the work. Around it:

- Large weights do not go through protobuf, which holds 2 GB: the converter sees them as inputs. Small ones
  it sees as they are, since it turns some of them into attributes or the other way round.
- Functions are inlined first, since it does not look into them.
- Nodes that it rebuilds get their names back.
- Upsample and the Resize of opset 10 sample at i / scale. The Resize of opset 11 samples at
  (i + 0.5) / scale - 0.5 by default. The converter leaves it at that, so the old rule is written down.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import onnx
import onnx.version_converter
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgeinfer.errors import TransformError
from edgeinfer.model.checks import check_graph, name_nodes

__all__ = ["convert_opset"]

# The converter needs the numbers of shapes, axes and scales, and of nothing larger.
LARGE_BYTES = 4096


def convert_opset(model: ir.Model, version: int, *, wanted_by: str = "") -> ir.Model:
    """Return `model` at the given version of the default opset.

    Args:
        model: The graph; it may be changed.
        version: The opset to reach, from 8 to the newest that the installed `onnx` knows.
        wanted_by: Who needs it, for the error message.

    Raises:
        TransformError: The converter cannot convert an operator of the model; the message names it.
    """
    before = model.opset_imports.get("", 0)
    if before == version:
        return model
    operators = {node.op_type for node in model.graph.all_nodes() if not node.domain}
    names = {
        output.name: node.name for node in model.graph.all_nodes() for output in node.outputs if output.name
    }
    sampled = {
        node.outputs[0].name for node in model.graph.all_nodes() if node.op_type in ("Upsample", "Resize")
    }
    declared = {value.name: value.shape for value in (*model.graph.inputs, *model.graph.outputs)}
    try:
        common_passes.RemoveInitializersFromInputsPass()(model)
        model.ir_version = max(model.ir_version, 4)  # before it, every initializer had to be an input
        if model.functions:
            common_passes.InlinePass()(model)
        weights = _detach_weights(model)
        proto = onnx.version_converter.convert_version(ir.to_proto(model), version)
        converted = ir.from_proto(proto)
        _attach_weights(converted, weights)
        if before < 11 <= version:
            _keep_sampling(converted, sampled)
        _restore_names(converted, names)
        name_nodes(converted)  # the converter adds some without a name
        for value in (*converted.graph.inputs, *converted.graph.outputs):
            value.shape = declared[value.name]  # the converter infers, and so knows more than was declared
        check_graph(converted)
    except Exception as error:
        culprit = _operator_in(str(error), operators)
        raise TransformError(
            f"The model cannot be converted from opset {before} to {version}: {_short(error)}",
            where=" ".join(part for part in (wanted_by, f"operator {culprit}" if culprit else "") if part)
            or None,
            hint=f"Export the model again with opset {version}.",
            facts={"operator": culprit, "from": before, "to": version},
        ) from error
    converted.metadata_props.update(model.metadata_props)
    return converted


def _detach_weights(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """Turn large initializers of the main graph into inputs and return their tensors."""
    weights: dict[str, ir.TensorProtocol] = {}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and tensor.nbytes > LARGE_BYTES:
            weights[name] = tensor
            del model.graph.initializers[name]
            value.const_value = None
            value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.numpy().shape)
            model.graph.inputs.append(value)
    return weights


def _attach_weights(model: ir.Model, weights: dict[str, ir.TensorProtocol]) -> None:
    for value in [value for value in model.graph.inputs if value.name in weights]:
        model.graph.inputs.remove(value)
        value.const_value = weights[value.name or ""]
        model.graph.register_initializer(value)


def _keep_sampling(model: ir.Model, outputs: Iterable[str | None]) -> None:
    wanted = set(outputs)
    for node in model.graph.all_nodes():
        if node.op_type == "Resize" and not node.domain and node.outputs[0].name in wanted:
            node.attributes.add(ir.AttrString("coordinate_transformation_mode", "asymmetric"))
            node.attributes.add(ir.AttrString("nearest_mode", "floor"))


def _restore_names(model: ir.Model, names: dict[str, str | None]) -> None:
    taken = {node.name for node in model.graph.all_nodes()}
    for node in model.graph.all_nodes():
        for output in node.outputs:
            name = names.get(output.name or "")
            if name and name not in taken:
                node.name = name
                taken.add(name)


def _operator_in(message: str, operators: Iterable[str]) -> str | None:
    """Return the operator that the converter's message names; it runs words and numbers together."""
    for operator in sorted(operators, key=len, reverse=True):
        if re.search(rf"(?<![A-Za-z]){re.escape(operator)}(?![a-z])", message):
            return operator
    return None


def _short(error: Exception) -> str:
    """Leave out the path of the converter's source."""
    return re.sub(r"^\S+\.(?:cc|h):\d+: \w+: ", "", str(error).strip())
