"""Choosing a backend when none was named."""

from __future__ import annotations

from edgeinfer.backends.registry import backends

__all__ = ["default_backend", "preference_of"]

# The fastest first: an NVIDIA device where there is one, then OpenVINO, which beats ONNX Runtime on x86 for
# quantized models (docs/adr), then what runs everywhere. Third parties' backends are used when named.
_PREFERENCE = ("tensorrt", "openvino", "onnxruntime")


def default_backend() -> str:
    """Return the name of the best backend that is available on this machine."""
    registered = backends()
    for name in _PREFERENCE:
        if name in registered and registered[name].available:
            return name
    return _PREFERENCE[-1]


def preference_of(backend: str) -> int:
    """Return the place of a backend in the order of preference, 0 for the first. Others come last."""
    return _PREFERENCE.index(backend) if backend in _PREFERENCE else len(_PREFERENCE)
