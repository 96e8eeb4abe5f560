"""Train the demonstration model: a small CNN for scikit-learn's handwritten digits (8 x 8, 10 classes).

    python examples/train_digits.py          # writes edgeinfer/demo/digits.onnx and digits.npz

numpy alone, with a fixed seed, in about a minute. The network is written as a framework would export it, with
BatchNormalization still apart from Conv, so that there is something to optimize:

    images (N, 1, 8, 8), pixels 0 to 1
      -> Conv 3x3, 16 -> BatchNormalization -> Relu
      -> Conv 3x3, 32 -> BatchNormalization -> Relu -> MaxPool 2x2
      -> Conv 3x3, 32 -> BatchNormalization -> Relu -> GlobalAveragePool -> Flatten
      -> Gemm -> logits (N, 10)

Every fourth image is held out; the calibration images are from the training set.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from onnx import TensorProto, helper, numpy_helper

OUT = Path(__file__).resolve().parents[1] / "edgeinfer" / "demo"
SEED = 0
EPOCHS = 30
BATCH = 64
EPSILON = 1e-5  # BatchNormalization's
CALIBRATION_IMAGES = 100


class ConvBatchNormRelu:
    """3 x 3 convolution with padding 1 and no bias, batch normalization, ReLU."""

    def __init__(self, channels_in: int, channels_out: int, rng: np.random.Generator) -> None:
        scale = np.sqrt(2 / (9 * channels_in))  # He initialization
        self.w = (rng.standard_normal((channels_out, channels_in * 9)) * scale).astype(np.float32)
        self.gamma = np.ones(channels_out, np.float32)
        self.beta = np.zeros(channels_out, np.float32)
        self.mean = np.zeros(channels_out, np.float32)
        self.var = np.ones(channels_out, np.float32)

    @property
    def parameters(self) -> list[np.ndarray]:
        return [self.w, self.gamma, self.beta]

    def forward(self, x: np.ndarray, training: bool) -> np.ndarray:
        n, c, h, w = x.shape
        self.shape = x.shape
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        # (N, C, H, W, 3, 3) -> (N * H * W, C * 9)
        patches = sliding_window_view(padded, (3, 3), axis=(2, 3)).transpose(0, 2, 3, 1, 4, 5)
        self.patches = patches.reshape(n * h * w, c * 9)
        y = self.patches @ self.w.T
        if training:
            mean, var = y.mean(0), y.var(0)
            self.mean = 0.9 * self.mean + 0.1 * mean
            self.var = 0.9 * self.var + 0.1 * var
        else:
            mean, var = self.mean, self.var
        self.deviation = np.sqrt(var + EPSILON)
        self.normal = (y - mean) / self.deviation
        z = self.normal * self.gamma + self.beta
        self.positive = z > 0
        return (z * self.positive).reshape(n, h, w, -1).transpose(0, 3, 1, 2)

    def backward(self, dy: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        n, c, h, w = self.shape
        dz = dy.transpose(0, 2, 3, 1).reshape(n * h * w, -1) * self.positive
        d_gamma, d_beta = (dz * self.normal).sum(0), dz.sum(0)
        d_normal = dz * self.gamma
        # Through the batch statistics (Ioffe and Szegedy 2015).
        dy = (d_normal - d_normal.mean(0) - self.normal * (d_normal * self.normal).mean(0)) / self.deviation
        d_patches = (dy @ self.w).reshape(n, h, w, c, 3, 3)
        dx = np.zeros((n, c, h + 2, w + 2), np.float32)
        for row in range(3):
            for column in range(3):
                patch = d_patches[..., row, column].transpose(0, 3, 1, 2)
                dx[:, :, row : row + h, column : column + w] += patch
        return dx[:, :, 1:-1, 1:-1], [dy.T @ self.patches, d_gamma, d_beta]


class Network:
    """The network of the module's docstring."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.blocks = [ConvBatchNormRelu(a, b, rng) for a, b in ((1, 16), (16, 32), (32, 32))]
        self.w = (rng.standard_normal((10, 32)) * np.sqrt(1 / 32)).astype(np.float32)
        self.b = np.zeros(10, np.float32)

    @property
    def parameters(self) -> list[np.ndarray]:
        return [p for block in self.blocks for p in block.parameters] + [self.w, self.b]

    def forward(self, x: np.ndarray, training: bool = False) -> np.ndarray:
        x = self.blocks[1].forward(self.blocks[0].forward(x, training), training)
        n, c, h, w = x.shape
        windows = x.reshape(n, c, h // 2, 2, w // 2, 2)
        pooled = windows.max((3, 5))
        is_max = windows == pooled[:, :, :, None, :, None]
        self.pool = is_max / is_max.sum((3, 5), keepdims=True)
        x = self.blocks[2].forward(pooled, training)
        self.map_shape = x.shape
        self.features = x.mean((2, 3))
        return self.features @ self.w.T + self.b

    def gradients(self, d_logits: np.ndarray) -> list[np.ndarray]:
        last = [d_logits.T @ self.features, d_logits.sum(0)]
        n, c, h, w = self.map_shape
        dx = np.broadcast_to((d_logits @ self.w)[:, :, None, None] / (h * w), self.map_shape)
        dx, third = self.blocks[2].backward(dx)
        dx = (self.pool * dx[:, :, :, None, :, None]).reshape(n, c, 2 * h, 2 * w)
        dx, second = self.blocks[1].backward(dx)
        _, first = self.blocks[0].backward(dx)
        return first + second + third + last


def shifted(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Move the entire batch by up to one pixel each way, against overfitting."""
    up, left = rng.integers(-1, 2, 2)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return padded[:, :, 1 + up : 9 + up, 1 + left : 9 + left]


def train(x: np.ndarray, labels: np.ndarray) -> Network:
    """Adam with a cosine schedule on the cross-entropy."""
    rng = np.random.default_rng(SEED)
    network = Network(rng)
    moments = [(np.zeros_like(p), np.zeros_like(p)) for p in network.parameters]
    steps = EPOCHS * (len(x) // BATCH)
    step = 0
    for epoch in range(EPOCHS):
        order = rng.permutation(len(x))
        loss = 0.0
        for start in range(0, len(x) - BATCH + 1, BATCH):
            step += 1
            rate = 5e-3 * 0.5 * (1 + np.cos(np.pi * step / steps))
            index = order[start : start + BATCH]
            logits = network.forward(shifted(x[index], rng), training=True)
            p = np.exp(logits - logits.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            rows = np.arange(len(index))
            loss -= float(np.log(p[rows, labels[index]]).sum())
            p[rows, labels[index]] -= 1
            for value, gradient, (m, v) in zip(
                network.parameters, network.gradients(p / len(index)), moments, strict=True
            ):
                m += 0.1 * (gradient - m)
                v += 0.001 * (gradient**2 - v)
                update = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
                value -= (rate * update).astype(np.float32)
        print(f"epoch {epoch + 1}: loss {loss / len(x):.4f}")
    return network


def export(network: Network) -> onnx.ModelProto:
    """Write the network as ONNX."""
    nodes, weights = [], []

    def weight(name: str, value: np.ndarray) -> str:
        weights.append(numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name))
        return name

    def node(op_type: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(op_type, inputs, [output], output, **attributes))
        return output

    x = "images"
    for i, block in enumerate(network.blocks, 1):
        kernel = weight(f"conv{i}.weight", block.w.reshape(len(block.w), -1, 3, 3))
        x = node("Conv", [x, kernel], f"conv{i}", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        statistics = {"scale": block.gamma, "bias": block.beta, "mean": block.mean, "var": block.var}
        names = [weight(f"bn{i}.{name}", array) for name, array in statistics.items()]
        x = node("BatchNormalization", [x, *names], f"bn{i}", epsilon=EPSILON)
        x = node("Relu", [x], f"relu{i}")
        if i == 2:
            x = node("MaxPool", [x], "pool", kernel_shape=[2, 2], strides=[2, 2])
    x = node("GlobalAveragePool", [x], "average")
    x = node("Flatten", [x], "features")
    node("Gemm", [x, weight("fc.weight", network.w), weight("fc.bias", network.b)], "logits", transB=1)
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
        weights,
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
        producer_name="examples/train_digits.py",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def main() -> None:
    from sklearn.datasets import load_digits

    data = load_digits()
    images, labels = data.images.astype(np.uint8), data.target.astype(np.uint8)  # pixels 0 to 16
    held_out = np.arange(len(images)) % 4 == 3
    x = (images[:, None] / 16).astype(np.float32)
    network = train(x[~held_out], labels[~held_out])
    accuracy = float((network.forward(x[held_out]).argmax(1) == labels[held_out]).mean())
    print(f"accuracy on {held_out.sum()} held-out images: {accuracy:.4f}")
    OUT.mkdir(exist_ok=True)
    (OUT / "digits.onnx").write_bytes(export(network).SerializeToString(deterministic=True))
    np.savez_compressed(
        OUT / "digits.npz",
        images=images[held_out],
        labels=labels[held_out],
        calibration=images[~held_out][:CALIBRATION_IMAGES],
    )


if __name__ == "__main__":
    main()
