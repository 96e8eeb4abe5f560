"""Scales that are noted at float weights which lie on a grid, so that a quantizer uses the same grid."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir

__all__ = ["SCALE_KEY", "noted_scale"]

# Metadata of a weight tensor that lies on a grid: {"scale": [...], "axis": int, "bits": int}.
SCALE_KEY = "edgeinfer.scale"

_ON_GRID = 1e-2  # of a step; what float32 and float16 leave of an integer


def noted_scale(weight: ir.Value | None, bits: int) -> np.ndarray | None:
    """Return the scale of each channel of a float weight that lies on a grid, float32 (channels,).

    None when nothing is noted, when the grid has more bits than are wanted, or when the weight has left it.

    Args:
        weight: The initializer.
        bits: How many bits there are to store it in.
    """
    tensor = weight.const_value if weight is not None else None
    text = tensor.metadata_props.get(SCALE_KEY) if tensor is not None else None
    if tensor is None or text is None:
        return None
    facts = json.loads(text)
    scale = np.asarray(facts["scale"], np.float32)
    array = tensor.numpy().astype(np.float32)
    axis = int(facts["axis"])
    if int(facts["bits"]) > bits or scale.shape != array.shape[axis : axis + 1]:
        return None
    levels = array / scale.reshape([-1 if i == axis else 1 for i in range(array.ndim)])
    on_grid = np.abs(levels - np.rint(levels)).max(initial=0.0) < _ON_GRID
    fits = np.abs(levels).max(initial=0.0) < 2 ** (bits - 1) - 0.5
    return scale if on_grid and fits else None
