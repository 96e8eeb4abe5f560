"""Which tensors get Q/DQ, decided from the graph and the runtime's dialect alone.

Start from the operators that a runtime has integer kernels for (`Region`). Their inputs must be quantized,
and for some runtimes their output, too. From there quantization spreads upwards through operators that move
values (`MaxPool`, `Reshape`, `Concat`, …: same scale on both sides) and those with an integer kernel of
their own (`Add`, `AveragePool`, …), as long as everything above is quantized anyway: a quantizer then stands
where an integer tensor is stored, and nowhere else. What is left (Softmax, LayerNormalization, GELU, LSTM, …)
stays float.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import final

import attrs
import onnx_ir as ir

from edgeinfer.backends.dialect import QDQDialect
from edgeinfer.graph.constants import constant_value
from edgeinfer.quantization.placement.fused_kernels import DATA, Region, find_regions, is_float
from edgeinfer.quantization.placement.kernel_costs import Judge

__all__ = ["Placement", "place"]


# The judgement sees the kernels alone, and not what float graphs lose between them: it overrates the cost of
# integers, by 1.2 to 1.6 on the models it was fitted to. Beyond this ratio the model stays as it is.
_MOST_RATIO = 1.25
# Each plan takes time that grows with the graph.
_MOST_PLANS = 64


@final
@attrs.frozen(kw_only=True)
class Placement:
    """Where the quantizers go.

    Attributes:
        regions: The kernels that run in integers.
        tensors: The activations that are quantized, in topological order, with the uses, as (node, input
            index), that read the dequantized value.
        outputs: Those of them that are outputs of the model and whose dequantized value is that output.
        groups: Names of the tensors that share one scale; each name is in one group. They include those that
            need no quantizer because the one above the operators that move them says it all.
        read_in_integers: Names of the nodes of those regions whose output an integer kernel reads. The others
            have a quantized output, if any, for their own sake only.
    """

    regions: tuple[Region, ...]
    tensors: Mapping[ir.Value, tuple[tuple[ir.Node, int], ...]]
    outputs: frozenset[ir.Value] = frozenset()
    groups: tuple[tuple[str, ...], ...]
    read_in_integers: frozenset[str]


def _ignore(_: ir.Node, __: str) -> None:
    pass


def place(
    model: ir.Model,
    dialect: QDQDialect,
    *,
    keep_float: Collection[str] = (),
    skip: Callable[[ir.Node, str], None] = _ignore,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Placement:
    """Decide which tensors of the main graph get Q/DQ.

    Args:
        model: The graph, in float.
        dialect: What the runtime wants.
        keep_float: Names of nodes that stay in float.
        skip: Called with each node that could run in integers and does not, and the reason.
        shapes: The shapes of tensors by name where the graph's own are symbolic, to judge costs by.
    """
    regions = _read_regions(model, dialect, keep_float, skip)
    if dialect.costs is None:
        return _Plan(model.graph, dialect, regions, keep_float).placement()
    judge = Judge(dialect.costs, shapes or {})
    best = _Plan(model.graph, dialect, regions, keep_float)
    best_us = judge.total_us(best, regions)
    for some in _doubtful(regions, judge):
        plan = _Plan(model.graph, dialect, [r for r in best.regions if r not in some], keep_float)
        cost_us = judge.total_us(plan, regions)
        if cost_us < best_us:
            best, best_us = plan, cost_us
            for region in some:
                skip(
                    region.node,
                    f"integers gain nothing here in {dialect.name}: its kernel is faster in float",
                )
    float_us = sum(judge.float_us(region) for region in regions)
    if best.regions and best_us > float_us * _MOST_RATIO:
        for region in best.regions:
            skip(
                region.node,
                f"the model as a whole gains nothing from integers in {dialect.name}: it is too small",
            )
        best = _Plan(model.graph, dialect, [], keep_float)
    return best.placement()


def _doubtful(regions: list[Region], judge: Judge) -> Iterator[list[Region]]:
    """Yield the regions that may gain nothing, the least gain first: one by one, or in groups if many."""
    ordered = sorted(regions, key=judge.gain_us)
    count = next((i for i, r in enumerate(ordered) if judge.gain_us(r) > judge.border_us(r)), len(ordered))
    step = -(-count // _MOST_PLANS) or 1
    for start in range(0, count, step):
        yield ordered[start : min(start + step, count)]


def _read_regions(
    model: ir.Model, dialect: QDQDialect, keep_float: Collection[str], skip: Callable[[ir.Node, str], None]
) -> list[Region]:
    """Return the regions without those whose quantized output only the model's outputs would read."""
    regions = find_regions(model.graph, dialect, skip, keep_float)
    while True:
        plan = _Plan(model.graph, dialect, regions, keep_float)
        bare = {region.node: reason for region in regions if (reason := plan.unread(region)) is not None}
        if not bare:
            return regions
        for node, reason in bare.items():
            skip(node, reason)
        regions = [region for region in regions if region.node not in bare]


class _Plan:
    """One spreading of quantization from a set of regions."""

    def __init__(
        self, graph: ir.Graph, dialect: QDQDialect, regions: list[Region], keep_float: Collection[str]
    ) -> None:
        self.graph = graph
        self.dialect = dialect
        self.regions = regions
        self.keep_float = keep_float
        self.made_by = {region.output: region for region in regions}
        self.inside = {node for region in regions for node in region.chain}
        self.wanted: dict[ir.Value, list[tuple[ir.Node, int]]] = {}
        self.parent: dict[ir.Value, ir.Value] = {}
        self._integer: dict[ir.Value, bool] = {}
        for region in regions:
            data = region.node.inputs[DATA]
            assert data is not None
            self.want(data, region.node, DATA)
            if region.residual is not None:
                node, index = region.residual
                other = node.inputs[index]
                assert other is not None
                if self.integer(other):
                    self.want(other, node, index)
        for region in regions:
            if region.node.op_type in dialect.needs_output:
                self.want(region.output)
        self.read = {value for value, uses in self.wanted.items() if uses}
        self.outputs = frozenset(value for value in graph.outputs if self.is_integer_output(value))
        for value in self.outputs:
            self.want(value)

    def want(self, value: ir.Value, node: ir.Node | None = None, index: int = 0) -> None:
        """Quantize `value`, for a use of it or for its own sake, and spread upwards."""
        new = value not in self.wanted
        uses = self.wanted.setdefault(value, [])
        if node is not None and (node, index) not in uses:
            uses.append((node, index))
        if new and value not in self.made_by:
            self.spread(value)

    def spread(self, value: ir.Value) -> None:
        """Quantize the inputs of the node that makes `value` when it can then run in integers."""
        node = self.maker(value)
        if node is None or not self.integer(value):
            return
        for index, source in self.sources(node):
            self.want(source, node, index)
            if node.op_type in self.dialect.moving:
                self.join(source, value)
        if node.op_type in self.dialect.moving:
            for output in node.outputs:
                if output.consumers() or output.is_graph_output():
                    self.want(output)
                    self.join(output, value)

    def integer(self, value: ir.Value) -> bool:
        """Whether `value` comes out of an integer kernel, or can when what is above it is quantized."""
        if value not in self._integer:
            self._integer[value] = False  # until shown otherwise
            self._integer[value] = self._is_integer(value)
        return self._integer[value]

    def _is_integer(self, value: ir.Value) -> bool:
        if value in self.made_by:
            return True
        if not is_float(value) or constant_value(value) is not None:
            return False
        node = self.maker(value)
        if node is None:  # an input of the model is quantized at the door
            return value.is_graph_input()
        if node.name in self.keep_float or node in self.inside:
            return False
        if node.op_type not in self.dialect.moving | self.dialect.requantizing:
            return False
        sources = list(self.sources(node))
        return bool(sources) and all(self.integer(source) for _, source in sources)

    def maker(self, value: ir.Value) -> ir.Node | None:
        """Return the node that makes `value`; for a ReLU or Clip that its kernel takes in, the one above."""
        node = value.producer()
        if node is not None and node.op_type in ("Relu", "Clip") and node not in self.inside:
            source = node.inputs[DATA]
            above = source.producer() if source is not None else None
            if (
                above is not None
                and above.op_type in self.dialect.requantizing
                and above.name not in self.keep_float
                and above.outputs[0].consumers() == (node,)
                and not above.outputs[0].is_graph_output()
            ):
                return above
        return node

    def sources(self, node: ir.Node) -> Iterator[tuple[int, ir.Value]]:
        """Yield the inputs of a moving or requantizing node that hold values."""
        for index, value in enumerate(node.inputs):
            if value is not None and (index == DATA or node.op_type in ("Add", "Concat", "Mul")):
                yield index, value

    def join(self, a: ir.Value, b: ir.Value) -> None:
        """Let two tensors share one scale."""
        root_a, root_b = self.root(a), self.root(b)
        if root_a is not root_b:
            self.parent[root_b] = root_a

    def root(self, value: ir.Value) -> ir.Value:
        """Return the tensor that stands for the group of `value`."""
        while value in self.parent:
            value = self.parent[value]
        return value

    def unread(self, region: Region) -> str | None:
        """Say why a region that needs a quantized output is not worth one, or None.

        When its values reach the model's outputs one by one, with no integer kernel on the way that would
        read them, 8 bits of output cost accuracy, which only the dialect can say yes to. It cannot where
        the output holds other tensors, too: what is coarse enough for one may be nothing for the other.
        """
        if region.node.op_type not in self.dialect.needs_output:
            return None
        followed = self.dialect.moving | self.dialect.epilogue | {"Concat", "Sigmoid", "Tanh"}
        front, seen = [(region.output, False)], set[tuple[ir.Value, bool]]()
        while front:
            value, joined = front.pop()
            if value.is_graph_output() and (joined or not self.dialect.quantize_outputs):
                beside = " beside those of others" if joined else ""
                return (
                    f"its output goes to the model's outputs value by value{beside}, "
                    "and 8 bits are too few for that"
                )
            if (value, joined) in seen or value in self.read:
                continue
            seen.add((value, joined))
            for user in value.consumers():
                if user.op_type in followed:
                    joined_here = joined or user.op_type == "Concat"
                    front.extend((output, joined_here) for output in user.outputs)
        return None

    def is_integer_output(self, value: ir.Value) -> bool:
        """Whether an output of the model comes out of a kernel that needs it quantized, or was only moved."""
        if not self.dialect.quantize_outputs or not self.integer(value):
            return False
        while value not in self.made_by:
            node = value.producer()
            if node is None or node.op_type not in self.dialect.moving - {"Concat", "Resize"}:
                return False
            source = node.inputs[DATA]
            assert source is not None
            value = source
        return self.made_by[value].node.op_type in self.dialect.needs_output

    def borders(self) -> Iterator[tuple[ir.Value, int, int]]:
        """Yield each quantized tensor with how often it is quantized (0 or 1) and dequantized in memory."""
        integer = self.dialect.moving | self.dialect.requantizing
        heads = {region.node for region in self.regions}
        for value in self.wanted:
            made = value in self.made_by or (not value.is_graph_input() and self.integer(value))
            reads = 0
            for node, _ in self.readers(value):
                stays = node in heads or (
                    node.op_type in integer and any(output in self.wanted for output in node.outputs)
                )
                reads += not stays
            reads += value in self.outputs
            yield value, int(not made), reads

    def placement(self) -> Placement:
        """Return the result, in topological order."""
        ordered = [*self.graph.inputs, *(value for node in self.graph for value in node.outputs)]
        tensors = {value: tuple(self.readers(value)) for value in ordered if value in self.wanted}
        tensors = {value: uses for value, uses in tensors.items() if uses or value in self.outputs}
        groups: dict[ir.Value, list[str]] = {}
        for value in tensors:
            groups.setdefault(self.root(value), []).append(value.name or "")
        return Placement(
            regions=tuple(self.regions),
            tensors={value: uses for value, uses in tensors.items() if not self.moved(value)},
            outputs=self.outputs,
            groups=tuple(tuple(group) for group in groups.values()),
            read_in_integers=frozenset(
                str(region.node.name) for region in self.regions if self.wanted.get(region.output)
            ),
        )

    def moved(self, value: ir.Value) -> bool:
        """Whether the quantizer above a moving operator says all of `value`, which needs none of its own."""
        node = value.producer()
        return (
            not self.dialect.requantize_moved
            and node is not None
            and node.op_type in self.dialect.moving
            and self.integer(value)
        )

    def readers(self, value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
        """Yield the uses that read the dequantized value.

        Where a kernel must have a quantized output and no other, that is all of them.
        """
        every = bool(self.dialect.needs_output)
        for node, index in value.uses():
            if every or (node, index) in self.wanted[value]:
                yield node, index
