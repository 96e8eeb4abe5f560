"""Train the inspection model of the demonstration: defects on brushed metal, 64 x 64 gray pixels, 4 classes.

    pip install torch && python examples/train_inspection.py      # writes edgeinfer/demo/inspection.onnx

The images are drawn by `edgeinfer/demo/surfaces.py`; training, calibration and evaluation have seeds of their
own. A residual network of 22 layers and 161 million multiply-adds an image, with a fixed seed; a minute on a
GPU, hours on a small CPU. The ONNX file is written node by node, as a framework would export it, with
BatchNormalization still apart from Conv, so that there is something to optimize:

    image (N, 1, 64, 64), 0 to 1
      -> Conv 3x3, 16 -> BatchNormalization -> Relu
      -> 3 stages of 3 blocks, 16, 32, 64 channels; a block is
           Conv -> BatchNormalization -> Relu -> Conv -> BatchNormalization -> Add -> Relu
           (with a Conv 1x1 around it where it shrinks)
      -> GlobalAveragePool -> Flatten -> Gemm -> logits (N, 4)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgeinfer.demo.surfaces import CLASSES, SIZE, draw_surfaces

OUT = Path(__file__).resolve().parents[1] / "edgeinfer" / "demo" / "inspection.onnx"
SEED = 0
BATCH = 128
STAGES = ((16, 1), (32, 2), (64, 2))  # channels, stride of the first block
BLOCKS = 3


class Block(nn.Module):
    """Two convolutions and a path around them."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        same = channels_in == channels and stride == 1
        self.around = None if same else nn.Conv2d(channels_in, channels, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + (x if self.around is None else self.around(x)))


class Network(nn.Module):
    """The network of the module's docstring."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        blocks, before = [], 16
        for channels, stride in STAGES:
            for index in range(BLOCKS):
                blocks.append(Block(before, channels, stride if index == 0 else 1))
                before = channels
        self.blocks = nn.ModuleList(blocks)
        self.fc = nn.Linear(before, len(CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn(self.conv(x)))
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean((2, 3)))


def train(images: torch.Tensor, labels: torch.Tensor, epochs: int) -> Network:
    """SGD with momentum, one cycle of the rate, and images turned over at random."""
    torch.manual_seed(SEED)
    network = Network().to(images.device)
    steps = epochs * (len(images) // BATCH)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    for epoch in range(epochs):
        network.train()
        order = torch.randperm(len(images), device=images.device)
        total = 0.0
        for start in range(0, len(images) - BATCH + 1, BATCH):
            index = order[start : start + BATCH]
            axes = [axis for axis in (2, 3) if torch.rand(()) < 0.5]
            x = torch.flip(images[index], axes) if axes else images[index]
            loss = nn.functional.cross_entropy(network(x), labels[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(index)
        print(f"epoch {epoch + 1}: loss {total / len(images):.4f}", flush=True)
    return network.eval()


def export(network: Network) -> onnx.ModelProto:
    """Write the network as ONNX."""
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def weight(name: str, value: torch.Tensor) -> str:
        weights.append(numpy_helper.from_array(value.detach().cpu().numpy().astype(np.float32), name))
        return name

    def node(op_type: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(op_type, inputs, [output], output, **attributes))
        return output

    def conv(x: str, layer: nn.Conv2d, name: str) -> str:
        inputs = [x, weight(f"{name}.weight", layer.weight)]
        if layer.bias is not None:
            inputs.append(weight(f"{name}.bias", layer.bias))
        pads, size = list(layer.padding) * 2, list(layer.kernel_size)
        return node("Conv", inputs, name, kernel_shape=size, strides=list(layer.stride), pads=pads)

    def norm(x: str, layer: nn.BatchNorm2d, name: str) -> str:
        values = {
            "scale": layer.weight,
            "bias": layer.bias,
            "mean": layer.running_mean,
            "var": layer.running_var,
        }
        names = [weight(f"{name}.{key}", value) for key, value in values.items()]
        return node("BatchNormalization", [x, *names], name, epsilon=layer.eps)

    x = node("Relu", [norm(conv("image", network.conv, "conv"), network.bn, "bn")], "relu")
    for i, block in enumerate(network.blocks):
        y = norm(conv(x, block.conv1, f"block{i}.conv1"), block.bn1, f"block{i}.bn1")
        y = node("Relu", [y], f"block{i}.relu1")
        y = norm(conv(y, block.conv2, f"block{i}.conv2"), block.bn2, f"block{i}.bn2")
        around = x if block.around is None else conv(x, block.around, f"block{i}.around")
        x = node("Relu", [node("Add", [y, around], f"block{i}.add")], f"block{i}.relu2")
    x = node("Flatten", [node("GlobalAveragePool", [x], "average")], "features")
    fc = [weight("fc.weight", network.fc.weight), weight("fc.bias", network.fc.bias)]
    node("Gemm", [x, *fc], "logits", transB=1)
    graph = helper.make_graph(
        nodes,
        "inspection",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(CLASSES)])],
        weights,
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
        producer_name="examples/train_inspection.py",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the inspection model of the demonstration.")
    parser.add_argument("--images", type=int, default=24_000)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data, held_out = draw_surfaces(arguments.images, seed=1), draw_surfaces(2000, seed=2)
    images, labels = torch.from_numpy(data.images).to(device), torch.from_numpy(data.labels).to(device)
    network = train(images, labels, arguments.epochs)
    with torch.no_grad():
        logits = network(torch.from_numpy(held_out.images).to(device)).cpu().numpy()
    print(f"accuracy on {len(held_out.labels)} held-out images: {held_out.accuracy(logits):.4f}")
    arguments.out.write_bytes(export(network).SerializeToString(deterministic=True))
    print(f"wrote {arguments.out}, {arguments.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
