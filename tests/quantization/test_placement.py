from __future__ import annotations

import attrs
import numpy as np
import pytest

import edgeinfer as ei
from edgeinfer.backends.dialect import QDQDialect
from edgeinfer.backends.onnxruntime_.backend import DIALECT as ORT
from edgeinfer.backends.openvino_.dialect import DIALECT as OPENVINO
from edgeinfer.backends.tensorrt_.dialect import DIALECT as TENSORRT
from edgeinfer.model.model import Model
from edgeinfer.quantization.placement.placement import Placement, place
from edgeinfer.quantization.placement.prepare import prepare
from edgeinfer.transforms import QuantizeStatic
from tests.quantization.qdq_models import CHANNELS, Builder, residual_net

EAGER = attrs.evolve(ORT, costs=None)


def placed(
    model: Model, dialect: QDQDialect, **options: object
) -> tuple[Placement, set[str], dict[str, str]]:
    graph = model.copy_ir()
    prepare(graph)
    skipped: dict[str, str] = {}
    plan = place(
        graph,
        dialect,
        skip=lambda node, why: skipped.update({str(node.name): why}),
        **options,  # type: ignore[arg-type]
    )
    return plan, {str(value.name) for value in plan.tensors}, skipped


def test_onnxruntime_quantizes_what_every_kernel_stores() -> None:
    plan, tensors, skipped = placed(residual_net(), EAGER)
    # conv2_out before the Add, too: QLinearConv needs it. conv1_out is not stored: relu1 is in its kernel.
    assert tensors == {
        "x",
        "relu1_out",
        "conv2_out",
        "relu2_out",
        "pool_out",
        "relu3_out",
        "gap_out",
        "flat_out",
    }
    assert [region.node.name for region in plan.regions] == ["conv1", "conv2", "conv3", "fc"]
    assert not skipped


@pytest.mark.parametrize("dialect", [OPENVINO, TENSORRT], ids=lambda d: d.name)
def test_a_residual_add_is_inside_the_kernel_where_the_runtime_fuses_it(dialect: QDQDialect) -> None:
    plan, tensors, _ = placed(residual_net(), dialect)
    assert "conv2_out" not in tensors
    assert "add_out" not in tensors
    conv2 = next(region for region in plan.regions if region.node.name == "conv2")
    assert conv2.output.name == "relu2_out"
    reads = {(node.name, index) for uses in plan.tensors.values() for node, index in uses}
    assert ("add", 1) in reads  # the residual branch is quantized
    assert ("add", 0) not in reads


def test_moving_operators_share_one_scale() -> None:
    plan, _, _ = placed(residual_net(), EAGER)
    groups = {name: group for group in plan.groups for name in group}
    assert groups["relu2_out"] == groups["pool_out"]
    assert groups["gap_out"] == groups["flat_out"]
    assert groups["relu1_out"] != groups["relu2_out"]


def test_concat_shares_a_scale_with_its_inputs() -> None:
    b = Builder(1, CHANNELS, 16, 16)
    left = b.node("Relu", b.conv(b.input, "left", CHANNELS, CHANNELS), name="relu_l")
    right = b.node("Relu", b.conv(b.input, "right", CHANNELS, CHANNELS), name="relu_r")
    both = b.node("Concat", left, right, name="cat", axis=1)
    tail = b.conv(both, "tail", 2 * CHANNELS, CHANNELS)
    pooled = b.node("GlobalAveragePool", tail, name="gap")
    model = b.model(pooled, 1, CHANNELS, 1, 1)
    for dialect in (EAGER, OPENVINO, TENSORRT):
        plan, tensors, _ = placed(model, dialect)
        assert {"relu_l_out", "relu_r_out"} <= tensors
        assert ("cat_out" in tensors) is dialect.requantize_moved
        groups = [group for group in plan.groups if "cat_out" in group]
        assert set(groups[0]) == {"relu_l_out", "relu_r_out", "cat_out"}, dialect.name


MOVES = {
    "MaxPool": {"kernel_shape": [2, 2], "strides": [2, 2]},
    "Transpose": {"perm": [0, 1, 3, 2]},
    "DepthToSpace": {"blocksize": 2},
    "Concat": {"axis": 1},
    "Identity": {},
}


@pytest.mark.parametrize("op_type", MOVES)
def test_openvino_needs_no_quantizer_behind_what_moves_values(op_type: str) -> None:
    b = Builder(1, 16, 8, 8)
    inputs = [b.node("Relu", b.conv(b.input, "first", 16, CHANNELS), name="relu")]
    if op_type == "Concat":
        inputs.append(b.node("Relu", b.conv(b.input, "second", 16, CHANNELS), name="relu2"))
    moved = b.node(op_type, *inputs, name="move", **MOVES[op_type])
    channels = {"DepthToSpace": CHANNELS // 4, "Concat": 2 * CHANNELS}.get(op_type, CHANNELS)
    last = b.node("Relu", b.conv(moved, "last", channels, CHANNELS), name="relu_last")
    model = b.model(b.node("GlobalAveragePool", last, name="gap"), 1, CHANNELS, 1, 1)
    feeds = [{"x": b.rng.standard_normal((1, 16, 8, 8)).astype(np.float32)} for _ in range(3)]
    quantized = ei.optimize(model, [QuantizeStatic(calibration=feeds, target="openvino")])
    quantizers = {node.name for node in quantized.ir.graph if node.op_type == "QuantizeLinear"}
    assert "relu_out_QuantizeLinear" in quantizers
    assert "move_out_QuantizeLinear" not in quantizers
    with ei.load(ei.compile(quantized, "openvino")) as session:
        layers = session.execution().layers
    precisions = [layer.precision for layer in layers if layer.op_type == "Convolution"]
    assert precisions == ["int8"] * len(precisions)
    assert len(precisions) >= 2


def test_keep_float_keeps_the_node_and_its_weight() -> None:
    plan, tensors, skipped = placed(residual_net(), EAGER, keep_float={"conv3"})
    assert [region.node.name for region in plan.regions] == ["conv1", "conv2", "fc"]
    assert skipped["conv3"] == "kept in float as asked"
    assert "relu3_out" not in tensors


def test_softmax_and_layer_normalization_stay_float() -> None:
    b = Builder(8, 64)
    scale, bias = b.weight("s", np.ones(64, np.float32)), b.weight("b", np.zeros(64, np.float32))
    hidden = b.node("LayerNormalization", b.matmul(b.input, "fc1", 64, 64), scale, bias, name="norm")
    out = b.matmul(b.node("Softmax", hidden, name="softmax"), "fc2", 64, 64)
    model = b.model(out, 8, 64)
    for dialect in (EAGER, OPENVINO, TENSORRT):
        plan, tensors, _ = placed(model, dialect)
        assert tensors == {"x", "softmax_out"}
        assert len(plan.regions) == 2


def test_attention_products_of_two_activations_stay_float() -> None:
    b = Builder(4, 64)
    q, k = b.matmul(b.input, "q", 64, 64), b.matmul(b.input, "k", 64, 64)
    scores = b.node("MatMul", q, b.node("Transpose", k, name="kt", perm=[1, 0]), name="scores")
    plan, tensors, skipped = placed(b.model(scores, 4, 4), EAGER)
    assert [region.node.name for region in plan.regions] == ["q", "k"]
    assert skipped["scores"] == "its weight is computed, not constant"
    assert tensors == {"x"}


@pytest.mark.parametrize("activation", ["HardSwish", "LeakyRelu", "SiLU"])
def test_openvino_takes_activations_into_the_kernel(activation: str) -> None:
    b = Builder(1, CHANNELS, 16, 16)
    value = b.conv(b.input, "conv1", CHANNELS, CHANNELS)
    if activation == "SiLU":
        value = b.node("Mul", value, b.node("Sigmoid", value, name="gate"), name="act")
    else:
        value = b.node(activation, value, name="act")
    out = b.node("GlobalAveragePool", b.conv(value, "conv2", CHANNELS, CHANNELS), name="gap")
    plan, tensors, _ = placed(b.model(out, 1, CHANNELS, 1, 1), OPENVINO)
    assert tensors == {"x", "act_out"}
    assert plan.regions[0].output.name == "act_out"


def test_a_last_convolution_stays_float_where_its_output_would_be_quantized() -> None:
    b = Builder(1, CHANNELS, 16, 16)
    inner = b.node("Relu", b.conv(b.input, "body", CHANNELS, CHANNELS), name="relu")
    out = b.node("DepthToSpace", b.conv(inner, "last", CHANNELS, 4), name="shuffle", blocksize=2)
    model = b.model(out, 1, 1, 32, 32)
    plan, _, skipped = placed(model, EAGER)
    assert [region.node.name for region in plan.regions] == ["body"]
    assert "8 bits are too few" in skipped["last"]
    plan, tensors, _ = placed(model, OPENVINO)
    assert [region.node.name for region in plan.regions] == ["body", "last"]
    assert tensors == {"x", "relu_out"}


def test_a_model_too_small_to_gain_stays_float_and_says_so() -> None:
    b = Builder(1, 4, 6, 6)
    value = b.input
    for i in range(4):
        value = b.node("Relu", b.conv(value, f"dw{i}", 4, 4, group=4), name=f"relu{i}")
    model = b.model(b.node("GlobalAveragePool", value, name="gap"), 1, 4, 1, 1)
    plan, tensors, skipped = placed(model, ORT)
    assert not plan.regions
    assert not tensors
    assert all("too small" in why or "faster in float" in why for why in skipped.values())
    assert set(skipped) == {f"dw{i}" for i in range(4)}
