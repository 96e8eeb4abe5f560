"""The values of tensors that do not depend on the inputs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

__all__ = ["constant_value"]


def constant_value(value: ir.Value | None) -> np.ndarray | None:
    """Return the tensor that `value` always holds, or None when it depends on the inputs.

    Initializers and `Constant` are such, and `Identity`, `Cast` and `Transpose` of these, so that weights
    stored as float16 behind a Cast count as the float32 weights that they are. Other constant expressions
    are left to `Simplify`.
    """
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is not None:
        return np.asarray(tensor.numpy())
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type not in ("Identity", "Cast", "Transpose"):
        return None
    array = constant_value(node.inputs[0])
    if array is None:
        return None
    if node.op_type == "Cast":
        return np.asarray(array, ir.DataType(node.attributes["to"].as_int()).numpy())
    if node.op_type == "Transpose":
        permutation = node.attributes.get("perm")
        return np.transpose(array, permutation.as_ints() if permutation is not None else None)
    return array
