"""Groups of nodes that runtimes fuse into one kernel. A rewrite does not take them apart.

Recognized by what they compute, in whatever order it was written:

- activations that gate their input, x · g(x) with g of one input and numbers: GELU (erf and tanh), SiLU,
  Mish, HardSwish; with a factor before or behind that belongs to it (0.5 of GELU, 1/6 of HardSwish),
- HardSigmoid, min(max(x + 3, 0), 6) / 6,
- softplus, log(1 + exp(x)),
- normalization, (x - mean) / √(variance + ε), also without the mean (RMS). A scale and a shift behind it are
  not part of the group: in mixed precision runtimes expect them in the precision of the neighbours.

Attention needs no protection: the rewrites here change nothing between its two products.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from edgeinfer.graph.no_ops import constant_of

__all__ = ["Pattern", "fused_patterns"]

_GATES = frozenset(["Clip", "Erf", "HardSigmoid", "Min", "Sigmoid", "Softplus", "Tanh"])
_WITHIN_GATE = _GATES | {"Add", "Div", "Exp", "Log", "Max", "Mul", "Neg", "Pow", "Relu", "Sub"}
_HARD = frozenset(["Clip", "Max", "Min", "Relu"])
# The most nodes between x and the product with it: 8 in the tanh form of GELU.
_DEPTH = 12


class Pattern(NamedTuple):
    """One group of nodes.

    Attributes:
        name: What it is.
        nodes: Its nodes.
        saturates: Whether an infinity inside leaves the result right, as in x · tanh(x³).
    """

    name: str
    nodes: frozenset[ir.Node]
    saturates: bool = False


def fused_patterns(graph: ir.Graph) -> Mapping[ir.Node, Pattern]:
    """Return the pattern of every node that belongs to one.

    Args:
        graph: The main graph; its subgraphs are looked into.
    """
    found: dict[ir.Node, Pattern] = {}
    for node in graph.all_nodes():
        if node.domain:
            continue
        for pattern in (_gated(node), _hard_sigmoid(node), _softplus(node), _normalization(node)):
            if pattern is not None:
                found |= {member: pattern for member in pattern.nodes if member not in found}
    return found


def _gated(node: ir.Node) -> Pattern | None:
    """X · g(x): `node` is the product."""
    if node.op_type != "Mul" or len(node.inputs) != 2:
        return None
    for index, other in enumerate(node.inputs):
        x, before = _without_factor(node.inputs[1 - index])
        gate, behind = _without_factor(other)
        if x is None or gate is None or x is gate:
            continue
        within = _between(x, gate)
        kinds = {member.op_type for member in within}
        if kinds & _GATES:
            members = {node, *before, *behind, *within}
            number = 1 / 6 if kinds & _HARD else 0.5
            members = _with_factor(members, node, number)
            return Pattern("an activation that gates its input", frozenset(members), saturates=True)
    return None


def _hard_sigmoid(node: ir.Node) -> Pattern | None:
    """min(max(x + 3, 0), 6) / 6: `node` is the last."""
    value, factors = _without_factor(node.outputs[0])
    if value is None or node not in factors or not _is_near(_factor(node), 1 / 6):
        return None
    members = {node}
    while (producer := value.producer()) is not None and producer.op_type in _HARD:
        members.add(producer)
        value = _data(producer)
        if value is None:
            return None
    add = value.producer()
    if len(members) == 1 or add is None or add.op_type != "Add" or not _is_near(_scalar_beside(add), 3.0):
        return None
    return Pattern("HardSigmoid", frozenset({*members, add}))


def _softplus(node: ir.Node) -> Pattern | None:
    """log(1 + exp(x)): `node` is the logarithm."""
    add = _producer(node, 0) if node.op_type == "Log" else None
    if add is None or add.op_type != "Add" or _scalar_beside(add) != 1.0:
        return None
    data = _data(add)
    exponential = data.producer() if data is not None else None
    if exponential is None or exponential.op_type != "Exp":
        return None
    return Pattern("softplus", frozenset({node, add, exponential}))


def _normalization(node: ir.Node) -> Pattern | None:
    """(x - mean) / √(mean of squares + ε): `node` is the root of the variance."""
    if node.op_type == "Pow":
        if not _is_near(_number(node.inputs[1]), 0.5) and not _is_near(_number(node.inputs[1]), -0.5):
            return None
    elif node.op_type != "Sqrt":
        return None
    add = _producer(node, 0)
    mean = _producer(add, 0, 1) if add is not None and add.op_type == "Add" else None
    if add is None or mean is None or mean.op_type != "ReduceMean":
        return None
    square = _producer(mean, 0)
    if square is None or not _is_square(square) or square.inputs[0] is None:
        return None
    members = {node, add, mean, square}
    centered = square.inputs[0].producer()
    if centered is not None and centered.op_type == "Sub":
        average = _producer(centered, 1)
        if average is not None and average.op_type == "ReduceMean":
            members |= {centered, average}
    return Pattern("a normalization", frozenset(_with_quotient(members, node)))


def _with_quotient(members: set[ir.Node], root: ir.Node) -> set[ir.Node]:
    """Add the division by the root, or the multiplication by its reciprocal."""
    following = _only_consumer(root.outputs[0])
    if following is not None and following.op_type == "Reciprocal":
        members.add(following)
        following = _only_consumer(following.outputs[0])
    if following is not None and following.op_type in ("Div", "Mul"):
        members.add(following)
    return members


def _between(x: ir.Value, gate: ir.Value) -> set[ir.Node]:
    """Return the nodes that compute `gate` from `x` and numbers; empty when anything else goes in."""
    members: set[ir.Node] = set()
    front = [gate]
    while front:
        value = front.pop()
        if value is x or constant_of(value) is not None:
            continue
        node = value.producer()
        if node is None or node.domain or node.op_type not in _WITHIN_GATE or len(members) > _DEPTH:
            return set()
        if node not in members:
            members.add(node)
            front += [source for source in node.inputs if source is not None]
    return members


def _without_factor(value: ir.Value | None) -> tuple[ir.Value | None, set[ir.Node]]:
    """Return what a value is a multiple of, by a number, and the nodes that multiply."""
    nodes: set[ir.Node] = set()
    while value is not None and (node := value.producer()) is not None and _factor(node) is not None:
        nodes.add(node)
        value = _data(node)
    return value, nodes


def _with_factor(members: set[ir.Node], last: ir.Node, number: float) -> set[ir.Node]:
    """Add the multiplication by `number` that follows, if there is one."""
    following = _only_consumer(last.outputs[0])
    if following is not None and _is_near(_factor(following), number):
        members.add(following)
    return members


def _factor(node: ir.Node) -> float | None:
    """Return the number that the node multiplies by."""
    if node.domain or node.op_type not in ("Div", "Mul"):
        return None
    if node.op_type == "Div":
        number = _number(node.inputs[1])
        return 1 / number if number else None
    return _scalar_beside(node)


def _scalar_beside(node: ir.Node) -> float | None:
    """Return the one number among the two inputs."""
    numbers = [number for value in node.inputs if (number := _number(value)) is not None]
    return numbers[0] if len(numbers) == 1 and len(node.inputs) == 2 else None


def _data(node: ir.Node) -> ir.Value | None:
    """Return the first input that is no constant."""
    return next((v for v in node.inputs if v is not None and constant_of(v) is None), None)


def _number(value: ir.Value | None) -> float | None:
    array = constant_of(value)
    if array is None or array.size != 1 or array.dtype.kind in "bO":
        return None
    return float(array.reshape(()).astype(np.float64))


def _is_near(number: float | None, expected: float) -> bool:
    return number is not None and abs(number - expected) <= 0.01 * abs(expected)


def _is_square(node: ir.Node) -> bool:
    if node.op_type == "Mul":
        return node.inputs[0] is node.inputs[1]
    return node.op_type == "Pow" and _number(node.inputs[1]) == 2.0


def _only_consumer(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    return (
        uses[0].node if len(uses) == 1 and not value.is_graph_output() and not uses[0].node.domain else None
    )


def _producer(node: ir.Node, *indices: int) -> ir.Node | None:
    """Return the producer of the first of these inputs that a node of ONNX's own computes."""
    for index in indices:
        value = node.inputs[index] if index < len(node.inputs) else None
        producer = value.producer() if value is not None else None
        if producer is not None and not producer.domain and producer.op_type != "Constant":
            return producer
    return None
