"""Equal small initializers become one."""

from __future__ import annotations

import onnx_ir as ir

from edgeinfer.graph.effects import updated_inputs

__all__ = ["deduplicate_initializers"]

MAX_ELEMENTS = 1024


def deduplicate_initializers(graph: ir.Graph, opset: int) -> None:
    """Let equal initializers of the main graph be one, in place; what a runtime may write to keeps its own.

    Args:
        graph: The main graph.
        opset: Its version of the default domain.
    """
    first: dict[tuple[object, ...], ir.Value] = {}
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.size > MAX_ELEMENTS or value.is_graph_input() or value.is_graph_output():
            continue
        if any(use.idx in updated_inputs(use.node, opset) for use in value.uses()):
            continue
        content = tuple(tensor.string_data()) if isinstance(tensor, ir.StringTensor) else tensor.tobytes()
        kept = first.setdefault((tensor.dtype, tuple(tensor.shape), content), value)
        if kept is not value:
            value.replace_all_uses_with(kept)
            del graph.initializers[value.name or ""]
