"""What a runtime raises, as an error of this package."""

from __future__ import annotations

from edgeinfer.errors import EdgeInferError, InferenceError

__all__ = ["wrapped"]


def wrapped(error: Exception, *, backend: str, device: str) -> EdgeInferError:
    """Return an error of this package for one of any kind; those of this package stay what they are.

    Args:
        error: What an adapter or its runtime raised. The caller raises the result `from` it.
        backend: The name of the backend.
        device: The device name within it; empty for its default.
    """
    if isinstance(error, EdgeInferError):
        return error
    return InferenceError(
        f"{backend} failed: {type(error).__name__}: {str(error).strip()}",
        where=f"device {device or 'default'}",
        facts={"backend": backend},
    )
