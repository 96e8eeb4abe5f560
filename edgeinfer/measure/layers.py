"""Comparison layer by layer, in flat memory, of tensors on one scale."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.display import track
from edgeinfer.errors import OptionsError
from edgeinfer.feeds.feeds import Feed
from edgeinfer.graph.rescaled import rescaled
from edgeinfer.graph.taps import probe
from edgeinfer.model.model import Model
from edgeinfer.numerics.closeness import Closeness, ClosenessAccumulator

__all__ = ["LayerCloseness", "common_tensors", "compare_layers"]


@final
@attrs.frozen(kw_only=True)
class LayerCloseness:
    """How close one tensor of a candidate graph is to the same tensor of the reference graph.

    Attributes:
        tensor: The tensor's name in both graphs. Where a graph quantizes it for all its readers, it is taken
            behind the DequantizeLinear, as they read it: a quantizer's range may stand for a ReLU. What a
            transform divided by factors that it noted (`graph.rescaled`) is multiplied by them again.
        node: The ONNX node of the candidate that makes it.
        op_type: That node's operator.
        closeness: The figures.
    """

    tensor: str
    node: str
    op_type: str
    closeness: Closeness


def common_tensors(reference: Model, candidate: Model) -> list[str]:
    """Return the names of the computed tensors that both main graphs have, in topological order.

    Constants, and what follows from constants alone, are left out; so are strings and sequences.
    """
    made = _computed(candidate.ir.graph)
    return [name for name in _computed(reference.ir.graph) if name in made]


def _computed(graph: ir.Graph) -> dict[str, ir.Node]:
    variable = {id(value) for value in graph.inputs if value.name not in graph.initializers}
    found: dict[str, ir.Node] = {}
    for node in graph:
        subgraphs = any(
            a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()
        )
        # A node with a subgraph may read outer tensors that are not among its inputs.
        if not subgraphs and not any(id(value) in variable for value in node.inputs if value is not None):
            continue
        for value in node.outputs:
            if not value.name:
                continue
            variable.add(id(value))
            comparable = value.dtype is not ir.DataType.STRING and isinstance(
                value.type, (ir.TensorType, type(None))
            )
            if comparable:
                found[value.name] = node
    return found


def _as_read(graph: ir.Graph) -> dict[str, str]:
    """Return, for each computed tensor, the name of what its readers get (see `LayerCloseness.tensor`)."""
    outputs = {value.name for value in graph.outputs}
    found: dict[str, str] = {}
    for name, node in _computed(graph).items():
        value = next(output for output in node.outputs if output.name == name)
        behind = None if name in outputs else _behind_quantizer(value)
        found[name] = behind.name if behind is not None and behind.name else name
    return found


def _behind_quantizer(value: ir.Value) -> ir.Value | None:
    """Return what DequantizeLinear makes of a value that nothing but quantizers reads."""
    for op_type in ("QuantizeLinear", "DequantizeLinear"):
        readers = tuple(value.uses())
        if not readers or any(use.node.op_type != op_type or use.idx != 0 for use in readers):
            return None
        # Where several do it, each has the one scale of the tensor, so the first will do.
        value = readers[0].node.outputs[0]
    return value


def compare_layers(
    reference: Model,
    candidate: Model,
    feeds: Iterable[Feed],
    *,
    tensors_per_pass: int = 16,
    progress: bool | None = None,
) -> tuple[tuple[LayerCloseness, ...], list[str]]:
    """Compare the tensors that both graphs have.

    Args:
        reference: The reference.
        candidate: The candidate.
        feeds: Gone through once for every `tensors_per_pass` tensors.
        tensors_per_pass: How many tensors are computed, and held, at once.
        progress: Show a progress bar.

    Returns:
        The layers in the reference's topological order, and notes on what could not be compared.
    """
    if tensors_per_pass < 1:
        raise OptionsError("At least one tensor a pass is needed.", found=tensors_per_pass)
    names = common_tensors(reference, candidate)
    nodes = _computed(candidate.ir.graph)
    left_reads, right_reads = (_as_read(model.ir.graph) for model in (reference, candidate))
    left_scales, right_scales = (rescaled(model.ir) for model in (reference, candidate))
    chunks = [names[start : start + tensors_per_pass] for start in range(0, len(names), tensors_per_pass)]
    layers: list[LayerCloseness] = []
    other_shape: list[str] = []
    other_scale: list[str] = []
    for chunk in track(chunks, "Comparing layers", total=len(chunks), progress=progress):
        sums = {name: ClosenessAccumulator() for name in chunk}
        unlike: set[str] = set()
        unscaled: set[str] = set()
        wanted = [list(dict.fromkeys(reads[name] for name in chunk)) for reads in (left_reads, right_reads)]
        with probe(reference, wanted[0]) as left, probe(candidate, wanted[1]) as right:
            for feed in feeds:
                expected, found = left.infer(feed), right.infer(feed)
                for name in chunk:
                    a = _on_one_scale(expected[left_reads[name]], left_scales.get(name))
                    b = _on_one_scale(found[right_reads[name]], right_scales.get(name))
                    if a is None or b is None:
                        unscaled.add(name)
                    elif a.shape != b.shape:
                        unlike.add(name)
                    else:
                        sums[name].update(a, b)
        other_shape += [name for name in chunk if name in unlike]
        other_scale += [name for name in chunk if name in unscaled]
        layers += [
            LayerCloseness(
                tensor=name,
                node=nodes[name].name or "",
                op_type=nodes[name].op_type,
                closeness=total.result(),
            )
            for name, total in sums.items()
            if name not in unlike | unscaled
        ]
    notes = []
    if other_shape:
        notes.append(f"{len(other_shape)} layers have other shapes, such as {other_shape[0]!r}")
    if other_scale:
        notes.append(
            f"{len(other_scale)} layers were scaled by a transform and cannot be put on one scale, such as "
            f"{other_scale[0]!r}"
        )
    back = [layer.tensor for layer in layers if layer.tensor in left_scales or layer.tensor in right_scales]
    if back:
        notes.append(
            f"{len(back)} layers that a transform scaled are compared on the scale that they had before"
        )
    if not layers:
        notes.append("the graphs have no computed tensor in common")
    return tuple(layers), notes


def _on_one_scale(array: np.ndarray, divided_by: np.ndarray | None) -> np.ndarray | None:
    """Undo what a transform divided a tensor by; None when the factors are of another shape."""
    if divided_by is None:
        return array
    if divided_by.ndim > array.ndim:
        return None
    aligned = zip(divided_by.shape[::-1], array.shape[::-1], strict=False)
    if any(size not in (1, wanted) for size, wanted in aligned):
        return None
    undone: np.ndarray = array * divided_by
    return undone
