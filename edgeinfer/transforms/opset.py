"""Opset conversion, for transforms that need newer operators than the model has."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgeinfer.errors import TransformError

__all__ = ["convert_opset"]


def convert_opset(model: ir.Model, version: int, *, wanted_by: str = "") -> ir.Model:
    """Return `model` at the given version of the default opset.

    The ONNX version converter does the work. It sees weights only up to its size limit, so the large ones
    are put back afterwards.

    Args:
        model: The graph; it may be changed.
        version: The opset to reach, at least 8.
        wanted_by: Who needs it, for the error message.

    Raises:
        TransformError: The converter cannot convert an operator of the model.
    """
    before = model.opset_imports.get("", 0)
    try:
        common_passes.RemoveInitializersFromInputsPass()(model)
        model.ir_version = max(model.ir_version, 4)
        weights = {name: value.const_value for name, value in model.graph.initializers.items()}
        proto = onnx.version_converter.convert_version(ir.to_proto(model), version)
        converted = ir.from_proto(proto)
    except Exception as error:
        raise TransformError(
            f"The model cannot be converted from opset {before} to {version}: {error}",
            where=wanted_by or None,
            hint="Export the model again with a newer opset.",
        ) from error
    for name, tensor in weights.items():
        value = converted.graph.initializers.get(name)
        kept = value.const_value if value is not None else None
        if value is not None and tensor is not None and kept is not None:
            same = kept.shape == tensor.shape and kept.dtype == tensor.dtype
            value.const_value = tensor if same else kept
    converted.metadata_props.update(model.metadata_props)
    return converted
