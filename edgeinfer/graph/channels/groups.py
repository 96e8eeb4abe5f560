"""Dependency analysis: which channels of which tensors must be removed together.

`analyze(model)` works through the graph once (see `labels` for the idea) and returns frozen groups. A group
is a set of channels that run through exactly the same axes, so that any of them may be removed, alone or
with others. What cannot be pruned is listed with its node and the reason.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Literal, final

import attrs
import onnx_ir as ir

import edgeinfer.graph.channels.propagate_channelwise
import edgeinfer.graph.channels.propagate_layout
import edgeinfer.graph.channels.propagate_positions  # noqa: F401  (these modules register their rules)
from edgeinfer.graph.channels.labels import Axes, Labels, Locked, dims
from edgeinfer.graph.channels.propagate import RULES
from edgeinfer.graph.layers import find_layers
from edgeinfer.graph.subgraphs import read_values
from edgeinfer.graph.weights import Linear

__all__ = ["AxisSlice", "ChannelGroup", "Dependencies", "Locked", "analyze"]


@final
@attrs.frozen(kw_only=True)
class AxisSlice:
    """Where a group's channels lie on one axis of one tensor.

    Attributes:
        tensor: The tensor's name.
        axis: The axis.
        positions: For each channel of the group, its positions on that axis (several after a Flatten).
    """

    tensor: str
    axis: int
    positions: tuple[tuple[int, ...], ...]


@final
@attrs.frozen(kw_only=True)
class ChannelGroup:
    """Channels that run through the same axes; each can be removed on all of them together.

    Attributes:
        name: The first layer that makes them.
        kind: `channel`, or `head` for the heads of an attention.
        size: How many channels there are.
        slices: Where they lie, weights and activations, in graph order.
        producers: The layers whose outputs they are.
        consumers: The layers that read and weigh them.
    """

    name: str
    kind: Literal["channel", "head"] = "channel"
    size: int
    slices: tuple[AxisSlice, ...]
    producers: tuple[str, ...]
    consumers: tuple[str, ...]

    def positions(self, tensor: str, axis: int, channels: Iterable[int]) -> tuple[int, ...]:
        """Return where some of the channels lie on an axis."""
        for part in self.slices:
            if part.tensor == tensor and part.axis == axis:
                return tuple(p for channel in channels for p in part.positions[channel])
        return ()


@final
@attrs.frozen(kw_only=True, eq=False)
class Dependencies:
    """What `analyze` found.

    Attributes:
        groups: The groups that can be pruned, in graph order.
        locked: What cannot be pruned, with node and reason.
        rows: The class of every position of every followed axis, by tensor.
        members: The class of each channel, by group name.
        layers: The layers with weights, in graph order.
    """

    groups: tuple[ChannelGroup, ...]
    locked: tuple[Locked, ...]
    rows: Mapping[ir.Value, Axes]
    members: Mapping[str, tuple[int, ...]]
    layers: tuple[Linear, ...]


def analyze(graph: ir.Graph) -> Dependencies:
    """Find the channel groups of a graph whose shapes were inferred.

    Args:
        graph: The main graph, in topological order, with constants as initializers.
    """
    labels = Labels()
    pinned: list[tuple[ir.Value, str, str]] = []
    for node in graph:
        _visit(node, labels, pinned)
    for value, name, reason in pinned:
        labels.lock_all(labels.axes.get(value, ()), name, reason)
    for value in graph.outputs:
        labels.lock_all(labels.of(value), value.name or "", "it is an output of the graph")
    return _collect(graph, labels)


def _visit(node: ir.Node, labels: Labels, pinned: list[tuple[ir.Value, str, str]]) -> None:
    inputs = {value for value in node.inputs if value is not None}
    pinned += [
        (value, node.name or "", "it is read inside control flow")
        for value in read_values(node)
        if value not in inputs
    ]
    known = node.domain in ("", "ai.onnx") and node.op_type in RULES
    if known and all(v is None or v.shape is not None for v in node.inputs):
        results = RULES[node.op_type].propagate(node, labels)
    else:
        what = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
        reason = "the rank of an input is not known" if known else f"there is no rule for {what}"
        pinned += [(value, node.name or "", reason) for value in inputs]
        results = []
    for value, axes in zip(node.outputs, [*results, *[[]] * len(node.outputs)], strict=False):
        rank = 0 if value.shape is None else len(value.shape)
        labels.axes[value] = list(axes) if len(axes) == rank else [None] * rank
        if axes and len(axes) != rank:
            labels.lock_all(axes, node.name or "", "the rank of its output is not known")


def _collect(graph: ir.Graph, labels: Labels) -> Dependencies:
    rows: dict[ir.Value, Axes] = {
        value: [None if row is None else labels.roots(row) for row in axes]
        for value, axes in labels.axes.items()
        if any(row is not None for row in axes)
    }
    order = {value: index for index, value in enumerate(rows)}
    places: dict[int, Counter[tuple[int, int]]] = defaultdict(Counter)
    for value, axes in rows.items():
        for axis, row in enumerate(axes):
            for label in () if row is None else row.tolist():
                places[label][order[value], axis] += 1
    layers = find_layers(graph)
    made, read = _made_and_read(layers, rows)
    locked = labels.locked()
    held: Counter[tuple[str, str]] = Counter()
    signatures: dict[object, list[int]] = defaultdict(list)
    for label, where in places.items():
        if label in locked:
            held[locked[label]] += 1
        elif not read[label] or not made[label]:
            name = next(iter([*made[label], *read[label]]), next(iter(where)) and "")
            held[name, "no layer reads them" if not read[label] else "no layer makes them"] += 1
        else:
            signatures[frozenset(where.items())].append(label)
    groups, members = _groups(signatures, rows, made, read)
    return Dependencies(
        groups=groups,
        locked=tuple(Locked(node, reason, count) for (node, reason), count in held.items()),
        rows=rows,
        members=members,
        layers=tuple(layers),
    )


def _made_and_read(
    layers: list[Linear], rows: Mapping[ir.Value, Axes]
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """Return by class the layers that make it, and those that weigh and sum it. Depthwise ones only make."""
    made: dict[int, list[str]] = defaultdict(list)
    read: dict[int, list[str]] = defaultdict(list)
    for layer in layers:
        weight = layer.node.inputs[1]
        assert weight is not None
        axes = rows.get(weight, [None] * 4)
        outputs = axes[layer.channel_axis] if len(axes) > layer.channel_axis else None
        inputs = axes[layer.input_axis] if len(axes) > layer.input_axis else None
        if layer.groups > 1 and layer.kind == "ConvTranspose" and outputs is None:
            outputs, inputs = inputs, None
        for label in set() if outputs is None else set(outputs.tolist()):
            made[label].append(layer.name)
        for label in set() if inputs is None else set(inputs.tolist()):
            read[label].append(layer.name)
    return made, read


def _groups(
    signatures: Mapping[object, list[int]],
    rows: Mapping[ir.Value, Axes],
    made: Mapping[int, list[str]],
    read: Mapping[int, list[str]],
) -> tuple[tuple[ChannelGroup, ...], dict[str, tuple[int, ...]]]:
    owner = {label: key for key, labels in signatures.items() for label in labels}
    slices: dict[object, list[AxisSlice]] = defaultdict(list)
    heads: set[object] = set()
    for value, axes in rows.items():
        for axis, row in enumerate(axes):
            if row is None:
                continue
            at: dict[int, list[int]] = defaultdict(list)
            for position, label in enumerate(row.tolist()):
                at[label].append(position)
            keys = dict.fromkeys(owner[label] for label in at if label in owner)
            for key in keys:
                positions = tuple(tuple(at[label]) for label in signatures[key])
                slices[key].append(AxisSlice(tensor=value.name or "", axis=axis, positions=positions))
                if _is_head_axis(value, axis):
                    heads.add(key)
    groups, members = [], {}
    taken: Counter[str] = Counter()
    for key, labels in signatures.items():
        first = made[labels[0]][0]
        taken[first] += 1
        name = first if taken[first] == 1 else f"{first}#{taken[first]}"
        members[name] = tuple(labels)
        groups.append(
            ChannelGroup(
                name=name,
                kind="head" if key in heads else "channel",
                size=len(labels),
                slices=tuple(slices[key]),
                producers=tuple(made[labels[0]]),
                consumers=tuple(read[labels[0]]),
            )
        )
    return tuple(groups), members


def _is_head_axis(value: ir.Value, axis: int) -> bool:
    """A batch axis of a product of two activations: the heads of an attention."""
    producer = value.producer()
    if producer is None or producer.op_type != "MatMul":
        return False
    return axis < len(dims(value)) - 2 and all(
        v is not None and v.const_value is None for v in producer.inputs
    )
