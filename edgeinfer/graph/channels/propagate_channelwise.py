"""Rules for operators that work channel by channel or across channels: normalization, pooling, reduction."""

from __future__ import annotations

import onnx_ir as ir

from edgeinfer.graph.channels.labels import Axes, Labels, dims
from edgeinfer.graph.channels.moves import attribute, fixed_input
from edgeinfer.graph.channels.propagate import meet, rule

__all__: list[str] = []


@rule("BatchNormalization", "InstanceNormalization")
def _per_channel(node: ir.Node, labels: Labels) -> list[Axes]:
    """Statistics of one channel each: scale, bias, mean and variance go with their channel."""
    x = node.inputs[0]
    assert x is not None
    axes: Axes = [None, labels.axis(x, 1), *[None] * (len(dims(x)) - 2)]
    for value in node.inputs[1:]:
        if value is not None:
            meet(labels, node, axes[1], labels.axis(value, 0), "its statistics")
    statistics: list[Axes] = [[None] for _ in node.outputs[1:]]
    return [axes, *statistics]


@rule("GroupNormalization")
def _group_norm(node: ir.Node, labels: Labels) -> list[Axes]:
    """Statistics of a group: entire groups can go, single channels cannot without changing the others."""
    x = node.inputs[0]
    assert x is not None
    axes: Axes = [None, labels.axis(x, 1), *[None] * (len(dims(x)) - 2)]
    groups = int(attribute(node, "num_groups"))  # type: ignore[call-overload]
    row = axes[1]
    if row is not None:
        leaders = labels.unite_all(row.reshape(groups, -1), 1)
        for value in node.inputs[1:]:
            size = dims(value)[0] if value is not None else 1
            if value is not None and size != 1:
                meet(labels, node, leaders if size == groups else row, labels.axis(value, 0), "its scale")
    return [axes]


@rule("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
def _layer_norm(node: ir.Node, labels: Labels) -> list[Axes]:
    """Statistics over the channels: removing one would change the others, so they stay."""
    x = node.inputs[0]
    assert x is not None
    start = int(attribute(node, "axis", -1)) % len(dims(x))  # type: ignore[call-overload]
    axes = labels.of(x)
    for axis in range(start, len(axes)):
        labels.lock(axes[axis], node.name or "", "the normalization takes its statistics over these channels")
    for value in node.inputs[1:]:
        if value is not None:
            for axis in range(len(dims(value))):
                labels.lock(
                    labels.axis(value, axis), node.name or "", "a scale of a normalization over channels"
                )
    reduced: Axes = [*axes[:start], *[None] * (len(axes) - start)]
    return [list(axes), *[reduced] * (len(node.outputs) - 1)]


@rule("Softmax", "LogSoftmax", "Hardmax")
def _softmax(node: ir.Node, labels: Labels) -> list[Axes]:
    """A distribution over the channels: they stay."""
    x = node.inputs[0]
    assert x is not None
    axes = labels.of(x)
    old = (node.version or (node.graph.opset_imports.get("", 13) if node.graph else 13)) < 13
    axis = int(attribute(node, "axis", 1 if old else -1)) % len(axes)  # type: ignore[call-overload]
    for index in range(axis, len(axes) if old else axis + 1):
        labels.lock(axes[index], node.name or "", f"{node.op_type} runs over these channels")
    return [list(axes)]


@rule("LRN", "LpNormalization", "MeanVarianceNormalization")
def _across(node: ir.Node, labels: Labels) -> list[Axes]:
    """Normalizations across channels."""
    x = node.inputs[0]
    assert x is not None
    labels.lock_all(labels.of(x), node.name or "", f"{node.op_type} mixes neighbouring channels")
    return [list(labels.of(x))]


@rule("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "Resize", scale="passes by channel")
@rule("LpPool", "GlobalLpPool", "Upsample")
def _spatial(node: ir.Node, labels: Labels) -> list[Axes]:
    """Work within each channel; the channel axis must keep its size."""
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    axes = labels.of(x)
    out: Axes = []
    sizes = dims(y) or dims(x)
    for axis, row in enumerate(axes):
        same = row is None or (axis < 2 and sizes[axis] == len(row))
        if not same:
            labels.lock(row, node.name or "", f"{node.op_type} resizes this axis")
        out.append(row if same else None)
    if node.op_type == "Resize":
        _lock_odd_resize(node, labels, axes)
    return [out] * len(node.outputs)


def _lock_odd_resize(node: ir.Node, labels: Labels, axes: Axes) -> None:
    """Only literal scales or sizes can be adapted; a region of interest holds channels, too."""
    if attribute(node, "coordinate_transformation_mode") == "tf_crop_and_resize":
        labels.lock_all(axes, node.name or "", "a Resize with a region of interest")
    sizes = node.inputs[3] if len(node.inputs) > 3 else None
    if sizes is not None and fixed_input(node, 3) is None:
        labels.lock_all(axes, node.name or "", "the sizes of a Resize are computed")


@rule(
    "ReduceMean",
    "ReduceSum",
    "ReduceMax",
    "ReduceMin",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
    "ReduceProd",
)
def _reduce(node: ir.Node, labels: Labels) -> list[Axes]:
    """Reductions: over space they pass channels on, over channels they hold them."""
    x = node.inputs[0]
    assert x is not None
    rows = labels.of(x)
    given = attribute(node, "axes")
    array = fixed_input(node, 1)
    computed = len(node.inputs) > 1 and node.inputs[1] is not None and array is None
    if computed:
        labels.lock_all(rows, node.name or "", "the axes of a reduction are computed")
        return [[None] * len(dims(node.outputs[0]))]
    if array is not None:
        given = array.tolist()
    if not given and attribute(node, "noop_with_empty_axes", 0):
        return [list(rows)]
    axes = {int(a) % len(rows) for a in given} if given else set(range(len(rows)))  # type: ignore[attr-defined]
    for axis in axes:
        labels.lock(rows[axis], node.name or "", f"{node.op_type} runs over these channels")
    if attribute(node, "keepdims", 1):
        return [[None if axis in axes else row for axis, row in enumerate(rows)]]
    return [[row for axis, row in enumerate(rows) if axis not in axes]]
