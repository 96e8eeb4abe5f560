"""Running a model to look inside it, for calibration, reconstruction and comparison.

`probe(model, names)` returns a session of the ONNX Runtime backend whose outputs are the tensors named, so
that nothing but the adapter knows the runtime. The graph is run as it is: no fusion may hide a tensor.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from edgeinfer.api import compile as compile_model
from edgeinfer.api import load
from edgeinfer.errors import TransformError
from edgeinfer.model import Model
from edgeinfer.session import Session

__all__ = ["expose", "probe"]


def expose(model: Model, names: Sequence[str]) -> Model:
    """Return the model with the named tensors of its main graph as its only outputs, in that order.

    Raises:
        TransformError: There is no such tensor.
    """
    work = model.copy_ir()
    values: dict[str, ir.Value] = {value.name or "": value for value in work.graph.inputs}
    values |= {value.name or "": value for node in work.graph for value in node.outputs}
    unknown = [name for name in names if name not in values]
    if unknown:
        raise TransformError("The graph has no such tensor.", where=unknown[0])
    work.graph.outputs.clear()
    for name in names:
        value = values[name]
        if value.is_graph_input():  # a runtime may refuse an input as an output
            node = ir.node("Identity", [value])
            node.outputs[0].name = f"{name}__probe"
            node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
            work.graph.append(node)
            value = node.outputs[0]
        work.graph.outputs.append(value)
    return Model(work, model.path)


def probe(model: Model, names: Sequence[str], *, threads: int = 0) -> Session:
    """Return a session that computes the named tensors.

    Args:
        model: The model.
        names: Tensors of its main graph.
        threads: Threads within an operator; 0 lets the runtime choose.
    """
    return load(compile_model(expose(model, names), "onnxruntime", options={"threads": threads}))
