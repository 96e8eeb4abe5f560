"""The adapter of one runtime; `backend` has its class."""

from edgeinfer.backends.tensorrt_.backend import TensorRTBackend

__all__ = ["TensorRTBackend"]
