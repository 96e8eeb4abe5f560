"""Steps that add structure to a random graph: subgraphs, sequences, attention, Q/DQ, functions."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from hypothesis import strategies as st
from onnx import helper

from tests.random_graph_builder import BATCH, Builder, Step, Value
from tests.random_layers import affine, batch_norm, clips, constants, square, unary


def branch(b: Builder) -> None:
    """An If, of a condition that is an input or constant; the branches read values around them."""
    v = b.value()
    condition = b.pick(("flag", b.constant(True, np.bool_)))
    graphs = {}
    for side in ("then_branch", "else_branch"):
        inner = b.inner(v)
        for step in b.draw(st.lists(st.sampled_from((*INNER, branch)), max_size=2)):
            step(inner)
        (name,) = inner.op("Identity", inner.values[-1].name)
        graphs[side] = helper.make_graph(
            inner.nodes,
            side,
            [],
            [helper.make_tensor_value_info(name, b.onnx_type, None)],
            inner.initializers,
        )
    b.add(*b.op("If", condition, **graphs), v.shape, v.batch)


def loop(b: Builder) -> None:
    v = b.value()
    inner = b.inner()
    count, going, state, still = (inner.name(stem) for stem in ("i", "c", "s", "d"))
    inner.values = [Value(state, v.shape, v.batch)]
    inner.nodes.append(helper.make_node("Identity", [going], [still], inner.name("k")))
    for step in b.draw(st.lists(st.sampled_from(INNER), min_size=1, max_size=2)):
        step(inner)
    (name,) = inner.op("Tanh", inner.values[-1].name)
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        inner.nodes, "body",
        [info(count, 7, []), info(going, 9, []), info(state, b.onnx_type, None)],
        [info(still, 9, []), info(name, b.onnx_type, None)], inner.initializers,
    )  # fmt: skip
    inputs = (b.constant(2, np.int64), b.constant(True, np.bool_), v.name)
    b.add(*b.op("Loop", *inputs, body=body), v.shape, v.batch)


def scan(b: Builder) -> None:
    """A running sum along the last axis."""
    v = b.value(2)
    if v is None or not all(v.shape):
        return
    inner, info = b.inner(), helper.make_tensor_value_info
    state, column, copy = (inner.name(stem) for stem in "sco")
    (total,) = inner.op("Add", state, column)
    (total,) = inner.op("Mul", total, inner.constant(0.5))
    inner.nodes.append(helper.make_node("Identity", [total], [copy], inner.name("k")))
    ends = [[info(name, b.onnx_type, None) for name in names] for names in ((state, column), (total, copy))]
    body = helper.make_graph(inner.nodes, "body", *ends, inner.initializers)
    (start,) = b.reduce("ReduceMean", v.name, -1, 0)
    names = b.op(
        "Scan", start, v.name, outputs=2, body=body, num_scan_inputs=1,
        scan_input_axes=[1], scan_output_axes=[1],
    )  # fmt: skip
    b.add(names[1], v.shape, v.batch)


def sequence(b: Builder) -> None:
    """Values through a sequence."""
    v = b.value()
    if b.draw(st.booleans()) and v.shape and v.shape[-1] and len(v.shape) > int(v.batch):
        if b.draw(st.booleans()):
            size = b.constant(b.pick((1, 2)), np.int64)
            names = b.op("ConcatFromSequence", *b.op("SplitToSequence", v.name, size, axis=-1), axis=-1)
        else:
            keep = b.pick((0, 1))
            (made,) = b.op("SplitToSequence", v.name, axis=-1, keepdims=keep)
            names = b.op("ConcatFromSequence", made, axis=-1, new_axis=1 - keep)
        b.add(*names, v.shape, v.batch)
        return
    (made,) = b.op("SequenceConstruct", v.name, *b.op("Neg", v.name))
    b.add(*b.op("SequenceAt", made, b.constant(b.pick((0, 1, -1)), np.int64)), v.shape, v.batch)


def einsum(b: Builder) -> None:
    v = b.value(2)
    if v is not None and v.shape[1] and b.dtype == np.float32:
        weight = b.weight(v.shape[1], 2, 3, fan=v.shape[1])
        b.add(*b.op("Einsum", v.name, weight, equation="nd,dhe->nhe"), (v.shape[0], 2, 3), v.batch)


def attention(b: Builder) -> None:
    v = b.value(3)
    if v is None or b.dtype != np.float32 or not all(v.shape):
        return
    size = v.shape[-1]
    q, k, u = (b.op("MatMul", v.name, b.weight(size, 4, fan=size))[0] for _ in range(3))
    (scores,) = b.op("MatMul", q, *b.op("Transpose", k, perm=[0, 2, 1]))
    (scores,) = b.op("Div", scores, b.constant(2.0))
    if b.draw(st.booleans()):  # a row of the batch in which nothing counts
        (less,) = b.op("Sub", b.constant(1.0), b.constant(np.array([1.0, 0.0]).reshape(2, 1, 1)))
        mask = b.op("Mul", less, b.constant(b.pick((-3.4e38, -1e9, -1e4))))
        if v.shape[0] == BATCH:
            (scores,) = b.op("Add", scores, *mask)
    b.add(*b.op("MatMul", *b.op("Softmax", scores, axis=-1), u), (*v.shape[:-1], 4), v.batch)


def recurrent(b: Builder) -> None:
    """An LSTM or GRU without bias and lengths, of which the last state alone is used."""
    v = b.value(3)
    if v is None or b.dtype != np.float32 or not all(v.shape):
        return
    size, hidden = v.shape[-1], 2
    kind, gates = b.pick((("LSTM", 4), ("GRU", 3)))
    weights = b.weight(1, gates * hidden, size, fan=size), b.weight(1, gates * hidden, hidden, fan=hidden)
    names = [b.name("t")]
    node = helper.make_node(kind, [v.name, *weights], ["", *names], b.name(kind), hidden_size=hidden)
    b.nodes.append(node)
    b.add(*names, (1, v.shape[1], hidden), False)


def quantized(b: Builder) -> None:
    """A constant behind a DequantizeLinear, of int8 or int4."""
    v = b.value()
    if b.dtype != np.float32:
        return
    kind = b.pick((np.int8, ml_dtypes.int4) if b.opset >= 21 else (np.int8, np.uint8))
    stored = b.constant(np.array([3], kind), kind)
    (name,) = b.op("DequantizeLinear", stored, b.constant(0.25))
    if v.shape:
        b.add(*b.op("Mul", v.name, name), v.shape, v.batch)


def function(b: Builder) -> None:
    v = b.value()
    name = b.name("Fn")
    body = [
        helper.make_node("Relu", ["a"], ["r"], "inner"),
        helper.make_node("Add", ["a", "r"], ["o"], "outer"),
    ]
    b.functions.append(
        helper.make_function("local", name, ["a"], ["o"], body, [helper.make_opsetid("", b.opset)])
    )
    for _ in range(b.pick((1, 2))):
        b.add(*b.op(name, v.name, domain="local"), v.shape, v.batch)


# They keep the shape, as branches and bodies must.
INNER: tuple[Step, ...] = (affine, unary, clips, square, batch_norm, constants)
