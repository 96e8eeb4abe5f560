"""Numbers against the original in ONNX Runtime, for each pattern and for random chains; and the reasons."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeinfer.model.model import Model
from edgeinfer.transforms import FuseBatchNorm, Pipeline, QuantizeStatic, Simplify

# On |a - b| / max|a|.
BOUND = {np.float16: 1e-2, np.float32: 2e-5, np.float64: 1e-12}


class Net:
    """A chain of nodes that is built up one by one."""

    def __init__(
        self, shape: tuple[int, ...], opset: int = 13, dtype: Any = np.float32, seed: int = 0
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.dtype, self.opset, self.shape = dtype, opset, shape
        self.kind = oh.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.last = "x"

    def weight(self, array: Any) -> str:
        name = f"w{len(self.weights)}"
        array = np.asarray(array, self.dtype)
        self.weights.append(onnx.numpy_helper.from_array(array, name))
        return name

    def random(self, *shape: int) -> str:
        return self.weight(self.rng.standard_normal(shape))

    def node(self, op_type: str, *others: str, first: bool = True, **attributes: Any) -> Net:
        inputs = (self.last, *others) if first else (*others, self.last)
        name = f"n{len(self.nodes)}"
        self.nodes.append(oh.make_node(op_type, inputs, [name], name=name, **attributes))
        self.last = name
        return self

    def norm(self, channels: int, **attributes: Any) -> Net:
        variance = self.weight(self.rng.uniform(0.5, 2, channels))
        a, b, c = (self.random(channels) for _ in range(3))
        return self.node("BatchNormalization", a, b, c, variance, **attributes)

    def model(self, outputs: tuple[str, ...] = (), ir_version: int = 8) -> Model:
        graph = oh.make_graph(
            self.nodes,
            "net",
            [oh.make_tensor_value_info("x", self.kind, self.shape)],
            [oh.make_tensor_value_info(name, self.kind, None) for name in (*outputs, self.last)],
            self.weights,
        )
        proto = oh.make_model(graph, opset_imports=[oh.make_opsetid("", self.opset)], ir_version=ir_version)
        return Model.load(onnx.shape_inference.infer_shapes(proto))


def fuse(net: Net, run, outputs: tuple[str, ...] = ()) -> tuple[list[str], Any]:
    """Fuse, compare with the original, and return the operators that are left and the report."""
    model = net.model(outputs)
    after, report = FuseBatchNorm().apply(model)
    x = np.random.default_rng(9).standard_normal(net.shape).astype(net.dtype)
    for expected, found in zip(run(model, {"x": x}), run(after, {"x": x}), strict=True):
        assert found.dtype == expected.dtype
        scale = np.abs(expected).max().astype(np.float64)
        assert np.abs(expected.astype(np.float64) - found).max() <= BOUND[net.dtype] * scale
    assert not FuseBatchNorm().apply(after).report.modified
    return [node.op_type for node in after.ir.graph], report


def conv(net: Net, out: int, inp: int, group: int = 1, bias: bool = True, **attributes: Any) -> Net:
    extra = (net.random(out),) if bias else ()
    return net.node("Conv", net.random(out, inp // group, 3, 3), *extra, group=group, **attributes)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("opset", [7, 8, 9, 13, 14, 15, 21])
def test_batchnorm_after_conv(opset, group, bias, run) -> None:
    net = conv(Net((1, 4, 6, 6), opset), 8, 4, group, bias, pads=[1, 1, 1, 1]).norm(8)
    left, report = fuse(net, run)
    assert left == ["Conv"]
    assert report.applied == (("n1", "fused BatchNormalization into Conv n0"),)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dtype_is_kept(dtype, run) -> None:
    net = Net((3, 4), 15, dtype)
    net.node("Gemm", net.random(4, 5), net.random(5)).norm(5)
    assert fuse(net, run)[0] == ["Gemm"]
    after = FuseBatchNorm().apply(net.model()).model
    assert {value.const_value.dtype.numpy() for value in after.ir.graph.initializers.values()} == {
        np.dtype(dtype)
    }


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("group", [1, 2])
def test_batchnorm_after_conv_transpose(group, bias, run) -> None:
    net = Net((1, 4, 5, 5))
    extra = (net.random(6),) if bias else ()
    net.node("ConvTranspose", net.random(4, 6 // group, 3, 3), *extra, group=group, strides=[2, 2]).norm(6)
    assert fuse(net, run)[0] == ["ConvTranspose"]


@pytest.mark.parametrize("bias", [None, (5,), (1, 5), (1,), ()])
@pytest.mark.parametrize("trans", [0, 1])
def test_batchnorm_after_gemm(trans, bias, run) -> None:
    net = Net((3, 4))
    extra = () if bias is None else (net.random(*bias),)
    net.node(
        "Gemm", net.random(*((5, 4) if trans else (4, 5))), *extra, transB=trans, alpha=0.5, beta=2.0
    ).norm(5)
    assert fuse(net, run)[0] == ["Gemm"]


@pytest.mark.parametrize("bias", [None, (), (1,), (5,), (1, 5)])
@pytest.mark.parametrize("trans", [0, 1])
def test_factors_of_gemm_go_into_its_weights(trans, bias, run) -> None:
    net = Net((3, 4))
    extra = () if bias is None else (net.random(*bias),)
    net.node("Gemm", net.random(*((5, 4) if trans else (4, 5))), *extra, transB=trans, alpha=0.5, beta=-2.0)
    kinds, report = fuse(net, run)
    assert kinds == ["Gemm"]
    assert [(entry.node, entry.what) for entry in report.applied] == [
        ("n0", "folded alpha and beta of Gemm into its weight and bias")
    ]


def test_gemm_is_quantized_once_its_factors_are_folded() -> None:
    net = Net((3, 4))
    model = net.node("Gemm", net.random(4, 5), net.random(5), alpha=0.5).model()
    feeds = [{"x": net.rng.standard_normal((3, 4)).astype(np.float32)}]
    quantize = QuantizeStatic(calibration=feeds, target="tensorrt")
    as_it_is, folded = quantize.apply(model), Pipeline((FuseBatchNorm(), quantize)).apply(model)
    assert "its alpha or beta is not 1" in {skip.reason for skip in as_it_is.report.skipped}
    assert "QuantizeLinear" in {node.op_type for node in folded.model.ir.graph}


def test_factors_of_gemm_stay_with_a_bias_for_each_row(run) -> None:
    net = Net((3, 4))
    net.node("Gemm", net.random(4, 5), net.random(3, 1), alpha=0.5)
    assert "its alpha and beta stay: the bias of n0 varies" in reason_of(net, run)


def test_batchnorm_after_matmul_leaves_its_shift(run) -> None:
    net = Net((3, 4))
    net.node("MatMul", net.random(4, 5)).norm(5)
    assert fuse(net, run)[0] == ["MatMul", "Add"]


def test_batchnorm_after_matmul_and_bias(run) -> None:
    net = Net((3, 4))
    net.node("MatMul", net.random(4, 5)).node("Add", net.random(5), first=False).norm(5)
    assert fuse(net, run)[0] == ["MatMul", "Add"]


AFFINE = [
    ("Add", True),
    ("Add", False),
    ("Sub", True),
    ("Sub", False),
    ("Mul", True),
    ("Mul", False),
    ("Div", True),
]


@pytest.mark.parametrize(("op_type", "first"), AFFINE)
@pytest.mark.parametrize("shape", [(), (1,), (8, 1, 1), (1, 8, 1, 1)])
def test_affine_after_conv(op_type, first, shape, run) -> None:
    net = conv(Net((1, 4, 6, 6)), 8, 4)
    net.node(op_type, net.random(*shape), first=first)
    assert fuse(net, run)[0] == ["Conv"]


@pytest.mark.parametrize(("op_type", "first"), AFFINE)
def test_affine_after_batched_matmul_and_bias(op_type, first, run) -> None:
    net = Net((2, 3, 4))
    net.node("MatMul", net.random(4, 5)).node("Add", net.random(5)).node(op_type, net.random(5), first=first)
    assert fuse(net, run)[0] == ["MatMul", "Add"]


def test_chain_goes_to_a_fixed_point(run) -> None:
    net = conv(Net((1, 4, 6, 6)), 8, 4, bias=False).norm(8)
    net.node("Mul", net.weight([2.0])).node("Add", net.random(8, 1, 1)).norm(8)
    left, report = fuse(net, run)
    assert left == ["Conv"]
    assert len(report.applied) == 4


@pytest.mark.parametrize("pads", [None, [1, 1, 1, 1]])
@pytest.mark.parametrize("group", [1, 2])
def test_affine_before_conv(group, pads, run) -> None:
    """A scale goes through padding; a shift does not."""
    net = Net((1, 4, 6, 6))
    net.node("Mul", net.random(4, 1, 1)).node("Relu").node("Mul", net.random(4, 1, 1))
    conv(net, 8, 4, group, **({"pads": pads} if pads else {}))
    assert fuse(net, run)[0] == ["Mul", "Relu", "Conv"]

    net = Net((1, 4, 6, 6)).norm(4)
    conv(net, 8, 4, group, bias=False, **({"pads": pads} if pads else {}))
    left, report = fuse(net, run)
    if pads:
        assert left == ["BatchNormalization", "Conv"]
        assert "pads with zeros" in report.skipped[0].reason
    else:
        assert left == ["Conv"]


def test_shared_weights_are_copied(run) -> None:
    net = Net((1, 4, 6, 6))
    kernel, bias = net.random(4, 4, 1, 1), net.random(4)
    net.node("Conv", kernel, bias).norm(4).node("Relu").node("Conv", kernel, bias)
    assert fuse(net, run)[0] == ["Conv", "Relu", "Conv"]


def test_constants_of_constant_nodes_are_read_and_removed(parse, run) -> None:
    model = parse("""<ir_version: 8, opset_import: ["" : 13]>
    g (float[1, 2] x) => (float[1, 2] y) {
        w = Constant <value = float[2, 2] {1, 2, 3, 4}> ()
        c = Constant <value = float[2] {5, 6}> ()
        m = MatMul (x, w)
        y = Mul (m, c)
    }""")
    after, _ = FuseBatchNorm().apply(model)
    assert [node.op_type for node in after.ir.graph] == ["MatMul"]
    x = np.float32([[7, 8]])
    np.testing.assert_allclose(run(after, {"x": x})[0], run(model, {"x": x})[0], rtol=1e-6)


def reason_of(net: Net, run, outputs: tuple[str, ...] = ()) -> str:
    before = [node.op_type for node in net.nodes]
    left, report = fuse(net, run, outputs)
    assert left == before
    assert not report.modified
    assert len(report.skipped) == 1
    return report.skipped[0].reason


def test_reason_other_consumers(run) -> None:
    net = conv(Net((1, 4, 6, 6)), 4, 4).norm(4)
    net.node("Add", "n0")
    assert "other consumers" in reason_of(net, run)


def test_reason_output_of_the_graph(run) -> None:
    assert "output of the graph" in reason_of(conv(Net((1, 4, 6, 6)), 4, 4).norm(4), run, ("n0",))


def test_reason_varies_over_space(run) -> None:
    net = conv(Net((1, 4, 6, 6)), 4, 4)
    net.node("Add", net.random(1, 1, 4, 4))
    assert "varies over other axes" in reason_of(net, run)


def test_reason_makes_channels_larger(run) -> None:
    net = conv(Net((1, 4, 6, 6)), 1, 4)
    net.node("Mul", net.random(4, 1, 1))
    assert "makes 1 channels larger" in reason_of(net, run)


def test_reason_nothing_before(run) -> None:
    net = Net((1, 4, 6, 6)).node("Relu").norm(4).node("Relu")
    assert "Relu, before it, is not one of Conv" in reason_of(net, run)


def test_reason_axis_of_matmul(run) -> None:
    net = Net((2, 3, 4))
    net.node("MatMul", net.random(4, 5)).norm(3)
    assert "normalizes axis 1" in reason_of(net, run)


def test_reason_division_by_zero() -> None:
    net = conv(Net((1, 4, 6, 6)), 4, 4)
    net.node("Div", net.weight([0.0]))
    _, report = FuseBatchNorm().apply(net.model())
    assert not report.modified
    assert "divides by zero" in report.skipped[0].reason


def test_reason_training_mode() -> None:
    net = conv(Net((1, 4, 6, 6), opset=15), 4, 4).norm(4, training_mode=1)
    net.nodes[-1].output.extend(["m", "v"])
    _, report = FuseBatchNorm().apply(net.model())
    assert not report.modified
    assert "training_mode=1" in report.skipped[0].reason


def test_reason_spatial() -> None:
    net = conv(Net((1, 4, 6, 6), opset=8), 4, 4).norm(4, spatial=0)
    _, report = FuseBatchNorm().apply(net.model())
    assert not report.modified
    assert "spatial=0" in report.skipped[0].reason


def test_reason_overflow_of_float16() -> None:
    net = Net((1, 4), 13, np.float16)
    net.node("MatMul", net.weight(np.full((4, 4), 6e4))).node("Mul", net.weight([100.0]))
    _, report = FuseBatchNorm().apply(net.model())
    assert not report.modified
    assert "do not fit FLOAT16" in report.skipped[0].reason


def test_reason_parameter_that_is_not_constant(parse) -> None:
    _, report = FuseBatchNorm().apply(
        parse("""<ir_version: 8, opset_import: ["" : 13]>
        g (float[1, 2] x, float[2, 2] w) => (float[1, 2] y) <float[2] c = {1, 2}> {
            m = MatMul (x, w)
            y = Mul (m, c)
        }""")
    )
    assert not report.modified
    assert "weight of MatMul_0 can be overridden" in report.skipped[0].reason


def test_weights_that_are_inputs_need_simplify_first(models, run) -> None:
    model = Model.load(models("mnist_cntk"))
    assert not FuseBatchNorm().apply(model).report.modified
    after, report = FuseBatchNorm().apply(Simplify().apply(model).model)
    assert [entry.what for entry in report.applied] == [
        "fused Add into Conv Convolution28",
        "fused Add into Conv Convolution110",
    ]
    x = np.random.default_rng(0).uniform(0, 255, (1, 1, 28, 28)).astype(np.float32)
    np.testing.assert_allclose(
        run(after, {"Input3": x})[0], run(model, {"Input3": x})[0], rtol=1e-4, atol=1e-2
    )


STEPS = st.sampled_from(
    ["conv", "padded", "depthwise", "norm", "mul", "add", "sub", "rsub", "div", "relu", "scalar"]
)


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(STEPS, min_size=1, max_size=7), seed=st.integers(0, 99), opset=st.sampled_from([8, 13, 15])
)
def test_random_chains(run, steps, seed, opset) -> None:
    net = Net((2, 4, 16, 16), opset, seed=seed)
    for step in steps:
        match step:
            case "conv":
                conv(net, 4, 4, bias=bool(seed % 2), pads=[0] * 4)
            case "padded":
                conv(net, 4, 4, pads=[1] * 4)
            case "depthwise":
                conv(net, 4, 4, group=4, bias=False, pads=[1] * 4)
            case "norm":
                net.norm(4)
            case "relu":
                net.node("Relu")
            case "scalar":
                net.node("Mul", net.random())
            case "rsub":
                net.node("Sub", net.random(4, 1, 1), first=False)
            case "div":
                net.node("Div", net.weight(net.rng.uniform(0.5, 2, (1, 4, 1, 1))))
            case _:
                net.node(step.capitalize(), net.random(4, 1, 1))
    left, report = fuse(net, run)
    assert len(left) == len(steps) - len(report.applied)
    norms = [node for node in net.nodes if node.op_type == "BatchNormalization"]
    told = {entry[0] for entry in (*report.applied, *report.skipped)}
    assert told >= {node.name for node in norms}, "each is fused or has a reason"
