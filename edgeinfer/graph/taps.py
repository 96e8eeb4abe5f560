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
    model = _with_own_weights(model)
    payload = payload_of_onnx(model, device="CPU", options=options)
    artifact = Artifact.of_payload(payload, model=model, backend=backend.name, backend_version="")
    return Session(backend.load(payload, LoadOptions(device="CPU")), artifact.manifest)


def _with_own_weights(model: Model) -> Model:
    """Return the model with a quantized weight of its own for each layer that reads one.

    The options that make the reference backend exact rewrite each layer's weight, and ONNX Runtime 1.32 fails
    where it meets one for the second time.
    """
    if not any(_is_shared(node) for node in model.ir.graph):
        return model
    work = model.copy_ir()
    graph = work.graph
    for node in [node for node in graph if _is_shared(node)]:
        output = node.outputs[0]
        for number, (user, index) in enumerate(list(output.uses())[1:], 1):
            inputs = [_copy_of(graph, value, number) for value in node.inputs]
            own = ir.node("DequantizeLinear", inputs, node.attributes.copy(), name=f"{node.name}_{number}")
            own.outputs[0].name = f"{output.name}_{number}"
            own.outputs[0].type, own.outputs[0].shape = output.type, output.shape
            graph.insert_before(user, own)
            user.replace_input_with(index, own.outputs[0])
    return Model(work, model.path)


def _copy_of(graph: ir.Graph, value: ir.Value | None, number: int) -> ir.Value | None:
    if value is None or not value.is_initializer():
        return value
    copy = ir.Value(
        name=f"{value.name}_{number}", type=value.type, shape=value.shape, const_value=value.const_value
    )
    graph.register_initializer(copy)
    return copy


def _is_shared(node: ir.Node) -> bool:
    if node.op_type != "DequantizeLinear" or len(node.outputs[0].uses()) < 2 or node.inputs[0] is None:
        return False
    owners = {user.graph for user, _ in node.outputs[0].uses()}
    return (
        node.inputs[0].is_initializer() and owners == {node.graph} and not node.outputs[0].is_graph_output()
    )


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
