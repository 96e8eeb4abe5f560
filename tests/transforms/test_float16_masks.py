"""Masks, unknown dtypes, sequences and fused groups in float16."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

from edgeinfer.model.model import Model
from edgeinfer.transforms import FuseBatchNorm, Pipeline, Simplify, ToFloat16

LOW = {"least": -3.4028235e38, "1e9": -1e9, "1e5": -1e5, "1e4": -1e4}
SCORES = "k = MatMul (x, w)  kt = Transpose <perm = [0, 2, 1]> (k)  s = MatMul (x, kt)"
REST = "[softmax] p = Softmax <axis = -1> (m)  y = MatMul (p, x)"
# How exporters write a mask; `mask` is (N, T), 1 where a position counts.
MASKS = {
    "one minus mask": """f = Cast <to = 1> (mask)  i = Sub (one, f)  b = Mul (i, low)  u = Unsqueeze (b, axis)
        [add] m = Add (s, u)""",
    "mask minus one": """f = Cast <to = 1> (mask)  i = Sub (f, one)  h = Neg (low)  b = Mul (i, h)
        u = Unsqueeze (b, axis)  [add] m = Add (s, u)""",
    "where": "c = Cast <to = 9> (mask)  u = Unsqueeze (c, axis)  [add] m = Where (u, s, low)",
    "where, added": """c = Cast <to = 9> (mask)  b = Where (c, zero, low)  u = Unsqueeze (b, axis)
        [add] m = Add (s, u)""",
    "filled": """size = Shape (mask)  full = ConstantOfShape <value = float[1] {FILL}> (size)
        f = Cast <to = 1> (mask)  i = Sub (one, f)  b = Mul (i, full)  u = Unsqueeze (b, axis)
        [add] m = Add (s, u)""",
    "twice": """f = Cast <to = 1> (mask)  i = Sub (one, f)  b = Mul (i, low)  u = Unsqueeze (b, axis)
        q = Add (s, u)  [add] m = Add (q, u)""",
}


def attention(kind: str, low: float) -> Model:
    body = MASKS[kind].replace("FILL", repr(low))
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    net (float[N, T, 16] x, int64[N, T] mask) => (float[N, T, 16] y)
    <float one = {{1}}, float zero = {{0}}, float low = {{{low!r}}}, int64[1] axis = {{1}}>
    {{ {SCORES} {body} {REST} }}"""
    proto = onnx.parser.parse_model(text)
    weight = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32) * 0.3
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    return Model.load(proto)


def feed(scale: float = 1.0) -> dict[str, np.ndarray]:
    x = scale * np.random.default_rng(1).standard_normal((3, 6, 16)).astype(np.float32)
    return {"x": x, "mask": np.array([[1] * 6, [1, 1, 1, 0, 0, 0], [0] * 6])}


@pytest.mark.parametrize("low", LOW.values(), ids=LOW)
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("scale", [1.0, 6.0])  # with scores up to 20, and to 700
def test_a_masked_row_is_no_nan(kind, low, scale, run) -> None:
    if kind == "twice" and low < -1e38:
        pytest.skip("two of the least float are -inf in float32, too")
    model = attention(kind, low)
    after, report = Pipeline((Simplify(), ToFloat16())).apply(model)
    expected, found = run(model, feed(scale))[0], run(after, feed(scale))[0]
    assert np.isfinite(expected).all()
    assert np.isfinite(found).all()
    # Rows in which something counts are as in float32; where nothing does, any weights will do.
    for row in (0, 1):
        assert np.abs(found[row] - expected[row]).max() <= 0.02 * np.abs(expected[row]).max()
    computes = {node for node, _ in report.applied}
    assert {"add", "softmax"} <= computes
    if low < -65504:
        assert any("saturates" in note for note in report.notes)


def test_a_mask_that_is_an_input_saturates(run) -> None:
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
    net (float[N, 4] s, float[N, 4] mask) => (float[N, 4] y)
    { r = Tanh (s)  m = Add (r, mask)  y = Softmax (m) }""")
    after = ToFloat16().apply(Model.load(proto)).model
    feeds = {"s": np.ones((2, 4), np.float32), "mask": np.full((2, 4), -3.4e38, np.float32)}
    np.testing.assert_allclose(run(after, feeds)[0], 0.25)
    assert not ToFloat16().apply(after).report.modified


@pytest.mark.parametrize("number", [1e5, -1e5])
def test_a_scale_is_no_mask(number, parse) -> None:
    """A large factor of what does not end in a Softmax, or a positive one that does, keeps its node."""
    tail = "y = Relu (b)" if number < 0 else "y = Softmax (b)"
    report = (
        ToFloat16()
        .apply(
            parse(f"""<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, 4] y)
        <float k = {{{number}}}> {{ a = Tanh (x)  [mul] b = Mul (a, k)  {tail} }}""")
        )
        .report
    )
    assert [node for node, _ in report.skipped] == ["mul"]
    assert "more than 65504" in report.skipped[0].reason


def test_what_is_infinite_stays_infinite(parse, run) -> None:
    model = parse("""<ir_version: 8, opset_import: ["" : 17]>
    g (bool[4] c, float[4] x) => (float[4] y) <float low = {-inf}>
    { a = Where (c, x, low)  y = Softmax (a) }""")
    after = ToFloat16().apply(model).model
    feeds = {"c": np.array([1, 0, 1, 0], bool), "x": np.ones(4, np.float32)}
    np.testing.assert_allclose(run(after, feeds)[0], [0.5, 0, 0.5, 0])


def test_behind_an_unknown_operator_nothing_is_converted(parse) -> None:
    model = parse("""<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
    g (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}>
    { [known] h = MatMul (x, w)  [custom] c = com.microsoft.Gelu (h)  [unknown] d = MatMul (c, w)
      [behind] y = Add (d, d) }""")
    after, report = ToFloat16().apply(model)
    assert [node for node, _ in report.applied] == ["known"]
    reasons = dict(report.skipped)
    assert set(reasons) == {"custom", "unknown", "behind"}
    assert "the dtype of c is not known" in reasons["unknown"]
    onnx.checker.check_model(after.to_proto())


def test_a_sequence_is_no_tensor(parse, run) -> None:
    model = parse("""<ir_version: 8, opset_import: ["" : 17]>
    g (float[2] x) => (float[2] y) <int64 zero = {0}>
    { r = Relu (x)  s = SequenceConstruct (r, x)  t = Identity (s)
      a = SequenceAt (t, zero)  y = Neg (a) }""")
    after, report = ToFloat16().apply(model)
    assert {what for _, what in report.applied} == {"Relu computes in float16", "Neg computes in float16"}
    x = np.array([1.5, -2.0], np.float32)
    np.testing.assert_array_equal(run(after, {"x": x})[0], run(model, {"x": x})[0])


def test_calibration_does_not_look_into_subgraphs(parse) -> None:
    model = parse("""<ir_version: 8, opset_import: ["" : 17]>
    g (float[2] x, bool c) => (float[2] y) { [relu] r = Relu (x)
      y = If (c) <then_branch = t () => (float[2] a) { [neg] a = Neg (r) },
                  else_branch = e () => (float[2] b) { [abs] b = Abs (r) }> }""")
    feeds = [{"x": np.ones(2, np.float32), "c": np.array(True)}]
    report = ToFloat16(calibration=feeds).apply(model).report
    reasons = dict(report.skipped)
    assert "does not look into subgraphs" in reasons["neg"]
    assert "does not look into subgraphs" in reasons["abs"]
    assert {"neg", "abs"} <= {node for node, _ in ToFloat16().apply(model).report.applied}


def test_a_loop_computes_in_float16_inside(parse, run) -> None:
    model = parse("""<ir_version: 8, opset_import: ["" : 17]>
    g (float[2] x) => (float[2] y) <int64 three = {3}, bool on = {1}, float half = {0.5}>
    { r = Relu (x)
      y = Loop (three, on, r) <body = step (int64 i, bool c, float[2] s) => (bool d, float[2] t) {
        d = Identity (c)  [mul] h = Mul (s, half)  [add] t = Add (h, s) }> }""")
    after, report = ToFloat16().apply(model)
    assert {"mul", "add"} <= {node for node, _ in report.applied}
    x = np.array([1.0, 2.0], np.float32)
    np.testing.assert_allclose(run(after, {"x": x})[0], run(model, {"x": x})[0], rtol=2e-3)


def test_a_normalization_that_is_written_out_stays_in_float32(parse) -> None:
    model = parse("""<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 8] x) => (float[N, 8] y)
    <float two = {2}, float eps = {0.00001}, float[8] k = {1,2,3,4,5,6,7,8}>
    { a = Relu (x)  m = ReduceMean <axes = [-1]> (a)  [sub] d = Sub (a, m)  s = Pow (d, two)
      v = ReduceMean <axes = [-1]> (s)  [eps] e = Add (v, eps)  [root] r = Sqrt (e)  [div] q = Div (d, r)
      [scale] g = Mul (q, k)  y = Relu (g) }""")
    report = Pipeline((Simplify(), FuseBatchNorm(), ToFloat16())).apply(model)[1].steps[-1]
    reasons = dict(report.skipped)
    for node in ("sub", "eps", "root", "div"):
        assert "stays together" in reasons[node]
    assert "scale" in {node for node, _ in report.applied}
