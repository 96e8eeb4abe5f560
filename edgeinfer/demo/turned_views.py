"""A classifier that averages over an image and its mirror images: test-time augmentation."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from edgeinfer.model.model import Model

__all__ = ["with_turned_views"]

_FLIPS = {"rows": [2], "columns": [3], "both": [2, 3]}
_FIRST = np.iinfo(np.int64).min  # to the first element and it included


def with_turned_views(model: Model, *, prefix: str = "") -> Model:
    """Return a model that runs another one on an image and on three mirror images of it, and averages.

    Args:
        model: From one image input `(N, C, H, W)` to one output `(N, classes)`. The result is four times as
            slow.
        prefix: Of the names of what is added: another one to do it again, which is sixteen times as slow.
    """
    graph_model = model.copy_ir()
    graph = graph_model.graph
    image, logits = graph.inputs[0], graph.outputs[0]
    users = [(use.node, use.idx) for use in image.uses()]
    made: list[ir.Node] = []

    def op(kind: str, *inputs: ir.Value, name: str, **attributes: Any) -> ir.Value:
        node = ir.node(kind, list(inputs), attributes=attributes, name=prefix + name)
        node.outputs[0].name = node.name
        made.append(node)
        return node.outputs[0]

    def constant(name: str, values: list[int]) -> ir.Value:
        name = prefix + name
        tensor = ir.tensor(np.array(values, np.int64), name=name)
        value = ir.Value(name=name, shape=ir.Shape([len(values)]), type=ir.TensorType(ir.DataType.INT64))
        value.const_value = tensor
        graph.register_initializer(value)
        return value

    views = [image]
    for name, axes in _FLIPS.items():
        backwards = [-1] * len(axes)
        bounds = {"starts": backwards, "ends": [_FIRST] * len(axes), "axes": axes, "steps": backwards}
        inputs = [constant(f"{name}.{key}", values) for key, values in bounds.items()]
        views.append(op("Slice", image, *inputs, name=f"flip.{name}"))
    stacked = op("Concat", *views, name="views", axis=0)
    first = next(iter(graph))
    graph.insert_before(first, made)
    for node, index in users:
        node.replace_input_with(index, stacked)

    made.clear()
    producer = logits.producer()
    assert producer is not None, "a model computes its output"
    output = producer.outputs[0]
    kept, output.name = logits.name, f"{prefix}{logits.name}.views"
    classes = logits.shape[1] if logits.shape is not None else None
    shape = constant(
        "views.shape", [len(views), -1, int(classes)] if isinstance(classes, int) else [4, -1, 1]
    )
    split = op("Reshape", output, shape, name="views.split")
    mean = op("ReduceMean", split, name="mean", axes=[0], keepdims=0)
    mean.name, mean.shape, mean.type = kept, logits.shape, logits.type
    output.shape = None
    graph.extend(made)
    graph.outputs[0] = mean
    return Model.from_ir(graph_model)
