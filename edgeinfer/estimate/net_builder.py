"""Writing small nets, to measure kernels on."""

from __future__ import annotations

import math
from typing import Any, final

import numpy as np
import onnx_ir as ir

from edgeinfer.model.model import Model

__all__ = ["NetBuilder"]

_OPSET = 17


@final
class NetBuilder:
    """Builds an ONNX graph step by step; each method returns the name of a tensor.

    Args:
        rng: Makes the weights, which are scaled so that activations keep their size.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._nodes: list[ir.Node] = []
        self._weights: list[ir.Value] = []
        self._inputs: list[ir.Value] = []
        self._shapes: dict[int, tuple[int, ...]] = {}

    def input(self, *shape: int, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
        """Add an input."""
        name = f"input{len(self._inputs)}"
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self._inputs.append(value)
        self._shapes[id(value)] = shape
        return value

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self._shapes[id(value)]

    def constant(self, array: np.ndarray) -> ir.Value:
        """Add a weight."""
        value = ir.Value(
            name=f"w{len(self._weights)}",
            const_value=ir.tensor(array),
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            shape=ir.Shape(array.shape),
        )
        self._weights.append(value)
        self._shapes[id(value)] = array.shape
        return value

    def weight(self, *shape: int, fan_in: int) -> ir.Value:
        """Add normal weights for dot products of `fan_in` terms."""
        array = self._rng.standard_normal(shape, np.float32) * np.float32(math.sqrt(2.0 / fan_in))
        return self.constant(array)

    def op(self, op_type: str, *inputs: ir.Value, shape: tuple[int, ...], **attributes: Any) -> ir.Value:
        """Add a node with one output of this shape."""
        return self.ops(op_type, *inputs, shapes=[shape], **attributes)[0]

    def ops(
        self, op_type: str, *inputs: ir.Value, shapes: list[tuple[int, ...]], **attributes: Any
    ) -> list[ir.Value]:
        """Add a node with outputs of these shapes."""
        node = ir.node(op_type, inputs, attributes=attributes, num_outputs=len(shapes))
        node.name = f"{op_type}_{len(self._nodes)}"
        for index, (value, shape) in enumerate(zip(node.outputs, shapes, strict=True)):
            value.name = f"{node.name}_{index}"
            self._shapes[id(value)] = tuple(shape)
        self._nodes.append(node)
        return list(node.outputs)

    def conv(self, x: ir.Value, outs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> ir.Value:
        """Add a convolution with a bias, padded to keep the size; of one or two dimensions like `x`."""
        shape = self.shape(x)
        spatial = len(shape) - 2
        ins = shape[1] // groups
        weight = self.weight(outs, ins, *[kernel] * spatial, fan_in=ins * kernel**spatial)
        bias = self.constant(0.1 * self._rng.standard_normal(outs).astype(np.float32))
        pads = [kernel // 2] * spatial * 2
        sizes = [(size + 2 * (kernel // 2) - kernel) // stride + 1 for size in shape[2:]]
        return self.op(
            "Conv", x, weight, bias, shape=(shape[0], outs, *sizes),
            group=groups, pads=pads, strides=[stride] * spatial, kernel_shape=[kernel] * spatial,
        )  # fmt: skip

    def act(self, x: ir.Value, name: str) -> ir.Value:
        """Add an activation: `relu`, `relu6`, `silu`, `hardswish`, `leaky` or `none`."""
        shape = self.shape(x)
        if name == "relu6":
            low, high = (self.constant(np.array(v, np.float32)) for v in (0.0, 6.0))
            return self.op("Clip", x, low, high, shape=shape)
        if name == "silu":
            return self.op("Mul", x, self.op("Sigmoid", x, shape=shape), shape=shape)
        ops = {"relu": "Relu", "hardswish": "HardSwish", "leaky": "LeakyRelu"}
        return self.op(ops[name], x, shape=shape) if name in ops else x

    def add(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """Add two tensors."""
        return self.op("Add", a, b, shape=np.broadcast_shapes(self.shape(a), self.shape(b)))

    def pool(self, x: ir.Value, kernel: int = 2, stride: int = 2, op_type: str = "MaxPool") -> ir.Value:
        """Add a pooling of two dimensions."""
        n, c, h, w = self.shape(x)
        pad = kernel // 2 if kernel % 2 else 0
        size = [(s + 2 * pad - kernel) // stride + 1 for s in (h, w)]
        return self.op(
            op_type, x, shape=(n, c, *size), kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4
        )

    def concat(self, *parts: ir.Value, axis: int = 1) -> ir.Value:
        """Join tensors."""
        shape = list(self.shape(parts[0]))
        shape[axis] = sum(self.shape(part)[axis] for part in parts)
        return self.op("Concat", *parts, shape=tuple(shape), axis=axis)

    def reshape(self, x: ir.Value, *shape: int) -> ir.Value:
        """Reshape."""
        return self.op("Reshape", x, self.constant(np.array(shape, np.int64)), shape=shape)

    def transpose(self, x: ir.Value, *perm: int) -> ir.Value:
        """Transpose."""
        shape = self.shape(x)
        return self.op("Transpose", x, shape=tuple(shape[axis] for axis in perm), perm=list(perm))

    def linear(self, x: ir.Value, outs: int) -> ir.Value:
        """Multiply the last axis with a matrix and add a bias: Gemm for rank 2, else MatMul and Add."""
        shape = self.shape(x)
        weight = self.weight(shape[-1], outs, fan_in=shape[-1])
        bias = self.constant(np.zeros(outs, np.float32))
        if len(shape) == 2:
            return self.op("Gemm", x, weight, bias, shape=(shape[0], outs))
        return self.add(self.op("MatMul", x, weight, shape=(*shape[:-1], outs)), bias)

    def head(self, x: ir.Value, classes: int) -> ir.Value:
        """Pool over all positions and classify."""
        n, c, *spatial = self.shape(x)
        pooled = self.op("GlobalAveragePool", x, shape=(n, c, *[1] * len(spatial)))
        return self.linear(self.op("Flatten", pooled, shape=(n, c)), classes)

    def finish(self, *outputs: ir.Value) -> Model:
        """Return the model."""
        for value in (*outputs, *(value for node in self._nodes for value in node.outputs)):
            value.type = ir.TensorType(ir.DataType.FLOAT)
            value.shape = ir.Shape(self.shape(value))
        graph = ir.Graph(
            self._inputs, outputs, nodes=self._nodes, initializers=self._weights,
            opset_imports={"": _OPSET}, name="synthetic",
        )  # fmt: skip
        return Model.from_ir(ir.Model(graph, ir_version=8))
