"""Networks whose weights are drawn by a seed: for latency, which the values do not change.

ResNet-50 as in He et al. 2015 with the stride in the 3x3 convolution (as torchvision and MLPerf run it), and
ViT-B/16 of Dosovitskiy et al. 2020. Weights are drawn as for training (He et al. 2015), with those of each
block's last layer small, so that activations stay in float16's range. What is said of accuracy here is
closeness to float32, nothing about labels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import edgeinfer as ei

__all__ = ["SEEDED", "resnet50", "vit_b16"]


class _Graph:
    """Collects nodes and weights of one network."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, array: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def drawn(self, shape: tuple[int, ...], deviation: float) -> str:
        return self.weight(self.rng.standard_normal(shape, np.float32) * np.float32(deviation))

    def op(self, op_type: str, *inputs: str, **attributes: object) -> str:
        name = f"{op_type}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [f"{name}_y"], name, **attributes))
        return f"{name}_y"

    def conv(self, x: str, cin: int, cout: int, kernel: int, stride: int = 1, scale: float = 1.0) -> str:
        deviation = scale * (2 / (cin * kernel**2)) ** 0.5
        w, b = self.drawn((cout, cin, kernel, kernel), deviation), self.drawn((cout,), 0.02)
        pad = kernel // 2
        return self.op("Conv", x, w, b, strides=[stride] * 2, pads=[pad] * 4, kernel_shape=[kernel] * 2)

    def linear(self, x: str, rows: int, columns: int) -> str:
        y = self.op("MatMul", x, self.drawn((rows, columns), 0.7 * rows**-0.5))
        return self.op("Add", y, self.drawn((columns,), 0.02))

    def norm(self, x: str, width: int) -> str:
        one, zero = np.ones(width, np.float32), np.zeros(width, np.float32)
        return self.op("LayerNormalization", x, self.weight(one), self.weight(zero), axis=-1, epsilon=1e-6)

    def shape(self, *sizes: int) -> str:
        return self.weight(np.array(sizes, np.int64))

    def model(self, y: str, classes: int) -> ei.Model:
        self.nodes.append(helper.make_node("Identity", [y], ["output"], "output"))
        graph = helper.make_graph(
            self.nodes,
            "seeded",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 224, 224])],
            [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", classes])],
            self.weights,
        )
        return ei.Model.load(
            helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
        )


def resnet50(seed: int = 0) -> ei.Model:
    """Return ResNet-50 without BatchNorm (it is fused): 25.6 million weights, 4.1 billion products."""
    g = _Graph(seed)
    x = g.op("Relu", g.conv("input", 3, 64, 7, 2))
    x = g.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    cin = 64
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512))):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            y = g.op("Relu", g.conv(x, cin, width, 1))
            y = g.op("Relu", g.conv(y, width, width, 3, stride))
            y = g.conv(y, width, 4 * width, 1, scale=0.3)
            if not block:
                x = g.conv(x, cin, 4 * width, 1, stride, scale=0.7)
            x = g.op("Relu", g.op("Add", y, x))
            cin = 4 * width
    x = g.op("Flatten", g.op("GlobalAveragePool", x))
    y = g.op("Gemm", x, g.drawn((cin, 1000), cin**-0.5), g.drawn((1000,), 0.02))
    return g.model(y, 1000)


def vit_b16(seed: int = 0) -> ei.Model:
    """Return ViT-B/16 at 224: 86 million weights, 12 layers of width 768 over 197 tokens."""
    g, width, heads = _Graph(seed), 768, 12
    patches = g.op(
        "Conv", "input", g.drawn((width, 3, 16, 16), 0.03), g.drawn((width,), 0.02), strides=[16, 16]
    )
    x = g.op("Transpose", g.op("Reshape", patches, g.shape(0, width, 196)), perm=[0, 2, 1])
    # The class token: as many rows of zeros as the batch has, plus the token.
    zero = g.op("ReduceSum", g.op("Mul", x, g.weight(np.zeros(1, np.float32))), g.shape(1), keepdims=1)
    x = g.op("Concat", g.op("Add", zero, g.drawn((1, 1, width), 0.02)), x, axis=1)
    x = g.op("Add", x, g.drawn((1, 197, width), 0.02))
    for _ in range(12):
        h = g.norm(x, width)
        parts = []
        for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
            part = g.op("Reshape", g.linear(h, width, width), g.shape(0, 197, heads, width // heads))
            parts.append(g.op("Transpose", part, perm=perm))
        q, k, v = parts
        scores = g.op("Mul", g.op("MatMul", q, k), g.weight(np.float32((width // heads) ** -0.5)))
        y = g.op("MatMul", g.op("Softmax", scores, axis=-1), v)
        y = g.op("Reshape", g.op("Transpose", y, perm=[0, 2, 1, 3]), g.shape(0, 197, width))
        x = g.op("Add", x, g.linear(y, width, width))
        h = g.linear(g.norm(x, width), width, 4 * width)
        half = g.op("Mul", h, g.weight(np.float32(0.5)))
        erf = g.op("Erf", g.op("Mul", h, g.weight(np.float32(0.5**0.5))))
        gelu = g.op("Mul", half, g.op("Add", erf, g.weight(np.float32(1))))
        x = g.op("Add", x, g.linear(gelu, 4 * width, width))
    token = g.op("Gather", g.norm(x, width), g.weight(np.array(0, np.int64)), axis=1)
    y = g.op("Gemm", token, g.drawn((width, 1000), 0.03), g.drawn((1000,), 0.02))
    return g.model(y, 1000)


SEEDED: dict[str, Callable[[], ei.Model]] = {"resnet50": resnet50, "vit_b16": vit_b16}
