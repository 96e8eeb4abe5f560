"""Small float models for the tests of Q/DQ."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeinfer.model.model import Model
from edgeinfer.transforms import QuantizeStatic

CHANNELS = 32
TARGETS = ("onnxruntime", "openvino", "tensorrt")


class Builder:
    """Writes a graph node by node, with random weights."""

    def __init__(self, *shape: int, opset: int = 17, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset = opset
        self.input = ir.Value(name="x", shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
        self.nodes: list[ir.Node] = []
        self.weights: list[ir.Value] = []

    def weight(self, name: str, array: np.ndarray) -> ir.Value:
        tensor = ir.tensor(array, name=name)
        value = ir.Value(
            name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self.weights.append(value)
        return value

    def node(self, op: str, *inputs: ir.Value, name: str, **attributes: object) -> ir.Value:
        node = ir.node(op, list(inputs), attributes, name=name)  # type: ignore[arg-type]
        node.outputs[0].name = f"{name}_out"
        self.nodes.append(node)
        return node.outputs[0]

    def conv(
        self, x: ir.Value, name: str, c_in: int, c_out: int, k: int = 3, group: int = 1, *, bias: bool = True
    ) -> ir.Value:
        fan_in = c_in // group * k * k
        w = self.rng.standard_normal((c_out, c_in // group, k, k)).astype(np.float32) / np.sqrt(fan_in)
        inputs = [x, self.weight(f"{name}_w", w.astype(np.float32))]
        if bias:
            inputs.append(self.weight(f"{name}_b", self.rng.standard_normal(c_out).astype(np.float32) * 0.1))
        return self.node("Conv", *inputs, name=name, group=group, pads=[k // 2] * 4)

    def matmul(self, x: ir.Value, name: str, c_in: int, c_out: int) -> ir.Value:
        w = self.rng.standard_normal((c_in, c_out)).astype(np.float32) / np.float32(np.sqrt(c_in))
        return self.node("MatMul", x, self.weight(f"{name}_w", w), name=name)

    def model(self, output: ir.Value, *shape: int) -> Model:
        output.shape, output.type = ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
        graph = ir.Graph(
            [self.input],
            [output],
            nodes=self.nodes,
            initializers=self.weights,
            opset_imports={"": self.opset},
            name="test",
        )
        return Model.from_ir(ir.Model(graph, ir_version=8))


def residual_net(opset: int = 17) -> Model:
    """conv1+relu -> (conv2 + skip)+relu -> maxpool -> conv3+relu -> global pool -> gemm."""
    b = Builder(1, 16, 24, 24, opset=opset)
    c = CHANNELS
    first = b.node("Relu", b.conv(b.input, "conv1", 16, c), name="relu1")
    total = b.node("Add", b.conv(first, "conv2", c, c), first, name="add")
    second = b.node("Relu", total, name="relu2")
    pooled = b.node("MaxPool", second, name="pool", kernel_shape=[2, 2], strides=[2, 2])
    third = b.node("Relu", b.conv(pooled, "conv3", c, c), name="relu3")
    flat = b.node("Flatten", b.node("GlobalAveragePool", third, name="gap"), name="flat")
    w = b.weight("fc_w", b.rng.standard_normal((10, c)).astype(np.float32) / 6)
    bias = b.weight("fc_b", b.rng.standard_normal(10).astype(np.float32))
    return b.model(b.node("Gemm", flat, w, bias, name="fc", transB=1), 1, 10)


def feeds(model: Model, count: int = 8, seed: int = 1) -> list[dict[str, np.ndarray]]:
    """Normal noise in the shape of each input."""
    rng = np.random.default_rng(seed)
    return [
        {spec.name: rng.standard_normal(spec.shape).astype(np.float32) for spec in model.signature.inputs}  # type: ignore[arg-type]
        for _ in range(count)
    ]


def sqnr_db(reference: np.ndarray, got: np.ndarray) -> float:
    """10·log10(Σ signal² / Σ error²)."""
    return float(10 * np.log10(np.sum(reference**2) / np.sum((reference - got) ** 2)))


def run_plain(model: Model, feed: dict[str, np.ndarray]) -> np.ndarray:
    """Run without any fusion: the numerics that the Q/DQ graph itself states."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feed)[0])


def quantized(model: Model, target: object = None, **options: object) -> Model:
    transform = QuantizeStatic(feeds(model), target=target, **options)  # type: ignore[arg-type]
    return transform.apply(model).model


def initializer(model: Model, name: str) -> np.ndarray:
    tensor = model.ir.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()
