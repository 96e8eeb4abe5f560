"""Tensors that a transform scaled, noted in the model so that a comparison can put them on one scale.

Equalization divides the channels of a tensor by factors and multiplies the weights behind by the same: the
outputs stay, the tensors between do not.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from edgeinfer.errors import InvalidModelError
from edgeinfer.plain_json import parse_json

__all__ = ["RESCALED_KEY", "note_rescaled", "rescaled"]

# Metadata, as JSON: {tensor: {"shape": [...], "divided_by": the factors, float32 in base64}}.
RESCALED_KEY = "edgeinfer.rescaled"


def note_rescaled(model: ir.Model, factors: Mapping[str, np.ndarray]) -> None:
    """Note that tensors were divided by factors, on top of what is noted already.

    Args:
        model: The graph; its metadata is changed.
        factors: By tensor name, arrays that broadcast to the tensor.
    """
    found = rescaled(model)
    for name, divided_by in factors.items():
        found[name] = np.asarray(divided_by, np.float64) * found.get(name, np.ones(()))
    entries = {
        name: {
            "shape": list(divided_by.shape),
            "divided_by": base64.b64encode(divided_by.astype("<f4").tobytes()).decode(),
        }
        for name, divided_by in found.items()
        if (divided_by != 1).any()
    }
    if entries:
        model.metadata_props[RESCALED_KEY] = json.dumps(entries, separators=(",", ":"))


def rescaled(model: ir.Model) -> dict[str, np.ndarray]:
    """Return what tensors were divided by, as far as it is noted: float64, by tensor name.

    Raises:
        InvalidModelError: The metadata entry is not what edgeinfer wrote.
    """
    text = model.metadata_props.get(RESCALED_KEY)
    if text is None:
        return {}
    try:
        return {
            name: np.frombuffer(base64.b64decode(entry["divided_by"], validate=True), "<f4")
            .reshape(entry["shape"])
            .astype(np.float64)
            for name, entry in parse_json(text).items()
        }
    except (ValueError, TypeError, KeyError, AttributeError, binascii.Error) as error:
        raise InvalidModelError(
            "The model's note on scaled tensors cannot be read.",
            where=f"metadata entry {RESCALED_KEY!r}",
            found=str(error),
            hint="Remove the entry from the model's metadata.",
        ) from error
