from __future__ import annotations

import numpy as np
import pytest

from edgeinfer.model.model import Model
from edgeinfer.transforms import Simplify

HEAD = '<ir_version: 8, opset_import: ["" : 13]>\n'
X = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)

# Each: the graph, and the operators that are to be left.
GRAPHS = {
    "constant folding": (
        """g (float[2, 3] x) => (float[2, 3] y) <float[3] a = {1, 2, 3}>
        { s = Mul (a, a)  t = Add (s, a)  y = Add (x, t) }""",
        ["Add"],
    ),
    "dead code": (
        "g (float[2, 3] x) => (float[2, 3] y) { d = Exp (x)  e = Log (d)  y = Relu (x) }",
        ["Relu"],
    ),
    "identity": (
        """g (float[2, 3] x) => (float[2, 3] y)
        { a = Identity (x)  b = Relu (a)  y = Identity (b) }""",
        ["Relu"],
    ),
    "dropout": ("g (float[2, 3] x) => (float[2, 3] y) { a, m = Dropout (x)  y = Relu (a) }", ["Relu"]),
    "cast to the same": (
        "g (float[2, 3] x) => (float[2, 3] y) { a = Cast <to = 1> (x)  y = Relu (a) }",
        ["Relu"],
    ),
    "times 1 plus 0": (
        """g (float[2, 3] x) => (float[2, 3] y) <float[1] one = {1}, float zero = {0}>
        { a = Mul (one, x)  b = Add (a, zero)  c = Sub (b, zero)  d = Div (c, one)  y = Relu (d) }""",
        ["Relu"],
    ),
    "times almost 1 is not 1": (
        """g (float[2, 3] x) => (float[2, 3] y) <float one = {1.000001}>
        { y = Mul (x, one) }""",
        ["Mul"],
    ),
    "a larger rank is not a no-op": (
        """g (float[2, 3] x) => (float[1, 2, 3] y) <float[1, 1, 1] one = {1}>
        { y = Mul (x, one) }""",
        ["Mul"],
    ),
    "transpose pair": (
        """g (float[2, 3] x) => (float[2, 3] y)
        { a = Transpose <perm = [1, 0]> (x)  b = Transpose <perm = [1, 0]> (a)  y = Relu (b) }""",
        ["Relu"],
    ),
    "reshape chain": (
        """g (float[2, 3] x) => (float[6] y) <int64[2] s = {3, 2}, int64[1] t = {6}>
        { a = Reshape (x, s)  y = Reshape (a, t) }""",
        ["Reshape"],
    ),
    "common subexpression": (
        """g (float[2, 3] x) => (float[2, 3] y)
        { a = Exp (x)  b = Exp (x)  y = Add (a, b) }""",
        ["Exp", "Add"],
    ),
    "shape arithmetic": (
        """g (float[2, 3] x) => (float[3, 2] y) <int64[2] i = {1, 0}>
        { s = Shape (x)  t = Gather (s, i)  y = Reshape (x, t) }""",
        ["Reshape"],
    ),
    "pad into conv": (
        """g (float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y)
        <float[1, 1, 3, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}, int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}>
        { a = Pad (x, p)  y = Conv (a, w) }""",
        ["Conv"],
    ),
    "two outputs of one value": (
        "g (float[2, 3] x) => (float[2, 3] y, float[2, 3] z) { y = Exp (x)  z = Exp (x) }",
        ["Exp", "Identity"],
    ),
    "an output under two names": (
        "g (float[2, 3] x) => (float[2, 3] y, float[2, 3] z) { y = Exp (x)  z = Identity (y) }",
        ["Exp", "Identity"],
    ),
    "an input that is an output": (
        "g (float[2, 3] x) => (float[2, 3] y, float[2, 3] x) { a = Identity (x)  y = Relu (a) }",
        ["Relu"],
    ),
    "an outer value out of a branch": (
        """g (float[2, 3] x) => (float[2, 3] y)
        { r = Relu (x)  m = ReduceMax <keepdims = 0> (x)  c = Cast <to = 9> (m)
          y = If (c) <then_branch = t () => (float[2, 3] a) { a = Identity (r) },
                      else_branch = e () => (float[2, 3] b) { b = Exp (r) }> }""",
        ["Relu", "ReduceMax", "Cast", "If"],
    ),
    "halves of an odd size": (
        """g (float[2, 3] x) => (float[2, 1] y, float[2, 2] z)
        <int64[1] zero = {0}, int64[1] one = {1}, int64[1] three = {3}>
        { y = Slice (x, zero, one, one)  z = Slice (x, one, three, one) }""",
        ["Slice", "Slice"],
    ),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_graph(name, parse, run) -> None:
    text, left = GRAPHS[name]
    model = parse(HEAD + text)
    after, report = Simplify().apply(model)
    assert [node.op_type for node in after.ir.graph] == left
    assert report.modified == (after.digest != model.digest)
    assert after.signature == model.signature
    shape = model.signature.inputs[0].shape
    feed = {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    for expected, found in zip(run(model, feed), run(after, feed), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    assert not Simplify().apply(after).report.modified


def test_nothing_to_do_is_nothing_said(parse) -> None:
    model = parse(HEAD + "g (float[2, 3] x) => (float[2, 3] y) { y = Relu (x) }")
    after, report = Simplify().apply(model)
    assert after is model
    assert (report.applied, report.skipped, report.modified) == ((), (), False)


def test_constants_become_initializers_and_duplicates_one(parse) -> None:
    after, report = Simplify().apply(
        parse(
            HEAD
            + """g (float[2, 3] x) => (float[2, 3] y)
        { [k] a = Constant <value = float[3] {1, 2, 3}> ()  b = Constant <value = float[3] {1, 2, 3}> ()
          [s] s = Mul (x, a)  [t] y = Add (s, b) }"""
        )
    )
    assert len(after.ir.graph.initializers) == 1
    assert [node.name for node in after.ir.graph] == ["s", "t"]
    assert ("k", "lifted Constant to an initializer") in report.applied


def test_dropout_in_training_stays(parse) -> None:
    model = parse(
        HEAD
        + """g (float[2, 3] x) => (float[2, 3] y) <float r = {0.5}, bool t = {1}>
        { y = Dropout (x, r, t) }"""
    )
    assert not Simplify().apply(model).report.modified


@pytest.mark.parametrize(
    ("text", "operator"),
    [
        ("{ k = ConstantOfShape (s)  y = Add (x, k) }", "ConstantOfShape"),
        ("{ k = Expand (one, s)  y = Add (x, k) }", "Expand"),
    ],
)
def test_weights_do_not_grow(text, operator, parse) -> None:
    model = parse(
        HEAD
        + f"""g (float[512, 512] x) => (float[512, 512] y)
        <int64[2] s = {{512, 512}}, float[1] one = {{1}}> {text}"""
    )
    after, report = Simplify().apply(model)
    assert operator in [node.op_type for node in after.ir.graph]
    assert after.nbytes <= model.nbytes
    assert operator in report.skipped[0].reason


def test_quantization_of_weights_is_not_folded(parse) -> None:
    model = parse(
        HEAD
        + """g (float[2, 3] x) => (float[2, 3] y)
        <int8[3] w = {1, 2, 3}, float s = {0.5}, int8 z = {0}>
        { d = DequantizeLinear (w, s, z)  y = Mul (x, d) }"""
    )
    after, report = Simplify().apply(model)
    assert after.digest == model.digest
    assert "part of the quantization" in report.skipped[0].reason


@pytest.mark.data
def test_float16_weights_stay_unless_asked(models) -> None:
    model = Model.load(models("minilm_l6_fp16w"))
    after, report = Simplify().apply(model)
    assert after.nbytes <= model.nbytes
    assert len(report.skipped) == 44
    wide, report = Simplify(widen_weights=True).apply(model)
    assert not report.skipped
    assert 1.9 * after.nbytes < wide.nbytes < 2.1 * after.nbytes


def test_functions_are_inlined(parse, run) -> None:
    model = parse("""<ir_version: 8, opset_import: ["" : 13, "local" : 1]>
    g (float[2, 3] x) => (float[2, 3] y) { y = local.twice (x) }
    <domain: "local", opset_import: ["" : 13]>
    twice (a) => (c) { b = Exp (a)  d = Exp (a)  c = Add (b, d) }""")
    after, report = Simplify().apply(model)
    assert [node.op_type for node in after.ir.graph] == ["Exp", "Add"]
    assert ("", "inlined or removed 1 functions") in report.applied
    np.testing.assert_allclose(run(after, {"x": X})[0], run(model, {"x": X})[0], rtol=1e-6)


def test_a_subgraph_keeps_working(parse, run) -> None:
    model = parse(
        HEAD
        + """g (bool c, float[2, 3] x) => (float[2, 3] y) <float one = {1}>
    { r = Identity (x)
      y = If (c) <then_branch = t () => (float[2, 3] a) { i = Mul (r, one)  a = Neg (i) },
                  else_branch = e () => (float[2, 3] b) { b = Abs (r) }> }"""
    )
    after, _ = Simplify().apply(model)
    assert sorted(node.op_type for node in after.ir.graph.all_nodes()) == ["Abs", "If", "Neg"]
    feed = {"c": np.array(True), "x": X}
    np.testing.assert_array_equal(run(after, feed)[0], run(model, feed)[0])
