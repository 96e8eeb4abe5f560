"""Second moments against ONNX Runtime's own convolutions."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from edgeinfer.calibration.moments import MomentObserver
from edgeinfer.errors import CalibrationError, PreconditionError
from edgeinfer.graph.im2col import Layout, layout_of_node

CASES = [
    ("Conv", {}, (2, 4, 9, 8), (6, 4, 3, 3)),
    ("Conv", {"group": 2, "strides": [2, 1], "pads": [1, 0, 2, 1]}, (2, 4, 9, 8), (6, 2, 3, 2)),
    ("Conv", {"dilations": [2, 2], "strides": [1, 2], "pads": [1, 2, 0, 1]}, (1, 4, 9, 8), (6, 4, 3, 3)),
    ("Conv", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, (1, 4, 9, 8), (6, 4, 2, 3)),
    ("Conv", {"auto_pad": "SAME_LOWER"}, (1, 4, 9, 8), (6, 4, 2, 3)),
    ("Conv", {"auto_pad": "VALID"}, (1, 4, 9, 8), (6, 4, 2, 3)),
    ("Conv", {"group": 4}, (2, 4, 10), (4, 1, 3)),
    ("Gemm", {"transB": 1}, (5, 4), (3, 4)),
    ("Gemm", {"transA": 1}, (4, 5), (4, 3)),
    ("MatMul", {}, (2, 5, 4), (4, 3)),
]


def case(op, attributes, x_shape, w_shape):
    rng = np.random.default_rng(0)
    w = rng.standard_normal(w_shape).astype(np.float32)
    x = rng.standard_normal(x_shape).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"], name="node", **attributes)],
        "g",
        [helper.make_tensor_value_info("x", 1, x_shape)],
        [helper.make_tensor_value_info("y", 1, None)],
        [onnx.numpy_helper.from_array(w, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    y = ort.InferenceSession(proto.SerializeToString()).run(None, {"x": x})[0]
    node = next(iter(ir.from_proto(proto).graph))
    matrix = w if op == "Conv" or attributes.get("transB") else w.T
    return node, matrix, x, y


@pytest.mark.parametrize("parts", CASES, ids=str)
def test_moments_are_those_of_the_matrix_that_the_node_multiplies(parts):
    node, w, x, y = case(*parts)
    layout = layout_of_node(node)
    w = w.reshape(layout.groups, -1, layout.rows).astype(np.float64)
    target = layout.output_columns(y)
    observer = MomentObserver(node, max_columns=None, max_bytes=1000)
    observer.update_pair(x, y)
    assert observer.count == target.shape[2]
    # W X = Y, so W (X Xt) = Y Xt and W mean(X) = mean(Y).
    np.testing.assert_allclose(w @ observer.hessian, observer.cross, atol=1e-5, rtol=1e-5)
    means = (w @ observer.mean[..., None])[..., 0]
    np.testing.assert_allclose(means, observer.target_mean, atol=1e-5, rtol=1e-5)
    energy = np.einsum("gmk,gkl,gml->", w, observer.hessian, w)
    np.testing.assert_allclose(energy, (target.astype(np.float64) ** 2).sum() / observer.count, rtol=1e-5)


def test_a_draw_of_columns_is_repeatable_bounded_and_close():
    node, _, _, _ = case(*CASES[0])
    rng = np.random.default_rng(1)
    data = [rng.standard_normal((2, 4, 30, 30)).astype(np.float32) for _ in range(6)]
    whole, drawn, again = (MomentObserver(node, max_columns=m) for m in (None, 400, 400))
    for x in data:
        for observer in (whole, drawn, again):
            observer.update(x)
    np.testing.assert_array_equal(drawn.hessian, again.hessian)
    assert drawn.count == 6 * 400
    error = np.linalg.norm(drawn.hessian - whole.hessian) / np.linalg.norm(whole.hessian)
    assert error < 0.2


def test_state_and_restore_continue_the_same_draw():
    node, _, _, _ = case(*CASES[0])
    data = np.random.default_rng(1).standard_normal((4, 2, 4, 20, 20)).astype(np.float32)
    straight, begun, resumed = (MomentObserver(node, max_columns=50) for _ in range(3))
    for x in data:
        straight.update(x)
    for x in data[:2]:
        begun.update(x)
    resumed.restore(begun.state())
    for x in data[2:]:
        resumed.update(x)
    np.testing.assert_array_equal(straight.hessian, resumed.hessian)


def test_what_cannot_be_done_is_refused():
    node, _, x, _ = case(*CASES[0])
    with pytest.raises(CalibrationError, match="seen no values"):
        _ = MomentObserver(node).hessian
    observer = MomentObserver(node)
    observer.update(x)
    with pytest.raises(CalibrationError, match="no target"):
        _ = observer.cross
    with pytest.raises(CalibrationError, match="not finite"):
        observer.update(np.full_like(x, np.nan))
    with pytest.raises(PreconditionError, match="no constant weight"):
        MomentObserver(ir.node("Relu", [ir.Value(name="x")]))


@given(
    batch=st.integers(1, 2),
    sizes=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 4]),
    pads=st.tuples(*[st.integers(0, 1)] * 4),
    picked=st.integers(1, 30),
    max_bytes=st.sampled_from([300, 1 << 20]),
)
def test_columns_that_are_drawn_are_columns_of_all(
    batch, sizes, kernel, stride, dilation, groups, pads, picked, max_bytes
):
    layout = Layout(
        op_type="Conv",
        groups=groups,
        rows=4 // groups * kernel[0] * kernel[1],
        outputs=4,
        kernel=kernel,
        strides=(stride, stride),
        dilations=(dilation, dilation),
        pads=pads,
    )
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, 4, *sizes)).astype(np.float32)
    every = [piece for piece, _ in layout.columns(x, max_bytes=max_bytes)]
    whole = np.concatenate(every, axis=2)
    for piece, index in layout.columns(x, max_bytes=max_bytes, max_columns=picked, rng=rng):
        np.testing.assert_array_equal(piece, whole[:, :, index])
