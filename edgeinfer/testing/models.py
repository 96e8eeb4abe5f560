"""Small models with their results in numpy, for testing backends without trusting any runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.model.model import Model

__all__ = ["ReferenceModel", "add_model", "affine_model", "classifier_model", "two_output_model"]


@final
@attrs.frozen(kw_only=True, eq=False)
class ReferenceModel:
    """A model, a maker of feeds for it, and its function in numpy.

    Attributes:
        name: For messages.
        model: The Model.
        shapes: The shape of each input; the first axis is replaced by `batch` where it is symbolic.
        function: From the inputs to the outputs, both by name.
    """

    name: str
    model: Model
    shapes: Mapping[str, tuple[int, ...]]
    function: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]

    def feed(self, *, seed: int, batch: int = 1) -> dict[str, np.ndarray]:
        """Return random inputs: standard normal floats, or integers from 0 to 9."""
        rng = np.random.default_rng(seed)
        feed = {}
        for spec in self.model.signature.inputs:
            shape = self.shapes[spec.name]
            if spec.shape is not None and not isinstance(spec.shape[0], int):
                shape = (batch, *shape[1:])
            if spec.dtype.kind == "f":
                feed[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
            else:
                feed[spec.name] = rng.integers(0, 10, shape).astype(spec.dtype)
        return feed

    def expected(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs that numpy computes."""
        return self.function(feed)


def _model(text: str, weights: Mapping[str, np.ndarray] | None = None) -> Model:
    """Parse ONNX text in which the weights stand among the inputs, and make them weights."""
    parsed = ir.from_onnx_text(text)
    for value in list(parsed.graph.inputs):
        array = (weights or {}).get(value.name or "")
        if array is not None:
            value.const_value = ir.tensor(array, name=value.name)
            parsed.graph.inputs.remove(value)
            parsed.graph.register_initializer(value)
    return Model.from_ir(parsed)


def add_model() -> ReferenceModel:
    """Return `y = x + 1` over float32 (1, 8): the least that a runtime can do."""
    model = _model(
        """<ir_version: 8, opset_import: ["" : 13]>
        add (float[1,8] x) => (float[1,8] y)
        <float[1] one = {1.0}>
        { y = Add(x, one) }"""
    )
    return ReferenceModel(name="add", model=model, shapes={"x": (1, 8)}, function=lambda f: {"y": f["x"] + 1})


def affine_model() -> ReferenceModel:
    """Return `y = relu(x @ W + b)` over float32 (3, 5), static."""
    rng = np.random.default_rng(0)
    W, b = rng.standard_normal((5, 4)).astype(np.float32), rng.standard_normal(4).astype(np.float32)
    model = _model(
        """<ir_version: 8, opset_import: ["" : 13]>
        affine (float[3,5] x, float[5,4] W, float[4] b) => (float[3,4] y)
        { h = Gemm(x, W, b)
          y = Relu(h) }""",
        {"W": W, "b": b},
    )
    return ReferenceModel(
        name="affine",
        model=model,
        shapes={"x": (3, 5)},
        function=lambda f: {"y": np.maximum(f["x"] @ W + b, 0)},
    )


def two_output_model() -> ReferenceModel:
    """Return two inputs of different dtypes and two outputs: `i + i` in int64 and `x * 2` in float32."""
    model = _model(
        """<ir_version: 8, opset_import: ["" : 13]>
        pair (float[2,3] x, int64[2,3] i) => (int64[2,3] double, float[2,3] twice)
        <float[1] two = {2.0}>
        { double = Add(i, i)
          twice = Mul(x, two) }"""
    )
    return ReferenceModel(
        name="two outputs",
        model=model,
        shapes={"x": (2, 3), "i": (2, 3)},
        function=lambda f: {"double": f["i"] + f["i"], "twice": f["x"] * 2},
    )


def classifier_model() -> ReferenceModel:
    """Return Conv (3x3, stride 2, padded), ReLU, global pooling, Gemm over (N, 3, 8, 8), N symbolic."""
    rng = np.random.default_rng(1)
    K = rng.standard_normal((6, 3, 3, 3)).astype(np.float32) * np.float32(0.3)
    W, b = rng.standard_normal((6, 4)).astype(np.float32), rng.standard_normal(4).astype(np.float32)
    model = _model(
        """<ir_version: 8, opset_import: ["" : 13]>
        classifier (float[N,3,8,8] image, float[6,3,3,3] K, float[6,4] W, float[4] b) => (float[N,4] logits)
        { c = Conv <kernel_shape = [3,3], pads = [1,1,1,1], strides = [2,2]> (image, K)
          r = Relu(c)
          p = GlobalAveragePool(r)
          f = Flatten(p)
          logits = Gemm(f, W, b) }""",
        {"K": K, "W": W, "b": b},
    )

    def function(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        padded = np.pad(feed["image"], ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2, ::2]
        conv = np.einsum("nchwij,ocij->nohw", windows, K)
        return {"logits": np.maximum(conv, 0).mean((2, 3)) @ W + b}

    return ReferenceModel(name="classifier", model=model, shapes={"image": (1, 3, 8, 8)}, function=function)
