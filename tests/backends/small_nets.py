"""Small nets for the fakes of TensorRT, and building them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx

import edgeinfer as ei

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'
STATIC = HEAD + "g (float[2,3] x) => (float[2,3] y) <float[3] w = {1, 2, 3}> { s = Mul(x, w)\n y = Relu(s) }"
FLOAT = HEAD + "g (float[1,2] x) => (float[1,2] y) <float[2,2] w = {1, 2, 3, 4}> { y = MatMul(x, w) }"
TWO = HEAD + "g (float[1,2] x) => (float[1,2] y) { h = Relu(x)\n y = Sigmoid(h) }"
# An input of STATIC, and its output.
X = np.array([[1, -2, 3], [4, 5, -6]], np.float32)
Y = np.array([[1, 0, 9], [4, 10, 0]], np.float32)


def model(text: str) -> onnx.ModelProto:
    """Return the model of a text."""
    return onnx.parser.parse_model(text)


def build(
    text: str, *, device: str | None = None, cache: Path | None = None, **options: object
) -> ei.Artifact:
    """Return the engine of a text, by the fake that is installed."""
    return ei.compile(model(text), "tensorrt", device=device, options=options, cache_dir=cache)


def config(fake: SimpleNamespace) -> SimpleNamespace:
    """Return the builder's configuration of the last build."""
    return fake.builds[-1].config
