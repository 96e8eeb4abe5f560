"""The kernels that a runtime will make of a graph: what is fused, and what each of them computes and moves.

Runtimes fold constants, let integers stay between a DequantizeLinear and the next QuantizeLinear, and take
element-wise operators into the kernel in front of them. This is a coarse picture of that, the same for all
runtimes: it has to count kernels, products and bytes, not to be exact. What fuses is read off the runtime's
dialect.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import final

import attrs
import onnx_ir as ir

from edgeinfer.backends.dialect import QDQDialect
from edgeinfer.estimate.kernel import Kernel
from edgeinfer.estimate.kernel_sizes import dims, nbytes, precision_of, sizes_of, weight_nbytes
from edgeinfer.estimate.operators import COMPUTE, COSTLY, ELEMENTWISE, FREE, RECURRENT, kind_of
from edgeinfer.graph.macs import node_macs

__all__ = ["find_kernels"]

_MOVES_WEIGHTS = ("Transpose", "Reshape", "Identity")
# Taken in by every kernel of products, whatever the runtime.
_ALWAYS = frozenset({"Relu", "Clip", "Add"})


@attrs.define(eq=False)
class _Draft:
    """A kernel that still grows."""

    nodes: list[ir.Node]
    kind: str
    integer: bool
    open: bool  # takes element-wise operators in
    reads: dict[int, ir.Value] = attrs.field(factory=dict)
    weights: dict[int, ir.Value] = attrs.field(factory=dict)


def find_kernels(graph: ir.Graph, dialect: QDQDialect | None = None) -> tuple[Kernel, ...]:
    """Return the kernels of a graph with static shapes, in execution order.

    Args:
        graph: With shapes inferred, nodes in topological order.
        dialect: What the runtime fuses; None for the plainest.
    """
    return _Finder(graph, dialect or QDQDialect(name="")).run()


@final
class _Finder:
    def __init__(self, graph: ir.Graph, dialect: QDQDialect) -> None:
        self._graph = graph
        self._dialect = dialect
        self._constant: set[int] = {id(value) for value in graph.initializers.values()}
        self._made: dict[int, tuple[int, _Draft]] = {}  # by value: the draft that makes it, and its place
        self._drafts: list[_Draft] = []
        self._same: dict[int, ir.Value] = {}  # what a free node or a quantizer's other side stands for
        self._integers: set[int] = set()  # floats behind a DequantizeLinear, readable as integers
        self._pending: dict[
            int, ir.Node
        ] = {}  # the DequantizeLinear of each of them, until a float reader comes

    def run(self) -> tuple[Kernel, ...]:
        for node in self._graph:
            if self._is_constant(node):
                self._constant.update(id(value) for value in node.outputs)
            elif node.op_type == "DequantizeLinear":
                self._dequantize(node)
            elif node.op_type == "QuantizeLinear":
                self._quantize(node)
            elif node.op_type in FREE:
                self._pass_on(node)
            else:
                self._compute(node)
        for value in self._graph.outputs:
            self._read(value, integer=False)
        return tuple(self._finished(draft) for draft in self._drafts)

    def _is_constant(self, node: ir.Node) -> bool:
        if node.op_type in ("Constant", "Shape", "Size"):
            return True
        inputs = [value for value in node.inputs if value is not None]
        return bool(inputs) and all(id(value) in self._constant for value in inputs)

    def _source(self, value: ir.Value) -> ir.Value:
        while id(value) in self._same:
            value = self._same[id(value)]
        return value

    def _pass_on(self, node: ir.Node) -> None:
        source = node.inputs[0]
        assert source is not None
        for value in node.outputs:
            self._same[id(value)] = source
            if id(source) in self._integers:
                self._integers.add(id(value))

    def _dequantize(self, node: ir.Node) -> None:
        source, value = node.inputs[0], node.outputs[0]
        assert source is not None
        self._integers.add(id(value))
        self._same[id(value)] = source
        self._pending[id(value)] = node

    def _quantize(self, node: ir.Node) -> None:
        source, value = node.inputs[0], node.outputs[0]
        assert source is not None
        root = self._source(source)
        place, draft = self._made.get(id(root), (-1, None))
        if draft is not None and draft.integer and len(source.consumers()) == 1:
            draft.nodes.append(node)  # the kernel stores integers itself
            self._made[id(value)] = (place, draft)
            return
        self._start(node, "quantize", integer=False, opened=False, data=[source])

    def _compute(self, node: ir.Node) -> None:
        data = [v for v in node.inputs if v is not None and id(v) not in self._constant]
        weights = [v for v in node.inputs if v is not None and id(v) in self._constant]
        integer = bool(data) and all(id(v) in self._integers for v in data) and self._stays_integer(node)
        if node.op_type in ELEMENTWISE and not integer and self._join(node, data, weights):
            return
        kind = kind_of(node, weighted=bool(weights))
        self._start(
            node,
            kind,
            integer=integer,
            opened=node.op_type in COMPUTE and node.op_type not in RECURRENT,
            data=data,
            weights=weights,
        )
        if integer and node.op_type not in COMPUTE and self._moves(node):
            self._integers.update(id(value) for value in node.outputs)

    def _stays_integer(self, node: ir.Node) -> bool:
        """Whether the runtime runs a node in integers, given that its data are."""
        if node.op_type in COMPUTE:
            weight = node.inputs[1] if len(node.inputs) > 1 else None
            integer_weight = weight is not None and (
                _behind_dequantizer(weight) or id(weight) not in self._constant
            )
            needs = node.op_type in self._dialect.needs_output
            return integer_weight and (not needs or _quantized_behind(node, self._dialect.epilogue))
        return _quantized_behind(node, frozenset()) or self._moves(node)

    def _moves(self, node: ir.Node) -> bool:
        """Whether a node hands integers on as they are, with no quantizer of its own behind it."""
        return not self._dialect.requantize_moved and node.op_type in self._dialect.moving

    def _join(self, node: ir.Node, data: list[ir.Value], weights: list[ir.Value]) -> bool:
        """Let the kernel that made its latest input take an element-wise node in."""
        found = [self._made[id(root)] for root in map(self._source, data) if id(root) in self._made]
        if not found:
            return False
        place, draft = max(found, key=lambda pair: pair[0])
        taken = self._dialect.epilogue if draft.integer else self._dialect.epilogue | _ALWAYS
        if not draft.open or node.op_type not in taken:
            return False
        mine = [v for v in data if self._made.get(id(self._source(v)), (-1, None))[1] is draft]
        if not all(self._ends_here(v, draft, node) for v in mine):
            return False
        draft.nodes.append(node)
        for value in data:
            if value not in mine:
                self._note_read(draft, value, integer=draft.integer)
        for value in weights:
            draft.weights[id(value)] = value
        for value in node.outputs:
            self._made[id(value)] = (place, draft)
        return True

    def _ends_here(self, value: ir.Value, draft: _Draft, node: ir.Node) -> bool:
        if value.is_graph_output():
            return False
        return all(user is node or user in draft.nodes or _gates(user, node) for user in value.consumers())

    def _start(
        self,
        node: ir.Node,
        kind: str,
        *,
        integer: bool,
        opened: bool,
        data: Iterable[ir.Value],
        weights: Iterable[ir.Value] = (),
    ) -> None:
        draft = _Draft(nodes=[node], kind=kind, integer=integer, open=opened)
        for value in data:
            self._note_read(draft, value, integer=integer)
        for value in weights:
            draft.weights[id(value)] = value
        self._drafts.append(draft)
        for value in node.outputs:
            self._made[id(value)] = (len(self._drafts) - 1, draft)

    def _note_read(self, draft: _Draft, value: ir.Value, *, integer: bool) -> None:
        root = self._read(value, integer=integer)
        draft.reads[id(root)] = root

    def _read(self, value: ir.Value, *, integer: bool) -> ir.Value:
        """Return what is really read; a float reader of integers makes the DequantizeLinear a kernel."""
        if integer or id(value) not in self._integers:
            return self._source(value)
        inner = value
        while id(inner) not in self._pending:
            if id(inner) not in self._same:
                return inner
            inner = self._same[id(inner)]
        node = self._pending.pop(id(inner))
        source = self._source(inner)
        del self._same[id(inner)]
        self._integers.discard(id(inner))
        self._integers.discard(id(value))
        draft = _Draft(nodes=[node], kind="dequantize", integer=False, open=False, reads={id(source): source})
        self._drafts.append(draft)
        self._made[id(inner)] = (len(self._drafts) - 1, draft)
        return inner

    def _finished(self, draft: _Draft) -> Kernel:
        first = draft.nodes[0]
        inside = set(draft.nodes)
        written = [
            value
            for node in draft.nodes
            for value in node.outputs
            if value.is_graph_output() or any(user not in inside for user in value.consumers())
        ]
        elements = math.prod(dims(draft.nodes[0].outputs[0]))
        operations = sum(COSTLY.get(node.op_type, 1) for node in draft.nodes if node.op_type not in COMPUTE)
        return Kernel(
            node=first.name or "",
            kind=draft.kind,
            precision="int8" if draft.integer else precision_of(first),
            nodes=len(draft.nodes),
            macs=node_macs(first),
            **sizes_of(first, draft.kind),
            read_bytes=sum(nbytes(value) for value in draft.reads.values()),
            written_bytes=sum(map(nbytes, written)),
            weight_bytes=sum(weight_nbytes(value) for value in draft.weights.values()),
            operations=operations * elements,
        )


def _gates(user: ir.Node, node: ir.Node) -> bool:
    """Whether `user` is the Sigmoid (or the like) of a product `node`, as in SiLU, or the other way round."""
    pair = {user.op_type: user, node.op_type: node}
    gate = pair.get("Sigmoid") or pair.get("HardSigmoid") or pair.get("Tanh")
    product = pair.get("Mul")
    return gate is not None and product is not None and product in gate.outputs[0].consumers()


def _quantized_behind(node: ir.Node, epilogue: frozenset[str]) -> bool:
    """Whether nothing but quantizers read a node's output, behind what its kernel takes in."""
    value = node.outputs[0]
    while not value.is_graph_output():
        users = value.consumers()
        if users and all(user.op_type == "QuantizeLinear" for user in users):
            return True
        if len(users) != 1 or users[0].op_type not in epilogue:
            return False
        value = users[0].outputs[0]
    return False


def _behind_dequantizer(value: ir.Value) -> bool:
    """Whether a constant is stored in integers, also behind what only moves it."""
    producer = value.producer()
    while producer is not None and producer.op_type in _MOVES_WEIGHTS:
        inner = producer.inputs[0]
        producer = inner.producer() if inner is not None else None
    return producer is not None and producer.op_type == "DequantizeLinear"
