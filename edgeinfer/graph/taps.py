"""Running a model to look inside it, for calibration, reconstruction and comparison.

`probe(model, names)` returns a session of the reference backend (`Capabilities.reference`) whose outputs are
the tensors named. A tensor that is an output is not fused away: its values are those of the graph as it says.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgeinfer.artifact.artifact import Artifact
from edgeinfer.backends.onnx_payload import payload_of_onnx
from edgeinfer.backends.protocol import LoadOptions
from edgeinfer.backends.registry import reference_backend
from edgeinfer.errors import TransformError
from edgeinfer.model.model import Model
from edgeinfer.runtime.session import Session

__all__ = ["expose", "probe", "probe_sizes", "reference_session"]


def expose(model: Model, names: Sequence[str]) -> Model:
    """Return the model with the named tensors of its main graph as its only outputs, in that order.

    Nodes that none of them needs are dropped; the inputs stay.

    Raises:
        TransformError: There is no such tensor.
    """
    work, values = _named_values(model, names)
    work.graph.outputs.clear()
    for value in values:
        if value.is_graph_input():  # a runtime may refuse an input as an output
            copy = _append(work.graph, "Identity", value, value.type)
            copy.shape = value.shape
            value = copy
        work.graph.outputs.append(value)
    common_passes.RemoveUnusedNodesPass()(work)
    return Model(work, model.path)


def reference_session(model: Model, *, threads: int = 0) -> Session:
    """Return a session that computes the model's own outputs, without the trial run of `compile`.

    Args:
        model: The model.
        threads: Threads within an operator; 0 lets the runtime choose.
    """
    return _session(model, threads)


def probe(model: Model, names: Sequence[str], *, threads: int = 0) -> Session:
    """Return a session that computes the named tensors.

    Args:
        model: The model.
        names: Tensors of its main graph.
        threads: Threads within an operator; 0 lets the runtime choose.

    Raises:
        TransformError: There is no such tensor.
    """
    return _session(expose(model, names), threads)


def probe_sizes(model: Model, names: Sequence[str], *, threads: int = 0) -> Session:
    """Return a session that computes the element count (int64) of each named tensor, in their order.

    The tensors themselves never leave the runtime, which frees each as soon as it can.

    Args:
        model: The model.
        names: Tensors of its main graph.
        threads: Threads within an operator; 0 lets the runtime choose.

    Raises:
        TransformError: There is no such tensor.
    """
    work, values = _named_values(model, names)
    work.graph.outputs.clear()
    for value in values:
        size = _append(work.graph, "Size", value, ir.TensorType(ir.DataType.INT64))
        size.shape = ir.Shape(())
        work.graph.outputs.append(size)
    common_passes.RemoveUnusedNodesPass()(work)
    return _session(Model(work, model.path), threads)


def _session(model: Model, threads: int) -> Session:
    # Not by way of `compile`, which would create each session twice: calibration makes several.
    backend = reference_backend()
    found = backend.capabilities()
    options = {**found.reference_options, **(found.threads(threads) or {})}
    payload = payload_of_onnx(model, device="CPU", options=options)
    artifact = Artifact.of_payload(payload, model=model, backend=backend.name, backend_version="")
    return Session(backend.load(payload, LoadOptions(device="CPU")), artifact.manifest)


def _named_values(model: Model, names: Sequence[str]) -> tuple[ir.Model, list[ir.Value]]:
    work = model.copy_ir()
    values: dict[str, ir.Value] = {value.name or "": value for value in work.graph.inputs}
    values |= {value.name or "": value for node in work.graph for value in node.outputs}
    unknown = [name for name in names if name not in values]
    if unknown:
        raise TransformError("The graph has no such tensor.", where=unknown[0])
    return work, [values[name] for name in names]


def _append(graph: ir.Graph, op_type: str, value: ir.Value, type_: ir.TypeProtocol | None) -> ir.Value:
    node = ir.node(op_type, [value])
    output = node.outputs[0]
    output.name, output.type = f"{value.name}__{op_type.lower()}", type_
    graph.append(node)
    return output
