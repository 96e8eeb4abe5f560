"""`inspect`: what a model consists of and what it costs, before anything is run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import final

import attrs
import onnx_ir as ir

from edgeinfer.display import Table
from edgeinfer.errors import EdgeInferError
from edgeinfer.feeds.generate import generate_feeds
from edgeinfer.feeds.shapes import InputShape, Shapes, input_shapes
from edgeinfer.graph.infer_shapes import infer_shapes
from edgeinfer.graph.macs import node_macs
from edgeinfer.graph.taps import probe
from edgeinfer.measure.memory_plan import MemoryPlan, plan_memory
from edgeinfer.model.model import Model, ModelSource
from edgeinfer.values import as_tuple

__all__ = ["InspectReport", "NodeCost", "inspect", "with_static_shapes"]

_TENSORS_PER_RUN = 32


@final
@attrs.frozen(kw_only=True)
class NodeCost:
    """What one node costs.

    Attributes:
        node: Its name.
        op_type: Its operator.
        macs: Multiply-accumulates; None when a shape is not known.
        parameters: Elements of the weights that it reads.
        output_shape: The shape of its first output; None when it is not known.
    """

    node: str
    op_type: str
    macs: int | None
    parameters: int
    output_shape: tuple[int, ...] | None


@final
@attrs.frozen(kw_only=True)
class InspectReport:
    """What a model consists of.

    Attributes:
        name: The model's name.
        opset: Its opset.
        signature: Its inputs and outputs, as text.
        inputs: The static input shapes that the figures hold for, and where each size is from.
        operators: How many nodes of each operator, most frequent first; subgraphs included.
        nodes: The cost of each node, in the graph's order; subgraphs' nodes count once.
        parameters: Elements of all weights.
        weights: For each dtype, bytes of all weights.
        memory: The memory plan of activations.
        notes: What could not be counted, and why.
    """

    name: str
    opset: int
    signature: str
    inputs: tuple[InputShape, ...] = attrs.field(converter=as_tuple)
    operators: Mapping[str, int]
    nodes: tuple[NodeCost, ...] = attrs.field(converter=as_tuple)
    parameters: int
    weights: Mapping[str, int]
    memory: MemoryPlan
    notes: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The static input shapes by name."""
        return {each.name: each.shape for each in self.inputs}

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one inference; nodes of unknown shape are not in it (see `notes`)."""
        return sum(node.macs or 0 for node in self.nodes)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(self.weights.values())

    def to_dict(self) -> dict[str, object]:
        """Return the figures as JSON-compatible values."""
        return {
            **attrs.asdict(self),
            "inputs": [each.to_dict() for each in self.inputs],
            "macs": self.macs,
            "weight_bytes": self.weight_bytes,
        }

    def table(self) -> Table:
        """Return the overview."""
        operators = ", ".join(f"{count} {name}" for name, count in self.operators.items())
        weights = ", ".join(f"{name} {_mb(size)}" for name, size in self.weights.items()) or "none"
        rows = [
            ("inputs and outputs", self.signature),
            ("figures are for", "\n".join(each.describe() for each in self.inputs)),
            ("opset", str(self.opset)),
            ("operators", operators),
            ("parameters", f"{self.parameters:,}"),
            ("weights", weights),
            ("MACs", f"{self.macs / 1e6:,.2f} M"),
            ("peak activations", f"{_mb(self.memory.peak_bytes)} at {self.memory.peak_node or 'the inputs'}"),
        ]
        return Table(title=f"Model {self.name}", columns=("", ""), rows=rows, footer="; ".join(self.notes))

    def node_table(self, top: int = 10) -> Table:
        """Return the `top` nodes with the most MACs."""
        ranked = sorted((node for node in self.nodes if node.macs), key=lambda node: -(node.macs or 0))[:top]
        total = self.macs or 1
        rows = [
            (n.node, n.op_type, f"{(n.macs or 0) / 1e6:,.2f} M", f"{(n.macs or 0) / total:.1%}",
             f"{n.parameters:,}", str(n.output_shape or "?"))
            for n in ranked
        ]  # fmt: skip
        return Table(
            title=f"The {len(ranked)} nodes of {self.name} with the most MACs",
            columns=("node", "type", "MACs", "share", "parameters", "output"),
            rows=rows,
        )

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table().to_html() + self.node_table().to_html()


def _mb(size: int) -> str:
    return f"{size / 1e6:.2f} MB" if size >= 10_000 else f"{size} B"


def inspect(model: ModelSource, *, shapes: Shapes | None = None, batch: int | None = None) -> InspectReport:
    """Take stock of a model: operators, parameters, MACs, weights by dtype, memory plan.

    Args:
        model: A path, bytes, `onnx.ModelProto`, `onnx_ir.Model` or Model.
        shapes: Sizes of symbolic dimensions (`{"N": 8}`) or entire shapes (`{"input": (8, 3, 224, 224)}`).
        batch: The size of the batch where the model leaves it open; None: 1.

    Raises:
        ModelError: The model cannot be read.
        InputError: A shape does not fit, or a size is missing that is not that of the batch.
    """
    loaded = Model.load(model)
    inputs = input_shapes(loaded.signature, shapes, batch=batch)
    static, notes = with_static_shapes(loaded, {each.name: each.shape for each in inputs})
    graph = static.graph
    nodes = tuple(_cost(node) for node in graph.all_nodes() if node.op_type != "Constant")
    plan = plan_memory(graph)
    unknown = [node.node for node in nodes if node.macs is None]
    if unknown:
        notes.append(
            f"MACs of {len(unknown)} nodes are not counted, their shapes are not known: {unknown[0]}, …"
        )
    if any(True for _ in graph.subgraphs()):
        notes.append("nodes of subgraphs (loops, branches) count once")
    if plan.unknown:
        notes.append(f"{plan.unknown} tensors of unknown size are not in the memory plan")
    name = loaded.path.name if loaded.path else loaded.ir.graph.name or "model"
    weights = _weights(loaded.ir)
    return InspectReport(
        name=name,
        opset=loaded.opset,
        signature=loaded.signature.describe(),
        inputs=inputs,
        operators=dict(Counter(_operator(node) for node in graph.all_nodes()).most_common()),
        nodes=nodes,
        parameters=sum(count for count, _ in weights.values()),
        weights={dtype: size for dtype, (_, size) in weights.items()},
        memory=plan,
        notes=notes,
    )


def with_static_shapes(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> tuple[ir.Model, list[str]]:
    """Return a copy of the graph with these input shapes and all that follow from them, and notes on how.

    Weights are shared, not copied.
    """
    copy = model.copy_ir()
    for value in copy.graph.inputs:
        if value.name is not None and value.name in shapes:
            value.shape = ir.Shape(shapes[value.name])
    for node in copy.graph.all_nodes():
        for value in node.outputs:
            value.shape = None  # what was stored for symbolic dimensions would win over what is inferred
    infer_shapes(copy, data_prop=True, outputs=True)
    return copy, _shapes_by_running(model, copy, shapes)


def _shapes_by_running(model: Model, graph: ir.Model, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Take the shapes that ONNX cannot infer (a Pad or Reshape with computed arguments) from a run."""
    values = (value for node in graph.graph for value in node.outputs if value.name)
    unknown = [value for value in values if not _static(value.shape)]
    if not unknown:
        return []
    try:
        feed = generate_feeds(model.signature, shapes=shapes)[0]
        for start in range(0, len(unknown), _TENSORS_PER_RUN):
            chunk = unknown[start : start + _TENSORS_PER_RUN]
            with probe(model, [value.name or "" for value in chunk]) as session:
                for value, array in zip(chunk, session.infer(feed).values(), strict=True):
                    value.shape = ir.Shape(array.shape)
                    value.dtype = value.dtype or ir.DataType.from_numpy(array.dtype)
    except EdgeInferError as error:
        return [f"{len(unknown)} shapes cannot be inferred, and running the model failed: {error.what}"]
    return [f"{len(unknown)} shapes are those of a run with made-up inputs"]


def _static(shape: ir.Shape | None) -> bool:
    return shape is not None and all(isinstance(dim, int) for dim in shape)


def _cost(node: ir.Node) -> NodeCost:
    weights = [value.const_value for value in node.inputs if value is not None and value.is_initializer()]
    output = node.outputs[0].shape if node.outputs else None
    return NodeCost(
        node=node.name or "",
        op_type=_operator(node),
        macs=node_macs(node),
        parameters=sum(tensor.size for tensor in weights if tensor is not None),
        output_shape=tuple(int(dim) for dim in output) if output is not None and _static(output) else None,  # type: ignore[arg-type]
    )


def _operator(node: ir.Node) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def _weights(model: ir.Model) -> dict[str, tuple[int, int]]:
    """Return elements and bytes by dtype, of initializers and of Constant nodes."""
    found: dict[str, tuple[int, int]] = {}
    for tensor in _tensors(model):
        dtype = tensor.dtype.numpy().name
        count, size = found.get(dtype, (0, 0))
        found[dtype] = (count + tensor.size, size + tensor.nbytes)
    return dict(sorted(found.items(), key=lambda item: -item[1][1]))


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.dtype is not ir.DataType.STRING:
                yield value.const_value
    for node in model.graph.all_nodes():
        attribute = node.attributes.get("value") if node.op_type == "Constant" else None
        if attribute is not None and attribute.type is ir.AttributeType.TENSOR:
            yield attribute.as_tensor()
