"""Nets to calibrate an estimate on: blocks as real nets have them, of random sizes.

Each net is made from its number alone, so that a calibration can be repeated. Kernel sizes, channels and
resolutions are drawn so that the nets span what fits an edge device: 0.05 to 500 million MACs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from edgeinfer.estimate.draws import Rng, channels, log_uniform, pick
from edgeinfer.estimate.net_builder import NetBuilder
from edgeinfer.estimate.synthetic_sequences import dense, encoder, series
from edgeinfer.graph.macs import node_macs
from edgeinfer.model.model import Model

__all__ = ["FAMILIES", "calibration_net", "open_batch", "synthetic_net"]

MIN_MACS, MAX_MACS = 5e4, 5e8
_TRIES = 200


def calibration_net(number: int) -> Model:
    """Return net `number` of the calibration set: a third of each family leaves its batch open."""
    net = synthetic_net(number)
    return open_batch(net) if number // len(FAMILIES) % 3 == 1 else net


def synthetic_net(number: int) -> Model:
    """Return a net that is made from its number alone, with fixed shapes."""
    names = list(FAMILIES)
    family = FAMILIES[names[number % len(names)]]
    for attempt in range(_TRIES):
        rng = np.random.default_rng((number, attempt))
        # Log-uniform work: without this nearly all nets would be large ones.
        wanted = MIN_MACS * (MAX_MACS / MIN_MACS) ** rng.random()
        model = family(rng)
        macs = sum(node_macs(node) or 0 for node in model.ir.graph)
        if wanted / 2 <= macs <= wanted * 2:
            return model
    raise AssertionError(f"no net {number}")  # the families span the range


def open_batch(model: Model) -> Model:
    """Return a synthetic net that leaves the size of its batch open, as most exported nets do.

    Runtimes then work out shapes at each run, and cannot plan all memory before.
    """
    graph = (copy := model.copy_ir()).graph
    for node in graph:
        if node.op_type == "Reshape" and (sizes := node.inputs[1]) is not None:
            assert sizes.const_value is not None
            array = sizes.const_value.numpy().copy()
            array[0] = 0  # as it comes
            sizes.const_value = ir.tensor(array, name=sizes.name)
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    for value in (*graph.inputs, *graph.outputs):
        assert value.shape is not None
        value.shape = ir.Shape(["N", *value.shape[1:]])
    return Model.from_ir(copy)


def _image(b: NetBuilder, rng: Rng, low: int = 24, high: int = 288) -> ir.Value:
    size = log_uniform(rng, low, high)
    return b.input(1, pick(rng, 1, 3, 3), size, pick(rng, size, size, max(8, size // 2)))


def _stem(b: NetBuilder, x: ir.Value, rng: Rng, outs: int, act: str) -> ir.Value:
    kernel = pick(rng, 3, 3, 3, 5, 7)
    return b.act(b.conv(x, outs, kernel, stride=pick(rng, 1, 2, 2)), act)


def _smallest(b: NetBuilder, x: ir.Value) -> int:
    return min(b.shape(x)[2:])


def plain(rng: Rng) -> Model:
    """Convolutions and poolings."""
    b = NetBuilder(rng)
    act = pick(rng, "relu", "relu", "leaky", "none")
    c = channels(rng, 8, 64)
    x = _stem(b, _image(b, rng, 16, 224), rng, c, act)
    for _ in range(rng.integers(1, 7)):
        if rng.random() < 0.5 and _smallest(b, x) >= 8:
            kernel, stride = pick(rng, (2, 2), (3, 2), (3, 1))
            x = b.pool(x, kernel, stride, pick(rng, "MaxPool", "MaxPool", "AveragePool"))
            c = min(512, pick(rng, c, c * 2, channels(rng, c, 3 * c)))
        x = b.act(b.conv(x, c, pick(rng, 1, 3, 3, 3, 5)), act)
    return b.finish(b.head(x, log_uniform(rng, 2, 1000)))


def residual(rng: Rng) -> Model:
    """Basic and bottleneck blocks."""
    b = NetBuilder(rng)
    act = pick(rng, "relu", "relu", "leaky")
    c = channels(rng, 16, 64)
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
    return b.finish(b.head(x, log_uniform(rng, 2, 1000)))


def separable(rng: Rng) -> Model:
    """Depthwise and pointwise convolutions, as in MobileNet V1."""
    b = NetBuilder(rng)
    act = pick(rng, "relu", "relu6", "hardswish")
    c = channels(rng, 8, 64)
    x = _stem(b, _image(b, rng), rng, c, act)
    for _ in range(rng.integers(2, 10)):
        stride = 2 if rng.random() < 0.35 and _smallest(b, x) >= 4 else 1
        x = b.act(b.conv(x, c, pick(rng, 3, 3, 5), stride=stride, groups=c), act)
        c = min(768, c * 2 if stride == 2 else pick(rng, c, channels(rng, c, 2 * c)))
        x = b.act(b.conv(x, c, 1), act)
    return b.finish(b.head(x, log_uniform(rng, 2, 1000)))


def inverted(rng: Rng) -> Model:
    """Inverted residuals, with squeeze and excite now and then, as in MobileNet V2, V3 and EfficientNet."""
    b = NetBuilder(rng)
    act = pick(rng, "relu6", "relu", "silu", "hardswish")
    squeeze = rng.random() < 0.3
    c = channels(rng, 8, 32)
    x = _stem(b, _image(b, rng), rng, c, act)
    for _ in range(rng.integers(2, 8)):
        stride = 2 if rng.random() < 0.3 and _smallest(b, x) >= 4 else 1
        outs = pick(rng, c, c, channels(rng, c, 2 * c))
        wide = c * pick(rng, 2, 4, 6)
        y = b.act(b.conv(x, wide, 1), act)
        y = b.act(b.conv(y, wide, pick(rng, 3, 3, 5), stride=stride, groups=wide), act)
        if squeeze:
            n = b.shape(y)[0]
            s = b.op("GlobalAveragePool", y, shape=(n, wide, 1, 1))
            s = b.conv(b.act(b.conv(s, max(8, wide // 4), 1), "relu"), wide, 1)
            y = b.op("Mul", y, b.op("Sigmoid", s, shape=(n, wide, 1, 1)), shape=b.shape(y))
        y = b.conv(y, outs, 1)
        x = b.add(x, y) if stride == 1 and outs == c else y
        c = outs
    return b.finish(b.head(b.act(b.conv(x, min(1280, c * 4), 1), act), log_uniform(rng, 2, 1000)))


def shuffled(rng: Rng) -> Model:
    """Channel splits and shuffles, as in ShuffleNet V2, with a pyramid and heads now and then."""
    b = NetBuilder(rng)
    act = pick(rng, "relu", "leaky")
    c = 2 * channels(rng, 8, 64)
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
    return b.finish(b.head(x, log_uniform(rng, 2, 1000)))


def _pyramid(b: NetBuilder, rng: Rng, levels: list[ir.Value], act: str) -> list[ir.Value]:
    width = channels(rng, 16, 96)
    sides = [b.conv(level, width, 1) for level in levels]
    found = [sides[-1]]
    for side in reversed(sides[:-1]):
        above, shape = found[-1], b.shape(side)
        empty = b.constant(np.zeros(0, np.float32))
        sizes = b.constant(np.array(shape, np.int64))
        up = b.op("Resize", above, empty, empty, sizes, shape=shape, mode=pick(rng, "linear", "nearest"))
        found.append(b.add(side, up))
    outputs = []
    for level in found:
        for _ in range(rng.integers(1, 3)):
            level = b.act(b.conv(b.conv(level, width, pick(rng, 3, 5), groups=width), width, 1), act)
        n, _, h, w = b.shape(level)
        outs = log_uniform(rng, 8, 100)
        flat = b.reshape(b.conv(level, outs, 1), n, outs, h * w)
        flat = b.transpose(flat, 0, 2, 1)
        outputs.append(b.op("Sigmoid", flat, shape=b.shape(flat)) if rng.random() < 0.5 else flat)
    return outputs


def joined(rng: Rng) -> Model:
    """Parallel branches that are concatenated, as in SqueezeNet and Inception."""
    b = NetBuilder(rng)
    c = channels(rng, 16, 64)
    x = b.pool(_stem(b, _image(b, rng, 32, 256), rng, c, "relu"), 3, 2)
    for _ in range(rng.integers(1, 7)):
        narrow = channels(rng, 8, max(16, c // 2))
        s = b.act(b.conv(x, narrow, 1), "relu")
        wide = channels(rng, narrow, 4 * narrow)
        x = b.concat(b.act(b.conv(s, wide, 1), "relu"), b.act(b.conv(s, wide, 3), "relu"))
        c = 2 * wide
        if rng.random() < 0.3 and _smallest(b, x) >= 8:
            x = b.pool(x, 3, 2)
    n = b.shape(x)[0]
    outs = log_uniform(rng, 10, 1000)
    x = b.act(b.conv(x, outs, 1), "relu")
    x = b.op("GlobalAveragePool", x, shape=(n, outs, 1, 1))
    return b.finish(b.op("Softmax", b.reshape(x, n, outs), shape=(n, outs), axis=1))


def enlarging(rng: Rng) -> Model:
    """Convolutions at one resolution, then more pixels, as in ESPCN and small U-Nets."""
    b = NetBuilder(rng)
    act = pick(rng, "relu", "none", "leaky")
    size = log_uniform(rng, 24, 160)
    x = b.input(1, pick(rng, 1, 3), size, size)
    c = channels(rng, 8, 64)
    for kernel in (pick(rng, 3, 5), *[3] * int(rng.integers(1, 4))):
        x = b.act(b.conv(x, c, kernel), act)
        c = pick(rng, c, max(8, c // 2))
    factor = pick(rng, 2, 3, 4)
    n, _, h, w = b.shape(x)
    if rng.random() < 0.7:
        x = b.conv(x, factor * factor * pick(rng, 1, 3), 3)
        depth = b.shape(x)[1] // factor**2
        x = b.op("DepthToSpace", x, shape=(n, depth, h * factor, w * factor), blocksize=factor, mode="CRD")
    else:
        outs = channels(rng, 8, 32)
        weight = b.weight(b.shape(x)[1], outs, 2, 2, fan_in=b.shape(x)[1])
        x = b.op(
            "ConvTranspose", x, weight, shape=(n, outs, h * 2, w * 2), strides=[2, 2], kernel_shape=[2, 2]
        )
        x = b.conv(b.act(x, "relu"), 3, 3)
    return b.finish(x)


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
