"""Feeds made up from a signature, for measuring without data."""

from __future__ import annotations

import numpy as np

from edgeinfer.artifact.signature import Signature, TensorSpec
from edgeinfer.errors import InputError
from edgeinfer.feeds.shapes import Shapes, resolve_shapes

__all__ = ["generate_feeds"]


def generate_feeds(
    signature: Signature,
    samples: int = 1,
    *,
    shapes: Shapes | None = None,
    batch: int | None = None,
    seed: int = 0,
) -> list[dict[str, np.ndarray]]:
    """Return so many feeds of pseudo-random values.

    Floats are standard normal. Integers and booleans are 0 or 1, which are valid token ids, masks and
    indices in nearly every model.

    Args:
        signature: The inputs.
        samples: How many feeds.
        shapes: Sizes of symbolic dimensions (`{"N": 8}`) or entire shapes (`{"input": (8, 3, 224, 224)}`).
        batch: The size of the batch where the model leaves it open; None: 1.
        seed: Of the generator; the same seed gives the same feeds.

    Raises:
        InputError: A shape is missing or does not fit, or an input has a dtype that cannot be made up.
    """
    resolved = resolve_shapes(signature, shapes, batch=batch)
    rng = np.random.default_rng(seed)
    return [
        {spec.name: _values(spec, resolved[spec.name], rng) for spec in signature.inputs}
        for _ in range(samples)
    ]


def _values(spec: TensorSpec, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    kind = spec.dtype.kind
    if kind in "iub":
        return rng.integers(0, 2, shape).astype(spec.dtype)
    if kind in "fV":  # V: the float types of ml_dtypes
        return rng.standard_normal(shape, np.float32).astype(spec.dtype)
    raise InputError(
        "Values for this input cannot be made up.",
        where=f"input {spec.name!r}",
        found=spec.describe(),
        hint="Pass feeds of your own.",
    )
