"""Synthetic nets for sequences: text, vectors, sensors and sound."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeinfer.estimate.draws import Rng, channels, log_uniform, pick
from edgeinfer.estimate.net_builder import NetBuilder
from edgeinfer.model.model import Model

__all__ = ["dense", "encoder", "series"]


def encoder(rng: Rng) -> Model:
    """Transformer encoders on embeddings of tokens."""
    b = NetBuilder(rng)
    length, heads = log_uniform(rng, 8, 160), pick(rng, 2, 4, 6, 8, 12)
    size = heads * pick(rng, 16, 32, 64)
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
        wide = b.linear(x, size * pick(rng, 2, 4, 4))
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
    rows = pick(rng, 1, 1, 1, log_uniform(rng, 2, 64))
    x = b.input(rows, log_uniform(rng, 16, 1024))
    for _ in range(rng.integers(1, 6)):
        x = b.act(b.linear(x, log_uniform(rng, 16, 2048)), pick(rng, "relu", "none"))
    x = b.linear(x, log_uniform(rng, 2, 100))
    return b.finish(b.op("Softmax", x, shape=b.shape(x), axis=-1))


def series(rng: Rng) -> Model:
    """Convolutions over time: sensors and sound, as spectrogram or samples."""
    b = NetBuilder(rng)
    act = pick(rng, "relu", "leaky")
    c = channels(rng, 8, 96)
    if rng.random() < 0.5:
        x = b.input(1, pick(rng, 1, 3, 16, 40), log_uniform(rng, 64, 2048))
        x = b.act(b.conv(x, c, pick(rng, 3, 5, 9), stride=pick(rng, 1, 2, 4)), act)
        for _ in range(rng.integers(1, 6)):
            depthwise = rng.random() < 0.3
            x = b.act(b.conv(x, c, 3, stride=pick(rng, 1, 1, 2), groups=c if depthwise else 1), act)
            if depthwise:
                x = b.act(b.conv(x, c, 1), act)
    else:
        x = b.act(
            b.conv(b.input(1, 1, log_uniform(rng, 25, 120), log_uniform(rng, 10, 64)), c, 5, stride=2), act
        )
        for _ in range(rng.integers(1, 6)):
            x = b.act(b.conv(b.act(b.conv(x, c, 3, groups=c), act), c, 1), act)
    return b.finish(b.head(x, log_uniform(rng, 2, 40)))
