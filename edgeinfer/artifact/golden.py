"""Comparing what a device computes with an artifact's golden outputs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgeinfer.artifact.manifest import Golden
from edgeinfer.errors import GoldenMismatchError

__all__ = ["compare_golden"]


def compare_golden(golden: Golden, outputs: Mapping[str, np.ndarray]) -> None:
    """Compare as `numpy.allclose` does: |found - expected| <= atol + rtol * |expected|, NaN equal to NaN.

    Args:
        golden: The expected outputs and the tolerances.
        outputs: What was computed from `golden.inputs`, by output name.

    Raises:
        GoldenMismatchError: It names the first output that differs, and the worst element of it.
    """
    for name, expected in golden.outputs.items():
        found = outputs.get(name)
        if found is None:
            raise GoldenMismatchError("An output is missing.", expected=name, found=", ".join(outputs))
        if found.shape != expected.shape or found.dtype != expected.dtype:
            raise GoldenMismatchError(
                "An output has another shape or dtype than the golden one.",
                where=f"output {name!r}",
                expected=f"{expected.dtype} {expected.shape}",
                found=f"{found.dtype} {found.shape}",
            )
        _compare(name, found, expected, golden)


def _compare(name: str, found: np.ndarray, expected: np.ndarray, golden: Golden) -> None:
    hint = "The device computes something else: do not activate this artifact here."
    if expected.dtype.kind not in "fiubc":  # strings, and dtypes that numpy does not have: by value
        if not np.array_equal(found, expected):
            raise GoldenMismatchError("An output differs.", where=f"output {name!r}", hint=hint)
        return
    left, right = found.astype(np.float64), expected.astype(np.float64)
    difference = np.abs(left - right)
    difference[(left == right) | (np.isnan(left) & np.isnan(right))] = 0  # also equal infinities
    difference[np.isnan(difference)] = np.inf
    failing = difference > golden.atol + golden.rtol * np.where(np.isfinite(right), np.abs(right), 0)
    if not failing.any():
        return
    worst = np.unravel_index(int(np.argmax(np.where(failing, difference, -1))), difference.shape)
    raise GoldenMismatchError(
        f"An output differs by up to {difference[worst]:.6g} from the golden one.",
        where=f"output {name!r} at {tuple(int(index) for index in worst)}",
        expected=f"{right[worst]:.6g} within rtol {golden.rtol:g} and atol {golden.atol:g}",
        found=f"{left[worst]:.6g}; {int(failing.sum())} of {failing.size} elements are outside",
        hint=hint,
        facts={"output": name, "worst": float(difference[worst])},
    )
