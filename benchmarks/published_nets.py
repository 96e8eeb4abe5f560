"""Nets whose latency others have published, with weights that are made up: only their shapes count.

The architectures are those of the papers and configuration files that are named; the multiply-accumulates are
checked against the published ones when this file is run.
"""

from __future__ import annotations

import numpy as np

from edgeinfer.estimate.net_builder import NetBuilder
from edgeinfer.estimate.workload import Workload, workload


def resnet50() -> Workload:
    """ResNet-50 v1.5 (the stride is in the 3x3 convolution), 224 x 224; 4.09 G multiply-accumulates."""
    b = NetBuilder(np.random.default_rng(0))
    x = b.act(b.conv(b.input(1, 3, 224, 224), 64, 7, stride=2), "relu")
    x = b.pool(x, 3, 2)
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            y = b.act(b.conv(x, width, 1), "relu")
            y = b.act(b.conv(y, width, 3, stride=stride), "relu")
            y = b.conv(y, 4 * width, 1)
            x = b.act(b.add(y, x if block else b.conv(x, 4 * width, 1, stride=stride)), "relu")
    return workload(b.finish(b.head(x, 1000)))


def bert(layers: int, size: int, heads: int, length: int) -> Workload:
    """BERT's encoder on `length` tokens: base has 12 layers of 768, large 24 of 1024."""
    b = NetBuilder(np.random.default_rng(0))
    x = b.input(1, length, size)
    for _ in range(layers):
        q, k, v = (b.reshape(b.linear(x, size), 1, length, heads, size // heads) for _ in range(3))
        q, v = b.transpose(q, 0, 2, 1, 3), b.transpose(v, 0, 2, 1, 3)
        scores = b.op("MatMul", q, b.transpose(k, 0, 2, 3, 1), shape=(1, heads, length, length))
        weights = b.op("Softmax", scores, shape=b.shape(scores), axis=-1)
        mixed = b.op("MatMul", weights, v, shape=(1, heads, length, size // heads))
        mixed = b.reshape(b.transpose(mixed, 0, 2, 1, 3), 1, length, size)
        x = _norm(b, b.add(b.linear(mixed, size), x))
        wide = b.linear(x, 4 * size)
        wide = b.op("Mul", wide, b.op("Sigmoid", wide, shape=b.shape(wide)), shape=b.shape(wide))  # for GELU
        x = _norm(b, b.add(b.linear(wide, size), x))
    return workload(b.finish(x))


def _norm(b, x):
    size = b.shape(x)[-1]
    scale, shift = (b.constant(np.full(size, v, np.float32)) for v in (1.0, 0.0))
    return b.op("LayerNormalization", x, scale, shift, shape=b.shape(x), axis=-1)


SCALES = {"n": (0.5, 0.25, 1024), "s": (0.5, 0.5, 1024), "m": (0.5, 1.0, 512)}


class Yolo11:
    """YOLO11 (ultralytics/cfg/models/11/yolo11.yaml), 640 x 640, without the decoding behind its heads."""

    def __init__(self, scale: str) -> None:
        self.depth, self.width, self.most = SCALES[scale]
        self.deep = scale == "m"  # there all C3k2 hold C3k
        self.b = NetBuilder(np.random.default_rng(0))

    def outs(self, channels: int) -> int:
        return int(min(channels, self.most) * self.width) // 8 * 8

    def conv(self, x, outs, kernel=1, stride=1, groups=1):
        return self.b.act(self.b.conv(x, outs, kernel, stride=stride, groups=groups), "silu")

    def bottleneck(self, x, outs, inner, kernels=(3, 3)):
        y = self.conv(self.conv(x, inner, kernels[0]), outs, kernels[1])
        return self.b.add(x, y) if self.b.shape(x)[1] == outs else y

    def split(self, x):
        n, c, h, w = self.b.shape(x)
        return self.b.ops("Split", x, shapes=[(n, c // 2, h, w)] * 2, axis=1)

    def c3k(self, x, outs):
        inner = outs // 2
        y = self.conv(x, inner)
        for _ in range(2):
            y = self.bottleneck(y, inner, inner)
        return self.conv(self.b.concat(y, self.conv(x, inner)), outs)

    def c3k2(self, x, channels, deep, ratio=0.5):
        outs = self.outs(channels)
        inner = int(outs * ratio)
        parts = self.split(self.conv(x, 2 * inner))
        for _ in range(max(1, round(2 * self.depth))):
            last = parts[-1]
            parts.append(
                self.c3k(last, inner) if deep or self.deep else self.bottleneck(last, inner, inner // 2)
            )
        return self.conv(self.b.concat(*parts), outs)

    def sppf(self, x, channels):
        outs = self.outs(channels)
        parts = [self.conv(x, self.b.shape(x)[1] // 2)]
        for _ in range(3):
            parts.append(self.b.pool(parts[-1], 5, 1))
        return self.conv(self.b.concat(*parts), outs)

    def c2psa(self, x, channels):
        outs = self.outs(channels)
        inner = outs // 2
        kept, y = self.split(self.conv(x, outs))
        for _ in range(max(1, round(2 * self.depth))):
            y = self.b.add(y, self.attention(y, max(1, inner // 64)))
            y = self.b.add(y, self.b.conv(self.conv(y, 2 * inner), inner, 1))
        return self.conv(self.b.concat(kept, y), outs)

    def attention(self, x, heads):
        b = self.b
        n, c, h, w = b.shape(x)
        size, key, area = c // heads, c // heads // 2, h * w
        qkv = b.reshape(b.conv(x, c + 2 * key * heads, 1), n, heads, 2 * key + size, area)
        q, k, v = b.ops(
            "Split", qkv, b.constant(np.array([key, key, size], np.int64)),
            shapes=[(n, heads, part, area) for part in (key, key, size)], axis=2,
        )  # fmt: skip
        scores = b.op("MatMul", b.transpose(q, 0, 1, 3, 2), k, shape=(n, heads, area, area))
        weights = b.op("Softmax", scores, shape=b.shape(scores), axis=-1)
        mixed = b.op("MatMul", v, b.transpose(weights, 0, 1, 3, 2), shape=(n, heads, size, area))
        place = b.conv(b.reshape(v, n, c, h, w), c, 3, groups=c)
        return b.conv(b.add(b.reshape(mixed, n, c, h, w), place), c, 1)

    def up(self, x):
        b = self.b
        n, c, h, w = b.shape(x)
        empty = b.constant(np.zeros(0, np.float32))
        sizes = b.constant(np.array((n, c, 2 * h, 2 * w), np.int64))
        return b.op("Resize", x, empty, empty, sizes, shape=(n, c, 2 * h, 2 * w), mode="nearest")

    def heads(self, levels):
        found = []
        first = self.b.shape(levels[0])[1]
        box, score = max(16, first // 4, 64), max(first, min(80, 100))
        for level in levels:
            c = self.b.shape(level)[1]
            found.append(self.b.conv(self.conv(self.conv(level, box, 3), box, 3), 64, 1))
            y = self.conv(self.conv(level, c, 3, groups=c), score)
            y = self.conv(self.conv(y, score, 3, groups=score), score)
            found.append(self.b.conv(y, 80, 1))
        return found

    def build(self) -> Workload:
        outs = self.outs
        x = self.conv(self.conv(self.b.input(1, 3, 640, 640), outs(64), 3, 2), outs(128), 3, 2)
        x = self.conv(self.c3k2(x, 256, False, 0.25), outs(256), 3, 2)
        p3 = self.c3k2(x, 512, False, 0.25)
        p4 = self.c3k2(self.conv(p3, outs(512), 3, 2), 512, True)
        p5 = self.c3k2(self.conv(p4, outs(1024), 3, 2), 1024, True)
        p5 = self.c2psa(self.sppf(p5, 1024), 1024)
        h4 = self.c3k2(self.b.concat(self.up(p5), p4), 512, False)
        h3 = self.c3k2(self.b.concat(self.up(h4), p3), 256, False)
        h4 = self.c3k2(self.b.concat(self.conv(h3, outs(256), 3, 2), h4), 512, False)
        h5 = self.c3k2(self.b.concat(self.conv(h4, outs(512), 3, 2), p5), 1024, True)
        return workload(self.b.finish(*self.heads([h3, h4, h5])))


# Published multiply-accumulates in G: torchvision; ultralytics' documents give 6.5, 21.5 and 68.0 GFLOPs.
PUBLISHED_GMACS = {"resnet50": 4.09, "yolo11n": 3.25, "yolo11s": 10.75, "yolo11m": 34.0}


def published() -> dict[str, Workload]:
    """Return the nets by name."""
    return {
        "resnet50": resnet50(),
        "bert-base-128": bert(12, 768, 12, 128),
        "bert-large-384": bert(24, 1024, 16, 384),
        **{f"yolo11{scale}": Yolo11(scale).build() for scale in "nsm"},
    }


if __name__ == "__main__":
    for name, work in published().items():
        wanted = PUBLISHED_GMACS.get(name)
        print(f"{name:16s} {work.macs / 1e9:7.2f} GMACs, published {wanted}, {len(work.kernels)} kernels")
