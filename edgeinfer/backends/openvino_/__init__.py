"""The adapter of one runtime; `backend` has its class."""

from edgeinfer.backends.openvino_.backend import OpenVINOBackend

__all__ = ["OpenVINOBackend"]
