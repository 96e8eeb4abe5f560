"""Shapes that a file states about its inner values, checked against what its inputs and operators give.

Exporters write the shapes of inner values down, and later tools change the inputs without changing them: a
batch of 1 becomes a free one, say. A runtime trusts such a shape and fails in the middle of a run, or a
transform folds it into a constant. So a model is loaded with shapes that do not contradict each other:

- Where one inner shape contradicts what shape inference finds without any of them, all are dropped. Which of
  the others were written at the same time cannot be known.
- The inputs stay as they are declared. An output stays as declared, too, unless its declaration is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from edgeinfer.model.onnx_inference import run_inference

__all__ = ["drop_wrong_shapes", "forget_shapes", "inner_values"]


def drop_wrong_shapes(model: ir.Model) -> bool:
    """Remove inner shapes that are wrong and correct declared outputs that are, in place.

    Returns:
        Whether there were any.
    """
    for function in model.functions.values():
        for node in function.all_nodes():
            for value in node.outputs:
                value.shape = None  # a function may be called with several shapes
    hints = [value for value in inner_values(model) if value.shape is not None]
    if not hints and not any(value.shape for value in model.graph.outputs):
        return False
    fresh = _inferred_afresh(model)
    named = {
        dim.value
        for value in model.graph.inputs
        for dim in value.shape or ()
        if not isinstance(dim, int) and dim.value
    }
    wrong = any(_contradict(value.shape, fresh.get(value), named) for value in hints)
    for value in model.graph.outputs:
        found = fresh.get(value)
        if found is not None and _contradict(value.shape, found, named):
            wrong, value.shape = True, _corrected(value.shape, found, named)
    if wrong:
        forget_shapes(model)
    return wrong


def forget_shapes(model: ir.Model) -> None:
    """Remove the shapes of all inner values, in place. Their dtypes stay.

    An input of a subgraph that is a scalar stays one: a Loop's count and condition are nothing else, and
    runtimes want that written down.
    """
    for value in inner_values(model):
        if not (value.is_graph_input() and value.shape is not None and len(value.shape) == 0):
            value.shape = None


def inner_values(model: ir.Model) -> Iterator[ir.Value]:
    """Yield the values that are computed, and the inputs of subgraphs; not the outputs of the model."""
    for graph in model.graph.subgraphs():
        yield from graph.inputs
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if not (value.is_graph_output() and node.graph is model.graph):
                yield value


def _inferred_afresh(model: ir.Model) -> dict[ir.Value, ir.Shape]:
    """Return the shapes of the model's own values as inferred from its inputs and weights alone."""
    copy = model.clone()
    forget_shapes(copy)
    for value in copy.graph.outputs:
        value.shape = None if value.producer() is not None else value.shape
    run_inference(copy, data_prop=True, disposable=True)
    found: dict[ir.Value, ir.Shape] = {}
    pairs = zip(_every_value(model), _every_value(copy), strict=True)
    for own, other in pairs:
        if other.shape is not None:
            found[own] = other.shape
    return found


def _every_value(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graph.subgraphs():
        yield from graph.inputs
    for node in model.graph.all_nodes():
        yield from node.outputs


def _contradict(stated: ir.Shape | None, found: ir.Shape | None, named: set[str]) -> bool:
    """Whether both cannot be true for every size that the named dimensions of the inputs may have."""
    if stated is None or found is None:
        return False
    if len(stated) != len(found):
        return True
    return any(_differ(old, new, named) for old, new in zip(stated, found, strict=True))


def _differ(stated: int | ir.SymbolicDim, found: int | ir.SymbolicDim, named: set[str]) -> bool:
    if isinstance(found, int):
        return isinstance(stated, int) and stated != found
    if found.value not in named:
        return False
    return isinstance(stated, int) or (stated.value in named and stated.value != found.value)


def _corrected(stated: ir.Shape | None, found: ir.Shape, named: set[str]) -> ir.Shape:
    if stated is None or len(stated) != len(found):
        return found
    return ir.Shape(
        [new if _differ(old, new, named) else old for old, new in zip(stated, found, strict=True)]
    )
