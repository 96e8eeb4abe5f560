"""Small models with their results in numpy, for testing backends without trusting any runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.model.model import Model

__all__ = [
    "ReferenceModel",
    "add_model",
    "affine_model",
    "alias_model",
    "cast_model",
    "classifier_model",
    "default_input_model",
    "double_integers_model",
    "label_model",
    "positions_model",
    "reshape_model",
    "two_output_model",
    "words_model",
]

WORDS = ("edge", "ünïcode", "", "a longer word than fits beside its length")


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
        """Return random inputs: standard normal floats, integers from 0 to 9, or words.

        Dtypes that numpy does not have get integers from 0 to 3, which all of them hold.
        """
        rng = np.random.default_rng(seed)
        feed = {}
        for spec in self.model.signature.inputs:
            shape = self.shapes[spec.name]
            if spec.shape and not isinstance(spec.shape[0], int):
                shape = (batch, *shape[1:])
            if spec.dtype == object:
                drawn = [WORDS[i] for i in rng.integers(0, len(WORDS), int(np.prod(shape)))]
                feed[spec.name] = np.array(drawn, object).reshape(shape)
            elif spec.dtype.isbuiltin != 1:
                feed[spec.name] = rng.integers(0, 4, shape).astype(np.float32).astype(spec.dtype)
            elif spec.dtype.kind == "f":
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
            value.const_value = _tensor(array, value.name or "")
            parsed.graph.inputs.remove(value)
            parsed.graph.register_initializer(value)
    return Model.from_ir(parsed)


def _tensor(array: np.ndarray, name: str) -> ir.TensorProtocol:
    if array.dtype != object:
        return ir.tensor(array, name=name)
    return ir.StringTensor(
        [str(word).encode() for word in array.flat], shape=ir.Shape(array.shape), name=name
    )


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


def alias_model() -> ReferenceModel:
    """Return outputs that are the input (N, 4) by other names, and one value that is two outputs."""
    model = _model(
        """<ir_version: 8, opset_import: ["" : 13]>
        aliases (float[N,4] x) => (float[N,4] same, float[M] flat, float[N,4] twice, float[N,4] again)
        <int64[1] all = {-1}>
        { same = Identity(x)
          flat = Reshape(x, all)
          twice = Add(x, x)
          again = Identity(twice) }"""
    )
    return ReferenceModel(
        name="aliases",
        model=model,
        shapes={"x": (1, 4)},
        function=lambda f: {
            "same": f["x"].copy(),
            "flat": f["x"].reshape(-1).copy(),
            "twice": f["x"] * 2,
            "again": f["x"] * 2,
        },
    )


def default_input_model() -> ReferenceModel:
    """Return `y = x * scale` over float32 (N, 4), where `scale` of shape (1,) is an input with default 2."""
    model = _model(
        """<ir_version: 8, opset_import: ["" : 13]>
        scaled (float[N,4] x, float[1] scale = {2.0}) => (float[N,4] y) { y = Mul(x, scale) }"""
    )
    return ReferenceModel(
        name="default input",
        model=model,
        shapes={"x": (1, 4)},
        function=lambda f: {"y": f["x"] * f.get("scale", np.float32(2))},
    )


def label_model() -> ReferenceModel:
    """Return the word of the greatest of four values in each row of float32 (N, 4)."""
    model = _model(
        """<ir_version: 8, opset_import: ["" : 13]>
        label (float[N,4] x, string[4] words) => (string[N] label)
        { i = ArgMax <axis = 1, keepdims = 0> (x)
          label = Gather(words, i) }""",
        {"words": np.array(WORDS, object)},
    )
    return ReferenceModel(
        name="label",
        model=model,
        shapes={"x": (1, 4)},
        function=lambda f: {"label": np.array(WORDS, object)[f["x"].argmax(1)]},
    )


def words_model() -> ReferenceModel:
    """Return words (N,) as they came, and twice as many."""
    model = _model(
        """<ir_version: 8, opset_import: ["" : 13]>
        words (string[N] x) => (string[N] same, string[M] twice)
        { same = Identity(x)
          twice = Concat <axis = 0> (x, x) }"""
    )
    return ReferenceModel(
        name="words",
        model=model,
        shapes={"x": (1,)},
        function=lambda f: {"same": f["x"].copy(), "twice": np.concatenate([f["x"], f["x"]])},
    )


def cast_model(kind: str, shape: tuple[int | str, ...]) -> ReferenceModel:
    """Return a dtype by ONNX's name cast to float32, and small natural numbers in float32 cast to it."""
    dims = ",".join(map(str, shape))
    model = _model(
        f"""<ir_version: 10, opset_import: ["" : 21]>
        casts ({kind}[{dims}] x, float[{dims}] z) => (float[{dims}] y, {kind}[{dims}] w)
        {{ y = Cast <to = 1> (x)
           a = Abs(z)
           n = Floor(a)
           w = Cast <to = {int(ir.DataType[kind.upper()])}> (n) }}"""
    )
    dtype = model.signature.inputs[0].dtype

    def function(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": feed["x"].astype(np.float32), "w": np.floor(np.abs(feed["z"])).astype(dtype)}

    return ReferenceModel(name=f"cast {kind}", model=model, shapes={"x": (4,), "z": (4,)}, function=function)


def double_integers_model() -> ReferenceModel:
    """Return `double = i + i` over int64 (2,)."""
    model = _model(
        """<ir_version: 8, opset_import: ["" : 13]>
        integers (int64[2] i) => (int64[2] double) { double = Add(i, i) }"""
    )
    return ReferenceModel(
        name="integers", model=model, shapes={"i": (2,)}, function=lambda f: {"double": f["i"] * 2}
    )


def positions_model() -> ReferenceModel:
    """Return the positions int64 (1, M) of what is not zero in float32 (4,)."""
    model = _model(
        """<ir_version: 8, opset_import: ["" : 13]>
        positions (float[4] x) => (int64[1,M] at) { at = NonZero(x) }"""
    )
    return ReferenceModel(
        name="positions",
        model=model,
        shapes={"x": (4,)},
        function=lambda f: {"at": np.array(np.nonzero(f["x"]), np.int64)},
    )


def reshape_model() -> ReferenceModel:
    """Return the ReLU of float32 (N, 6) in the shape that another input says, which may not fit."""
    model = _model(
        """<ir_version: 8, opset_import: ["" : 13]>
        reshape (float[N,6] x, int64[2] shape) => (float[A,B] y)
        { r = Relu(x)
          y = Reshape(r, shape) }"""
    )
    return ReferenceModel(
        name="reshape",
        model=model,
        shapes={"x": (2, 6), "shape": (2,)},
        function=lambda f: {"y": np.maximum(f["x"], 0).reshape(tuple(f["shape"]))},
    )
