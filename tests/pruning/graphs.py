"""Graphs for the pruning tests, and the arithmetic that they share."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper as nh
import onnx_ir as ir

from edgeinfer.graph.channels.groups import Dependencies, analyze
from edgeinfer.graph.initializers import constant, set_constant
from edgeinfer.graph.taps import probe
from edgeinfer.model.model import Model
from edgeinfer.pruning.structure.prepare import prepare
from edgeinfer.pruning.structure.surgery import remove_channels


class Builder:
    """Writes a graph node by node; every helper returns the name of its output."""

    def __init__(self, seed: int = 0, opset: int = 17) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, shape: list[int | str], dtype: int = onnx.TensorProto.FLOAT) -> str:
        if all(known.name != name for known in self.inputs):
            self.inputs.append(oh.make_tensor_value_info(name, dtype, shape))
        return name

    def weight(self, *shape: int) -> str:
        return self.constant(self.rng.standard_normal(shape).astype(np.float32) * 0.3)

    def constant(self, array: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(nh.from_array(np.asarray(array), name))
        return name

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def op(self, op_type: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        names = [f"{op_type.lower()}{len(self.nodes)}_{i}" for i in range(outputs)]
        name = f"{op_type}{len(self.nodes)}"
        self.nodes.append(oh.make_node(op_type, list(inputs), names, name=name, **attributes))
        return names[0] if outputs == 1 else ",".join(names)

    def conv(self, x: str, cin: int, cout: int, k: int = 3, *, group: int = 1, bias: bool = True) -> str:
        inputs = [x, self.weight(cout, cin // group, k, k), *([self.weight(cout)] if bias else [])]
        return self.op("Conv", *inputs, kernel_shape=[k, k], pads=[k // 2] * 4, group=group)

    def choose(self, x: str, shape: list[int | str]) -> str:
        """An If whose branches read a tensor of the main graph; one of them has a layer of its own."""
        flag = self.input("flag", [], onnx.TensorProto.BOOL)
        y, count = f"if{len(self.nodes)}", int(shape[1])
        branches = []
        for index, op_type in enumerate(("Conv", "Relu")):
            weight = f"{y}_weight"
            inner = [self.rng.standard_normal((count, count, 1, 1)).astype(np.float32)] if index == 0 else []
            node = oh.make_node(op_type, [x, weight][: 2 - index], [f"{y}_{index}"], f"{y}_{op_type}")
            info = oh.make_tensor_value_info(f"{y}_{index}", onnx.TensorProto.FLOAT, shape)
            weights = [nh.from_array(array, weight) for array in inner]
            branches.append(oh.make_graph([node], f"{y}_{index}", [], [info], weights))
        self.nodes.append(
            oh.make_node("If", [flag], [y], y, then_branch=branches[0], else_branch=branches[1])
        )
        return y

    def model(self, *outputs: str, texts: list[str] | None = None) -> Model:
        infos = [oh.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs]
        infos += [oh.make_tensor_value_info(name, onnx.TensorProto.STRING, None) for name in texts or ()]
        graph = oh.make_graph(self.nodes, "test", self.inputs, infos, self.weights)
        proto = oh.make_model(graph, opset_imports=[oh.make_opsetid("", self.opset)], ir_version=8)
        proto = onnx.shape_inference.infer_shapes(proto)
        return Model.load(proto)


def prepared(model: Model) -> tuple[ir.Model, Dependencies]:
    work = model.copy_ir()
    prepare(work)
    return work, analyze(work.graph)


def run(model: Model | ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    handle = model if isinstance(model, Model) else Model.from_ir(model.clone())
    with probe(handle, [value.name or "" for value in handle.ir.graph.outputs], threads=1) as session:
        return list(session.infer(feeds).values())


def unread(work: ir.Model, dependencies: Dependencies, classes: list[int]) -> None:
    """Set the weights to zero with which the layers read some classes of channels."""
    for layer in dependencies.layers:
        rows = dependencies.rows.get(layer.node.inputs[1])
        row = None if rows is None else rows[layer.input_axis]
        if row is not None and (layer.kind != "ConvTranspose" or layer.groups == 1):
            array = constant(layer.weight).copy()
            np.moveaxis(array, layer.input_axis, 0)[np.isin(row, classes)] = 0
            set_constant(layer.weight, array)


def remove(model: Model, picks: dict[str, list[int]], feeds: dict[str, np.ndarray]) -> tuple[ir.Model, float]:
    """Remove channels that nothing reads any more; return the graph and the largest change of an output."""
    work, dependencies = prepared(model)
    classes = [
        dependencies.members[name][channel] for name, channels in picks.items() for channel in channels
    ]
    unread(work, dependencies, classes)
    before = run(work, feeds)
    remove_channels(work, dependencies, classes)
    after = run(work, feeds)
    floats = [(a, b) for a, b in zip(before, after, strict=True) if a.dtype.kind == "f"]
    return work, max(float(np.abs(a - b).max()) for a, b in floats)
