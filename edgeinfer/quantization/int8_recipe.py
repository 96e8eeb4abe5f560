"""The transforms that make a model int8, in the order that was measured to be the closest to float."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from edgeinfer.backends.base import QDQDialect
from edgeinfer.devices.profile import Target
from edgeinfer.quantization.quantize_static import QuantizeStatic
from edgeinfer.transforms.base import Transform

__all__ = ["preparation", "quantizers"]


def preparation(calibration: Any) -> tuple[Transform, ...]:
    """Return what makes a float model easier to quantize and leaves its function as it is."""
    del calibration
    return ()


def quantizers(
    calibration: Any,
    target: Target | str | QDQDialect | None,
    *,
    method: str = "mse",
    keep_float: Collection[str] = (),
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> tuple[Transform, ...]:
    """Return what quantizes it and mends what that did to weights and biases."""
    return (
        QuantizeStatic(
            calibration=calibration, target=target, method=method, keep_float=keep_float, ranges=ranges
        ),
    )
