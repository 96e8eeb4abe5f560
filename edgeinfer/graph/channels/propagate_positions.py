"""Rules for operators that add, repeat or count positions: Pad, DepthToSpace, Expand, Shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from edgeinfer.graph.channels.labels import Axes, Labels, dims
from edgeinfer.graph.channels.moves import attribute, fixed_input
from edgeinfer.graph.channels.propagate import rule
from edgeinfer.graph.channels.propagate_layout import all_rows
from edgeinfer.graph.shapes import literal_elements

__all__ = ["pad_amounts"]


@rule("Pad", scale="blocks")  # but for zeros, see `ChannelScales`
def _pad(node: ir.Node, labels: Labels) -> list[Axes]:
    """Pad: padding of a followed axis makes channels of its own, which go with what they meet."""
    x = node.inputs[0]
    assert x is not None
    rows = all_rows(labels, x)
    pads = pad_amounts(node, len(rows))
    name = node.name or ""
    if pads is None:
        labels.lock_all(rows, name, "the amounts of a Pad are computed from data")
        return [list(rows)]
    out: Axes = []
    for row, (before, after) in zip(rows, pads, strict=True):
        if row is None or before == after == 0:
            out.append(row)
        elif min(before, after) < 0 or attribute(node, "mode", "constant") != "constant":
            labels.lock(row, name, "a Pad that crops or repeats channels")
            out.append(None)
        else:
            out.append(np.concatenate([labels.fresh(before), row, labels.fresh(after)]))
    return [out]


def pad_amounts(node: ir.Node, rank: int) -> list[tuple[int, int]] | None:
    """Return (before, after) by axis of a Pad node, or None when they are not constants."""
    if "pads" in node.attributes:
        flat = [int(v) for v in attribute(node, "pads")]  # type: ignore[attr-defined]
    else:
        array = fixed_input(node, 1)
        if array is None:
            return None
        flat = array.tolist()
    axes = list(range(rank))
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        chosen = fixed_input(node, 3)
        if chosen is None:
            return None
        axes = [int(axis) % rank for axis in chosen]
    result = [(0, 0)] * rank
    for index, axis in enumerate(axes):
        result[axis] = (flat[index], flat[index + len(axes)])
    return result


@rule("DepthToSpace")
def _depth_to_space(node: ir.Node, labels: Labels) -> list[Axes]:
    x = node.inputs[0]
    assert x is not None
    row = labels.axis(x, 1)
    if row is not None:
        block = int(attribute(node, "blocksize")) ** 2  # type: ignore[call-overload]
        crd = attribute(node, "mode", "DCR") == "CRD"
        grid = row.reshape(-1, block) if crd else row.reshape(block, -1).T
        row = labels.unite_all(grid, 1)
        row = None if len(row) < 2 else row
    return [[None, row, None, None]]


@rule("SpaceToDepth")
def _space_to_depth(node: ir.Node, labels: Labels) -> list[Axes]:
    x = node.inputs[0]
    assert x is not None
    row = labels.axis(x, 1)
    block = int(attribute(node, "blocksize")) ** 2  # type: ignore[call-overload]
    return [[None, None if row is None else np.tile(row, block), None, None]]


@rule("Expand", "Tile")
def _expand(node: ir.Node, labels: Labels) -> list[Axes]:
    """Repetition: followed axes must keep their size, and the sizes must be literal to be adapted."""
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    rows, before, after = all_rows(labels, x), dims(x), dims(y)
    target = node.inputs[1]
    literal = target is not None and literal_elements(target) is not None
    out: Axes = [None] * len(after)
    for back in range(1, len(rows) + 1):
        if rows[-back] is None:
            continue
        if literal and back <= len(after) and before[-back] == after[-back]:
            out[-back] = rows[-back]
        else:
            labels.lock(
                rows[-back], node.name or "", f"{node.op_type} repeats this axis, or to a computed size"
            )
    return [out]


@rule("Shape", "Size")
def _shape(node: ir.Node, labels: Labels) -> list[Axes]:
    """The number of channels as data: fine while only axes that are not followed are read from it."""
    x = node.inputs[0]
    assert x is not None
    rows = labels.of(x)
    start = int(attribute(node, "start", 0))  # type: ignore[call-overload]
    end: Any = attribute(node, "end")
    read = set(range(len(rows))[slice(start, end)])
    uses = node.outputs[0].uses()
    picks = [
        fixed_input(user, 1) if user.op_type == "Gather" and index == 0 else None for user, index in uses
    ]
    if not node.outputs[0].is_graph_output() and all(pick is not None for pick in picks):
        ordered = sorted(read)
        read = {ordered[int(i)] for pick in picks if pick is not None for i in np.ravel(pick)}
    for axis in read:
        labels.lock(rows[axis], node.name or "", "the number of these channels is read as data")
    return [[None]]
