"""What int8 gained over float16 where it was timed: the table that decides where no GPU is.

The bound mode, median milliseconds, by `benchmarks/gpu/run.py`; docs/tensorrt.md has the conditions.
"""

from __future__ import annotations

from edgeinfer.backends.dialect import TimedModel

__all__ = ["TIMED"]

_H200 = "H200, TensorRT 8.5.3.1, 2026-11"
_H100 = "H100, TensorRT 8.5.3, 2026-11"

# Model, attention, layers with weights, multiply-accumulates, float16, int8, source.
_ROWS = (
    ("ViT-B/16, batch 1", True, 74, 17.6e9, 0.654, 0.828, _H200),
    ("ViT-B/16, batch 8", True, 74, 141e9, 1.516, 2.163, _H200),
    ("ViT-B/16, batch 32", True, 74, 562e9, 4.110, 8.105, _H200),
    ("MiniLM-L6, 32 tokens", True, 36, 0.34e9, 0.204, 0.240, _H200),
    ("ResNet-50, batch 1", False, 54, 4.1e9, 0.430, 0.284, _H200),
    ("ResNet-50, batch 8", False, 54, 33e9, 0.654, 0.533, _H200),
    ("ResNet-50, batch 32", False, 54, 131e9, 1.565, 1.179, _H200),
    ("MobileNetV2, batch 1", False, 53, 0.30e9, 0.228, 0.219, _H200),
    ("MobileNetV2, batch 8", False, 53, 2.4e9, 0.434, 0.344, _H200),
    ("MobileNetV2, batch 32", False, 53, 9.6e9, 1.026, 0.831, _H200),
    ("NanoDet-m 320", False, 73, 0.34e9, 0.478, 0.620, _H200),
    ("NanoDet-m 320, batch 8", False, 73, 2.7e9, 1.022, 1.322, _H200),
    ("SqueezeNet 1.1", False, 26, 0.35e9, 0.15, 0.16, _H200),
    ("ResNet-20 (32 x 32)", False, 20, 0.04e9, 0.127, 0.126, _H100),
    ("DS-CNN (keywords)", False, 10, 0.003e9, 0.055, 0.074, _H100),
)

TIMED = tuple(
    TimedModel(
        model=model,
        attention=attention,
        layers=layers,
        macs=macs,
        float16_ms=float16_ms,
        int8_ms=int8_ms,
        source=source,
    )
    for model, attention, layers, macs, float16_ms, int8_ms, source in _ROWS
)
