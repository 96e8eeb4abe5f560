"""Removing channels from a graph: smaller weights, and every literal size along the way adapted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgeinfer.graph.channels.groups import Dependencies
from edgeinfer.graph.channels.labels import Axes, dims
from edgeinfer.graph.channels.moves import attribute, fixed_input, slice_parts
from edgeinfer.graph.channels.propagate_positions import pad_amounts
from edgeinfer.graph.initializers import constant, set_constant
from edgeinfer.graph.shapes import add_constant, literal_elements, with_elements

__all__ = ["kept_rows", "remove_channels"]

Masks: TypeAlias = "Mapping[ir.Value, list[np.ndarray | None]]"


def kept_rows(dependencies: Dependencies, removed: Iterable[int]) -> dict[ir.Value, list[np.ndarray | None]]:
    """Return by tensor, for each followed axis, a mask of the positions that stay.

    Args:
        dependencies: What `analyze` found.
        removed: The classes to remove (see `Dependencies.members`).
    """
    gone = np.array(sorted(removed), np.int64)

    def masks(axes: Axes) -> list[np.ndarray | None]:
        return [None if row is None else ~np.isin(row, gone) for row in axes]

    result = {value: masks(axes) for value, axes in dependencies.rows.items()}
    return {
        value: axes
        for value, axes in result.items()
        if any(mask is not None and not mask.all() for mask in axes)
    }


def remove_channels(model: ir.Model, dependencies: Dependencies, removed: Iterable[int]) -> Masks:
    """Remove classes of channels from a graph in place.

    Args:
        model: The graph that was analyzed.
        dependencies: What `analyze` found on it.
        removed: The classes to remove.

    Returns:
        The masks by tensor, as `kept_rows` gives them.
    """
    masks = kept_rows(dependencies, removed)
    for node in list(model.graph):
        edit = _EDITS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if edit is not None and any(v in masks for v in (*node.inputs, *node.outputs) if v is not None):
            edit(node, masks, model.graph)
    for value, axes in masks.items():
        for axis, mask in enumerate(axes):
            if mask is None or mask.all():
                continue
            if value.const_value is not None:
                set_constant(value, np.compress(mask, constant(value), axis=axis))
            elif value.shape is not None:
                shape = [*value.shape]
                shape[axis] = int(mask.sum())
                value.shape = ir.Shape(shape)
    common_passes.RemoveUnusedNodesPass()(model)
    return masks


def _mask(masks: Masks, value: ir.Value | None, axis: int) -> np.ndarray | None:
    axes = None if value is None else masks.get(value)
    return None if axes is None else axes[axis]


def _conv(node: ir.Node, masks: Masks, _: ir.Graph) -> None:
    group = int(attribute(node, "group", 1))  # type: ignore[call-overload]
    inputs = _mask(masks, node.inputs[0], 1)
    if group == 1 or inputs is None:
        return
    weight = node.inputs[1]
    assert weight is not None
    if node.op_type == "Conv":
        taps = _mask(masks, weight, 1)
        per_group = dims(weight)[1] if taps is None else int(taps.sum())
        group = int(inputs.sum()) // per_group  # type: ignore[operator]
    elif len(inputs) == group:
        group = int(inputs.sum())
    node.attributes["group"] = ir.AttrInt64("group", group)


def _group_norm(node: ir.Node, masks: Masks, _: ir.Graph) -> None:
    mask = _mask(masks, node.inputs[0], 1)
    if mask is not None:
        groups = int(attribute(node, "num_groups"))  # type: ignore[call-overload]
        node.attributes["num_groups"] = ir.AttrInt64("num_groups", groups * int(mask.sum()) // len(mask))


def _split(node: ir.Node, masks: Masks, graph: ir.Graph) -> None:
    x = node.inputs[0]
    assert x is not None
    axis = int(attribute(node, "axis", 0)) % len(dims(x))  # type: ignore[call-overload]
    if _mask(masks, x, axis) is None:
        return
    sizes: list[int] = []
    for value in node.outputs:
        mask = _mask(masks, value, axis)
        sizes.append(dims(value)[axis] if mask is None else int(mask.sum()))
    if node.graph is not None and _opset(node) < 13:
        node.attributes["split"] = ir.AttrInt64s("split", sizes)
        return
    node.attributes.pop("num_outputs", None)
    _set_input(node, 1, add_constant(graph, f"{node.name}_split", np.array(sizes, np.int64)))


def _slice(node: ir.Node, masks: Masks, graph: ir.Graph) -> None:
    x = node.inputs[0]
    assert x is not None
    parts = slice_parts(node, len(dims(x))) or {}
    starts, ends = [], []
    for axis, part in parts.items():
        mask = _mask(masks, x, axis)
        if mask is None or mask.all():
            starts.append(part.start)
            ends.append(-(1 << 62) if part.stop is None else part.stop)
        else:
            first = range(len(mask))[part].start
            starts.append(int(mask[:first].sum()))
            ends.append(starts[-1] + int(mask[part].sum()))
    if "starts" in node.attributes:
        node.attributes["starts"] = ir.AttrInt64s("starts", starts)
        node.attributes["ends"] = ir.AttrInt64s("ends", ends)
        return
    for index, (name, numbers) in enumerate((("starts", starts), ("ends", ends)), 1):
        old = fixed_input(node, index)
        dtype = np.int64 if old is None else old.dtype
        clipped = np.clip(np.array(numbers, np.int64), np.iinfo(dtype).min, np.iinfo(dtype).max)
        _set_input(node, index, add_constant(graph, f"{node.name}_{name}", clipped.astype(dtype)))


def _gather(node: ir.Node, masks: Masks, graph: ir.Graph) -> None:
    data = node.inputs[0]
    assert data is not None
    axis = int(attribute(node, "axis", 0)) % len(dims(data))  # type: ignore[call-overload]
    mask, picks = _mask(masks, data, axis), fixed_input(node, 1)
    if mask is None or picks is None or picks.ndim != 1:
        return
    places = np.cumsum(mask) - 1
    picked = np.arange(len(mask))[picks]
    fresh = places[picked[mask[picked]]].astype(picks.dtype)
    _set_input(node, 1, add_constant(graph, f"{node.name}_indices", fresh))


def _pad(node: ir.Node, masks: Masks, graph: ir.Graph) -> None:
    y, x = node.outputs[0], node.inputs[0]
    assert x is not None
    rank = len(dims(x))
    pads = pad_amounts(node, rank) or []
    changed = list(pads)
    for axis, (before, after) in enumerate(pads):
        mask = _mask(masks, y, axis)
        if mask is not None and (before or after):
            changed[axis] = (int(mask[:before].sum()), int(mask[len(mask) - after :].sum()))
    if changed == pads:
        return
    flat = [before for before, _ in changed] + [after for _, after in changed]
    if "pads" in node.attributes:
        node.attributes["pads"] = ir.AttrInt64s("pads", flat)
        return
    _set_input(node, 1, add_constant(graph, f"{node.name}_pads", np.array(flat, np.int64)))
    if len(node.inputs) > 3 and node.inputs[3] is not None:  # all axes are named now
        node.replace_input_with(3, None)


def _retarget(index: int) -> Callable[[ir.Node, Masks, ir.Graph], None]:
    """Make an edit that adapts the literal elements of a shape given as an input."""

    def edit(node: ir.Node, masks: Masks, graph: ir.Graph) -> None:
        target = node.inputs[index] if index < len(node.inputs) else None
        elements = None if target is None else literal_elements(target)
        if target is None or elements is None:
            return
        rank = len(dims(node.outputs[0]))
        axes: Any = attribute(node, "axes") or range(rank - len(elements), rank)
        changes = {}
        for place, axis in enumerate(axes):
            mask = _mask(masks, node.outputs[0], int(axis) % rank)
            element = elements[place]
            if mask is not None and not mask.all() and element is not None and element > 0:
                changes[place] = int(mask.sum())
        if changes:
            node.replace_input_with(index, with_elements(target, changes, graph))

    return edit


def _opset(node: ir.Node) -> int:
    return node.graph.opset_imports.get("", 0) if node.graph is not None else 0


def _set_input(node: ir.Node, index: int, value: ir.Value) -> None:
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


_EDITS: dict[str, Callable[[ir.Node, Masks, ir.Graph], None]] = {
    "Conv": _conv,
    "ConvTranspose": _conv,
    "GroupNormalization": _group_norm,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Pad": _pad,
    "Reshape": _retarget(1),
    "Expand": _retarget(1),
    "Resize": _retarget(3),
}
