"""Small models for the tests of weight transforms."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser

from edgeinfer.model.model import Model


def make(text: str, seed: int = 0, **shapes: tuple[int, ...]) -> Model:
    """Parse ONNX text and add random float32 weights of the given shapes."""
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(seed)
    for name, shape in shapes.items():
        array = rng.standard_normal(shape).astype(np.float32)
        if len(shape) > 1:  # channels of unlike ranges, as batch normalization leaves them
            array *= np.exp(rng.normal(0, 1, (shape[0], *[1] * (len(shape) - 1)))).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return Model.load(proto)


def chain(activation: str = "Relu") -> Model:
    """Conv, activation, depthwise Conv, activation, Conv."""
    return make(
        f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 3, 8, 8] x) => (float[N, 5, 8, 8] y) {{
            c1 = Conv<pads=[1, 1, 1, 1]>(x, w1, b1)
            a1 = {activation}(c1)
            c2 = Conv<group=8, pads=[1, 1, 1, 1]>(a1, w2, b2)
            a2 = {activation}(c2)
            y = Conv(a2, w3, b3)
        }}""",
        w1=(8, 3, 3, 3), b1=(8,), w2=(8, 1, 3, 3), b2=(8,), w3=(5, 8, 1, 1), b3=(5,),
    )  # fmt: skip


def clipped() -> Model:
    """Gemm, Clip between 0 and 6, Gemm."""
    return make(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x) => (float[N, 4] y) <float low = {0.0}, float high = {6.0}> {
            a = Gemm(x, w1, b1)
            c = Clip(a, low, high)
            y = Gemm(c, w2, b2)
        }""",
        w1=(4, 4), b1=(4,), w2=(4, 4), b2=(4,),
    )  # fmt: skip


def mlp() -> Model:
    """LayerNormalization, MatMul, Add, Relu, Gemm (transB=1)."""
    return make(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 64] x) => (float[N, 64] y) {
            n = LayerNormalization(x, scale, shift)
            m = MatMul(n, w1)
            a = Add(m, b1)
            r = Relu(a)
            y = Gemm<transB=1>(r, w2, b2)
        }""",
        scale=(64,), shift=(64,), w1=(64, 96), b1=(96,), w2=(64, 96), b2=(64,),
    )  # fmt: skip


def feeds(model: Model, count: int = 8, batch: int = 4, seed: int = 1) -> list[dict[str, np.ndarray]]:
    """Return random feeds for the one input."""
    spec = model.signature.inputs[0]
    rng = np.random.default_rng(seed)
    shape = (batch, *spec.shape[1:])
    return [{spec.name: rng.standard_normal(shape).astype(np.float32)} for _ in range(count)]


def run(model: Model, given: list[dict[str, np.ndarray]]) -> np.ndarray:
    """Run in ONNX Runtime; the first output of all feeds."""
    import edgeinfer as ei

    with ei.load(ei.compile(model, backend="onnxruntime")) as session:
        return np.concatenate([next(iter(session.infer(feed).values())) for feed in given])


def sqnr_db(reference: np.ndarray, other: np.ndarray) -> float:
    """Return the signal to noise ratio."""
    noise = float(((reference.astype(np.float64) - other) ** 2).sum())
    return float(10 * np.log10((reference.astype(np.float64) ** 2).sum() / max(noise, 1e-300)))
