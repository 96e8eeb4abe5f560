"""Model-local functions are put in place of their calls, where that can be done without changing a result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgeinfer.model.checks import name_nodes

__all__ = ["inline_functions"]


def inline_functions(model: ir.Model) -> tuple[tuple[str, ...], Mapping[str, str]]:
    """Inline what can be inlined, in place; every node has a unique name afterwards.

    Weights, which a function can only hold in Constant nodes, become initializers.

    Returns:
        The names of the functions that are gone, and those left by name, with the reason.
    """
    if not model.functions:
        return (), {}
    before = {key: function.name for key, function in model.functions.items()}
    reasons = {key: _reason(function, model) for key, function in model.functions.items()}
    left = {key for key, reason in reasons.items() if reason}
    if len(left) == len(before):
        return (), {before[key]: reason for key, reason in reasons.items()}
    try:
        common_passes.InlinePass(criteria=lambda function: function.identifier() not in left)(model)
    except ir.passes.PreconditionError:
        return (), dict.fromkeys(before.values(), "the functions call each other in a circle")
    common_passes.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    common_passes.LiftConstantsToInitializersPass(lift_all_constants=False)(model)
    common_passes.NameFixPass()(model)
    name_nodes(model)
    gone = tuple(name for key, name in before.items() if key not in model.functions)
    return gone, {before[key]: reasons[key] for key in model.functions if reasons.get(key)}


def _reason(function: ir.Function, model: ir.Model) -> str:
    for domain, version in function.opset_imports.items():
        own = model.opset_imports.get(domain, version)
        if own != version:
            return f"it is of opset {version} of {domain or 'ONNX'}, and the model of opset {own}"
    calls = [node for node in _nodes(model) if node.op_identifier() == function.identifier()]
    attributes = [
        *function.attributes.values(),
        *(attr for call in calls for attr in call.attributes.values()),
    ]
    if any(attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attr in attributes):
        return "it takes a graph as an attribute"
    return ""


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()
