"""Nets to calibrate an estimate on: blocks as real nets have them, of random sizes.

Each net is made from its number alone, so that a calibration can be repeated. Kernel sizes, channels and
resolutions are drawn so that the nets span what fits an edge device: 0.05 to 500 million
multiply-accumulates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeinfer.estimate.net_builder import NetBuilder
from edgeinfer.model.model import Model

__all__ = ["FAMILIES", "synthetic_net"]

MIN_MACS, MAX_MACS = 5e4, 5e8
_TRIES = 200
Rng = np.random.Generator


def synthetic_net(number: int) -> Model:
    """Return net `number` of the calibration set."""
    from edgeinfer.graph.macs import node_macs
    from edgeinfer.measure.inspection import with_static_shapes

    names = list(FAMILIES)
    family = FAMILIES[names[number % len(names)]]
    for attempt in range(_TRIES):
        rng = np.random.default_rng((number, attempt))
        # Log-uniform work: without this nearly all nets would be large ones.
        wanted = MIN_MACS * (MAX_MACS / MIN_MACS) ** rng.random()
        model = family(rng)
        static, _ = with_static_shapes(model, {spec.name: spec.shape for spec in model.signature.inputs})  # type: ignore[misc]
        macs = sum(node_macs(node) or 0 for node in static.graph)
        if wanted / 2 <= macs <= wanted * 2:
            return model
    raise AssertionError(f"no net {number}")  # the families span the range


def _pick(rng: Rng, *values: Any) -> Any:
    return values[int(rng.integers(len(values)))]


def _log(rng: Rng, low: float, high: float) -> int:
    return round(float(np.exp(rng.uniform(np.log(low), np.log(high)))))


def _channels(rng: Rng, low: float, high: float) -> int:
    """Mostly multiples of 8, as nets have them, and now and then any number, as pruned nets have."""
    count = _log(rng, low, high)
    return max(8, count // 8 * 8) if rng.random() < 0.7 else max(3, count)


def _image(b: NetBuilder, rng: Rng, low: int = 24, high: int = 288) -> ir.Value:
    size = _log(rng, low, high)
    return b.input(1, _pick(rng, 1, 3, 3), size, _pick(rng, size, size, max(8, size // 2)))


def _stem(b: NetBuilder, x: ir.Value, rng: Rng, outs: int, act: str) -> ir.Value:
    kernel = _pick(rng, 3, 3, 3, 5, 7)
    return b.act(b.conv(x, outs, kernel, stride=_pick(rng, 1, 2, 2)), act)


def _smallest(b: NetBuilder, x: ir.Value) -> int:
    return min(b.shape(x)[2:])


def plain(rng: Rng) -> Model:
    """Convolutions and poolings."""
    b = NetBuilder(rng)
    act = _pick(rng, "relu", "relu", "leaky", "none")
    c = _channels(rng, 8, 64)
    x = _stem(b, _image(b, rng, 16, 224), rng, c, act)
    for _ in range(rng.integers(1, 7)):
        if rng.random() < 0.5 and _smallest(b, x) >= 8:
            kernel, stride = _pick(rng, (2, 2), (3, 2), (3, 1))
            x = b.pool(x, kernel, stride, _pick(rng, "MaxPool", "MaxPool", "AveragePool"))
            c = min(512, _pick(rng, c, c * 2, _channels(rng, c, 3 * c)))
        x = b.act(b.conv(x, c, _pick(rng, 1, 3, 3, 3, 5)), act)
    return b.finish(b.head(x, _log(rng, 2, 1000)))


def residual(rng: Rng) -> Model:
    """Basic and bottleneck blocks."""
    b = NetBuilder(rng)
    act = _pick(rng, "relu", "relu", "leaky")
    c = _channels(rng, 16, 64)
    x = _stem(b, _image(b, rng), rng, c, act)
    bottleneck = rng.random() < 0.5
    for stage in range(rng.integers(1, 4)):
        if stage:
            c *= 2
        for block in range(rng.integers(1, 4)):
            stride = 2 if stage and not block and _smallest(b, x) >= 4 else 1
            outs = c * 2 if bottleneck else c
            y = b.act(b.conv(x, c, 1 if bottleneck else 3, stride=1 if bottleneck else stride), act)
            if bottleneck:
                y = b.act(b.conv(y, c, 3, stride=stride), act)
            y = b.conv(y, outs, 1 if bottleneck else 3)
            same = stride == 1 and b.shape(x)[1] == outs
            x = b.act(b.add(y, x if same else b.conv(x, outs, 1, stride=stride)), act)
    return b.finish(b.head(x, _log(rng, 2, 1000)))


def separable(rng: Rng) -> Model:
    """Depthwise and pointwise convolutions, as in MobileNet V1."""
    b = NetBuilder(rng)
    act = _pick(rng, "relu", "relu6", "hardswish")
    c = _channels(rng, 8, 64)
    x = _stem(b, _image(b, rng), rng, c, act)
    for _ in range(rng.integers(2, 10)):
        stride = 2 if rng.random() < 0.35 and _smallest(b, x) >= 4 else 1
        x = b.act(b.conv(x, c, _pick(rng, 3, 3, 5), stride=stride, groups=c), act)
        c = min(768, c * 2 if stride == 2 else _pick(rng, c, _channels(rng, c, 2 * c)))
        x = b.act(b.conv(x, c, 1), act)
    return b.finish(b.head(x, _log(rng, 2, 1000)))


def inverted(rng: Rng) -> Model:
    """Inverted residuals, with squeeze and excite now and then, as in MobileNet V2, V3 and EfficientNet."""
    b = NetBuilder(rng)
    act = _pick(rng, "relu6", "relu", "silu", "hardswish")
    squeeze = rng.random() < 0.3
    c = _channels(rng, 8, 32)
    x = _stem(b, _image(b, rng), rng, c, act)
    for _ in range(rng.integers(2, 8)):
        stride = 2 if rng.random() < 0.3 and _smallest(b, x) >= 4 else 1
        outs = _pick(rng, c, c, _channels(rng, c, 2 * c))
        wide = c * _pick(rng, 2, 4, 6)
        y = b.act(b.conv(x, wide, 1), act)
        y = b.act(b.conv(y, wide, _pick(rng, 3, 3, 5), stride=stride, groups=wide), act)
        if squeeze:
            n = b.shape(y)[0]
            s = b.op("GlobalAveragePool", y, shape=(n, wide, 1, 1))
            s = b.conv(b.act(b.conv(s, max(8, wide // 4), 1), "relu"), wide, 1)
            y = b.op("Mul", y, b.op("Sigmoid", s, shape=(n, wide, 1, 1)), shape=b.shape(y))
        y = b.conv(y, outs, 1)
        x = b.add(x, y) if stride == 1 and outs == c else y
        c = outs
    return b.finish(b.head(b.act(b.conv(x, min(1280, c * 4), 1), act), _log(rng, 2, 1000)))


def shuffled(rng: Rng) -> Model:
    """Channel splits and shuffles, as in ShuffleNet V2, with a pyramid and heads now and then."""
    b = NetBuilder(rng)
    act = _pick(rng, "relu", "leaky")
    c = 2 * _channels(rng, 8, 64)
    x = _stem(b, _image(b, rng, 48, 320), rng, c, act)
    levels = [x]
    for _ in range(rng.integers(1, 4)):
        if _smallest(b, x) >= 8:
            left = b.conv(b.conv(x, c, 3, stride=2, groups=c), c, 1)
            right = b.act(b.conv(x, c, 1), act)
            right = b.conv(b.conv(right, c, 3, stride=2, groups=c), c, 1)
            x = b.concat(b.act(left, act), b.act(right, act))
            c *= 2
        for _ in range(rng.integers(1, 4)):
            n, _, h, w = b.shape(x)
            half = (n, c // 2, h, w)
            left, right = b.ops("Split", x, shapes=[half, half], axis=1)
            right = b.act(b.conv(right, c // 2, 1), act)
            right = b.act(b.conv(b.conv(right, c // 2, 3, groups=c // 2), c // 2, 1), act)
            x = b.reshape(b.concat(left, right), n, 2, c // 2, h, w)
            x = b.reshape(b.transpose(x, 0, 2, 1, 3, 4), n, c, h, w)
        levels.append(x)
    if rng.random() < 0.6:
        return b.finish(*_pyramid(b, rng, levels[1:], act))
    return b.finish(b.head(x, _log(rng, 2, 1000)))


def _pyramid(b: NetBuilder, rng: Rng, levels: list[ir.Value], act: str) -> list[ir.Value]:
    width = _channels(rng, 16, 96)
    sides = [b.conv(level, width, 1) for level in levels]
    found = [sides[-1]]
    for side in reversed(sides[:-1]):
        above, shape = found[-1], b.shape(side)
        empty = b.constant(np.zeros(0, np.float32))
        sizes = b.constant(np.array(shape, np.int64))
        up = b.op("Resize", above, empty, empty, sizes, shape=shape, mode=_pick(rng, "linear", "nearest"))
        found.append(b.add(side, up))
    outputs = []
    for level in found:
        for _ in range(rng.integers(1, 3)):
            level = b.act(b.conv(b.conv(level, width, _pick(rng, 3, 5), groups=width), width, 1), act)
        n, _, h, w = b.shape(level)
        outs = _log(rng, 8, 100)
        flat = b.reshape(b.conv(level, outs, 1), n, outs, h * w)
        flat = b.transpose(flat, 0, 2, 1)
        outputs.append(b.op("Sigmoid", flat, shape=b.shape(flat)) if rng.random() < 0.5 else flat)
    return outputs


def joined(rng: Rng) -> Model:
    """Parallel branches that are concatenated, as in SqueezeNet and Inception."""
    b = NetBuilder(rng)
    c = _channels(rng, 16, 64)
    x = b.pool(_stem(b, _image(b, rng, 32, 256), rng, c, "relu"), 3, 2)
    for _ in range(rng.integers(1, 7)):
        narrow = _channels(rng, 8, max(16, c // 2))
        s = b.act(b.conv(x, narrow, 1), "relu")
        wide = _channels(rng, narrow, 4 * narrow)
        x = b.concat(b.act(b.conv(s, wide, 1), "relu"), b.act(b.conv(s, wide, 3), "relu"))
        c = 2 * wide
        if rng.random() < 0.3 and _smallest(b, x) >= 8:
            x = b.pool(x, 3, 2)
    n, *_ = b.shape(x)
    outs = _log(rng, 10, 1000)
    x = b.act(b.conv(x, outs, 1), "relu")
    x = b.op("GlobalAveragePool", x, shape=(n, outs, 1, 1))
    return b.finish(b.op("Softmax", b.reshape(x, n, outs), shape=(n, outs), axis=1))


def enlarging(rng: Rng) -> Model:
    """Convolutions at one resolution, then more pixels, as in ESPCN and small U-Nets."""
    b = NetBuilder(rng)
    act = _pick(rng, "relu", "none", "leaky")
    size = _log(rng, 24, 160)
    x = b.input(1, _pick(rng, 1, 3), size, size)
    c = _channels(rng, 8, 64)
    for kernel in (_pick(rng, 3, 5), *[3] * int(rng.integers(1, 4))):
        x = b.act(b.conv(x, c, kernel), act)
        c = _pick(rng, c, max(8, c // 2))
    factor = _pick(rng, 2, 3, 4)
    n, _, h, w = b.shape(x)
    if rng.random() < 0.7:
        x = b.conv(x, factor * factor * _pick(rng, 1, 3), 3)
        channels = b.shape(x)[1] // factor**2
        x = b.op("DepthToSpace", x, shape=(n, channels, h * factor, w * factor), blocksize=factor, mode="CRD")
    else:
        outs = _channels(rng, 8, 32)
        weight = b.weight(b.shape(x)[1], outs, 2, 2, fan_in=b.shape(x)[1])
        x = b.op(
            "ConvTranspose", x, weight, shape=(n, outs, h * 2, w * 2), strides=[2, 2], kernel_shape=[2, 2]
        )
        x = b.conv(b.act(x, "relu"), 3, 3)
    return b.finish(x)


def encoder(rng: Rng) -> Model:
    """Transformer encoders on embeddings of tokens."""
    b = NetBuilder(rng)
    length, heads = _log(rng, 8, 160), _pick(rng, 2, 4, 6, 8, 12)
    size = heads * _pick(rng, 16, 32, 64)
    tokens = b.input(1, length, dtype=ir.DataType.INT64)
    x = b.op("Gather", b.weight(1000, size, fan_in=2), tokens, shape=(1, length, size))
    decomposed, approximate = rng.random() < 0.5, rng.random() < 0.3
    x = _layer_norm(b, x, decomposed)
    for _ in range(rng.integers(1, 7)):
        q, k, v = (b.reshape(b.linear(x, size), 1, length, heads, size // heads) for _ in range(3))
        q, v = b.transpose(q, 0, 2, 1, 3), b.transpose(v, 0, 2, 1, 3)
        scores = b.op("MatMul", q, b.transpose(k, 0, 2, 3, 1), shape=(1, heads, length, length))
        scores = b.op("Div", scores, b.constant(np.array(8.0, np.float32)), shape=b.shape(scores))
        weights = b.op("Softmax", scores, shape=b.shape(scores), axis=-1)
        mixed = b.op("MatMul", weights, v, shape=(1, heads, length, size // heads))
        mixed = b.reshape(b.transpose(mixed, 0, 2, 1, 3), 1, length, size)
        x = _layer_norm(b, b.add(b.linear(mixed, size), x), decomposed)
        wide = b.linear(x, size * _pick(rng, 2, 4, 4))
        wide = b.act(wide, "relu") if approximate else _gelu(b, wide)
        x = _layer_norm(b, b.add(b.linear(wide, size), x), decomposed)
    return b.finish(b.op("ReduceMean", x, shape=(1, size), axes=[1], keepdims=0))


def _layer_norm(b: NetBuilder, x: ir.Value, decomposed: bool) -> ir.Value:
    shape = b.shape(x)
    scale, shift = (b.constant(np.full(shape[-1], v, np.float32)) for v in (1.0, 0.0))
    if not decomposed:
        return b.op("LayerNormalization", x, scale, shift, shape=shape, axis=-1)
    one = (*shape[:-1], 1)
    centred = b.op("Sub", x, b.op("ReduceMean", x, shape=one, axes=[-1]), shape=shape)
    square = b.op("Pow", centred, b.constant(np.array(2.0, np.float32)), shape=shape)
    variance = b.op("ReduceMean", square, shape=one, axes=[-1])
    root = b.op("Sqrt", b.add(variance, b.constant(np.array(1e-5, np.float32))), shape=one)
    return b.add(b.op("Mul", b.op("Div", centred, root, shape=shape), scale, shape=shape), shift)


def _gelu(b: NetBuilder, x: ir.Value) -> ir.Value:
    shape = b.shape(x)
    root, one, half = (b.constant(np.array(v, np.float32)) for v in (2**0.5, 1.0, 0.5))
    y = b.op("Erf", b.op("Div", x, root, shape=shape), shape=shape)
    return b.op("Mul", b.op("Mul", x, b.add(y, one), shape=shape), half, shape=shape)


def dense(rng: Rng) -> Model:
    """Matrix products on vectors, or on a few rows."""
    b = NetBuilder(rng)
    rows = _pick(rng, 1, 1, 1, _log(rng, 2, 64))
    x = b.input(rows, _log(rng, 16, 1024))
    for _ in range(rng.integers(1, 6)):
        x = b.act(b.linear(x, _log(rng, 16, 2048)), _pick(rng, "relu", "none"))
    x = b.linear(x, _log(rng, 2, 100))
    return b.finish(b.op("Softmax", x, shape=b.shape(x), axis=-1))


def series(rng: Rng) -> Model:
    """Convolutions over time: sensors and sound, as spectrogram or samples."""
    b = NetBuilder(rng)
    act = _pick(rng, "relu", "leaky")
    c = _channels(rng, 8, 96)
    if rng.random() < 0.5:
        x = b.input(1, _pick(rng, 1, 3, 16, 40), _log(rng, 64, 2048))
        x = b.act(b.conv(x, c, _pick(rng, 3, 5, 9), stride=_pick(rng, 1, 2, 4)), act)
        for _ in range(rng.integers(1, 6)):
            depthwise = rng.random() < 0.3
            x = b.act(b.conv(x, c, 3, stride=_pick(rng, 1, 1, 2), groups=c if depthwise else 1), act)
            if depthwise:
                x = b.act(b.conv(x, c, 1), act)
    else:
        x = b.act(b.conv(b.input(1, 1, _log(rng, 25, 120), _log(rng, 10, 64)), c, 5, stride=2), act)
        for _ in range(rng.integers(1, 6)):
            x = b.act(b.conv(b.act(b.conv(x, c, 3, groups=c), act), c, 1), act)
    return b.finish(b.head(x, _log(rng, 2, 40)))


FAMILIES: dict[str, Callable[[Rng], Model]] = {
    "plain": plain,
    "residual": residual,
    "separable": separable,
    "inverted": inverted,
    "shuffled": shuffled,
    "joined": joined,
    "enlarging": enlarging,
    "encoder": encoder,
    "dense": dense,
    "series": series,
}
