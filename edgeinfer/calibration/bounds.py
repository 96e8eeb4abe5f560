"""Bounds of tensors that follow from the operator that makes them."""

from __future__ import annotations

import onnx_ir as ir

from edgeinfer.model.model import Model

__all__ = ["reachable_bounds"]


def reachable_bounds(model: Model) -> dict[str, tuple[float, float]]:
    """Return the least and the greatest value that a tensor can have, for those that come to have them.

    Those are the outputs of a Clip (ReLU6 is one) between constants, and of HardSigmoid. Once both bounds
    were seen no further data can change the extremes.
    """
    found = {}
    for node in model.ir.graph:
        bounds = (0.0, 1.0) if node.op_type == "HardSigmoid" else _clip_bounds(node)
        if bounds is not None and node.domain in ("", "ai.onnx"):
            found[node.outputs[0].name or ""] = bounds
    return found


def _clip_bounds(node: ir.Node) -> tuple[float, float] | None:
    if node.op_type != "Clip":
        return None
    low, high = _end(node, 1, "min"), _end(node, 2, "max")  # attributes up to opset 10
    return None if low is None or high is None or low > high else (low, high)


def _end(node: ir.Node, index: int, attribute: str) -> float | None:
    if attribute in node.attributes:
        return node.attributes[attribute].as_float()
    value = node.inputs[index] if index < len(node.inputs) else None
    constant = ir.convenience.get_const_tensor(value) if value is not None else None
    return None if constant is None or constant.size != 1 else float(constant.numpy().reshape(()))
