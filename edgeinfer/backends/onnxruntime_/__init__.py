"""The adapter of one runtime; `backend` has its class."""

from edgeinfer.backends.onnxruntime_.backend import OnnxRuntimeBackend

__all__ = ["OnnxRuntimeBackend"]
