"""What a runtime fuses in the model that is given it fuses in what comes out: looked up in the runtimes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from edgeinfer.graph.fused_patterns import fused_patterns
from edgeinfer.model.model import Model
from edgeinfer.transforms import FuseBatchNorm, Pipeline, Simplify, ToFloat16

C = 16


class Net:
    """Writes a net: three layers with one and the same group of nodes behind the first two."""

    def __init__(self, shape: list[int | str]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.shape = shape
        self.rng = np.random.default_rng(0)

    def __call__(self, kind: str, *inputs: str | float, **attributes: object) -> str:
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, names, [name], f"{kind}_{len(self.nodes)}", **attributes))
        return name

    def constant(self, array: object, dtype: type = np.float32) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(array, dtype), f"w{len(self.weights)}"))
        return self.weights[-1].name

    def layer(self, x: str) -> str:
        scale = 1 / np.sqrt(C)
        if len(self.shape) == 4:
            weight = self.constant(scale * self.rng.standard_normal((C, C, 1, 1)))
            return self("Conv", x, weight, self.constant(self.rng.standard_normal(C)))
        x = self("MatMul", x, self.constant(scale * self.rng.standard_normal((C, C))))
        return self("Add", x, self.constant(self.rng.standard_normal(C)))

    def model(self, group: Callable[[Net, str], str]) -> Model:
        x = "x"
        for _ in range(2):
            x = group(self, self.layer(x))
        self.layer(x)
        self.nodes[-1].output[0] = "y"
        ends = [[helper.make_tensor_value_info(name, 1, self.shape)] for name in "xy"]
        graph = helper.make_graph(self.nodes, "net", *ends, self.weights)
        return Model.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def gelu(n: Net, x: str) -> str:
    return n("Mul", n("Mul", x, n("Add", n("Erf", n("Div", x, 2**0.5)), 1.0)), 0.5)


def gelu_half_first(n: Net, x: str) -> str:
    return n("Mul", n("Mul", x, 0.5), n("Add", n("Erf", n("Mul", x, 2**-0.5)), 1.0))


def gelu_tanh(n: Net, x: str) -> str:
    inner = n("Mul", n("Add", x, n("Mul", n("Pow", x, 3.0), 0.044715)), (2 / np.pi) ** 0.5)
    return n("Mul", n("Mul", x, n("Add", n("Tanh", inner), 1.0)), 0.5)


def silu(n: Net, x: str) -> str:
    return n("Mul", x, n("Sigmoid", x))


def quick_gelu(n: Net, x: str) -> str:
    return n("Mul", x, n("Sigmoid", n("Mul", x, 1.702)))


def mish(n: Net, x: str) -> str:
    return n("Mul", x, n("Tanh", n("Softplus", x)))


def hard_swish(n: Net, x: str) -> str:
    return n("Div", n("Mul", x, n("Clip", n("Add", x, 3.0), 0.0, 6.0)), 6.0)


def hard_swish_inside(n: Net, x: str) -> str:
    return n("Mul", x, hard_sigmoid(n, x))


def hard_sigmoid(n: Net, x: str) -> str:
    return n("Div", n("Clip", n("Add", x, 3.0), 0.0, 6.0), 6.0)


def hard_sigmoid_min(n: Net, x: str) -> str:
    return n("Mul", n("Min", n("Relu", n("Add", x, 3.0)), 6.0), 1 / 6)


def softplus(n: Net, x: str) -> str:
    return n("Log", n("Add", n("Exp", x), 1.0))


def layer_norm(n: Net, x: str) -> str:
    centered = n("Sub", x, n("ReduceMean", x, axes=[-1]))
    root = n("Sqrt", n("Add", n("ReduceMean", n("Pow", centered, 2.0), axes=[-1]), 1e-5))
    gamma, beta = (n.constant(n.rng.standard_normal(C)) for _ in range(2))
    return n("Add", n("Mul", n("Div", centered, root), gamma), beta)


def rms_norm(n: Net, x: str) -> str:
    root = n("Sqrt", n("Add", n("ReduceMean", n("Pow", x, 2.0), axes=[-1]), 1e-5))
    return n("Mul", n("Div", x, root), n.constant(n.rng.standard_normal(C)))


def attention(n: Net, x: str) -> str:
    def heads(value: str, *perm: int) -> str:
        return n("Transpose", n("Reshape", value, n.constant([0, 0, 4, 4], np.int64)), perm=perm)

    q, k, v = (n.layer(x) for _ in range(3))
    scores = n("Div", n("MatMul", heads(q, 0, 2, 1, 3), heads(k, 0, 2, 3, 1)), 2.0)
    mixed = n(
        "MatMul", n("Softmax", n("Add", scores, n.constant(np.zeros((6, 6)))), axis=-1), heads(v, 0, 2, 1, 3)
    )
    return n("Reshape", n("Transpose", mixed, perm=[0, 2, 1, 3]), n.constant([0, 0, C], np.int64))


BOTH = (gelu, gelu_half_first, gelu_tanh, silu, quick_gelu, mish, hard_swish, hard_swish_inside, hard_sigmoid,
        hard_sigmoid_min, softplus)  # fmt: skip
CASES = [(group, 4) for group in BOTH] + [(g, 3) for g in (*BOTH, layer_norm, rms_norm, attention)]
FUSED = ("BiasGelu", "Gelu", "FastGelu", "FusedMatMul", "LayerNormalization", "QuickGelu",
         "SimplifiedLayerNormalization", "SkipLayerNormalization", "Softmax")  # fmt: skip


def build(group: Callable, rank: int) -> Model:
    return Net(["N", C, 6, 6] if rank == 4 else ["N", 6, C]).model(group)


def onnxruntime_operators(model: Model, folder: Path) -> Counter[str]:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 4  # it warns that the file is for this machine
    ort.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def openvino_operators(model: Model) -> Counter[str]:
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(model.to_bytes()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    kinds = (op.get_rt_info()["layerType"].astype(str) for op in compiled.get_runtime_model().get_ops())
    return Counter(kind for kind in kinds if kind not in ("Input", "Output", "Const", "Reorder", "Reshape"))


@pytest.mark.parametrize(("group", "rank"), CASES)
def test_simplify_and_fuse_keep_what_onnxruntime_fuses(group, rank, tmp_path) -> None:
    model = build(group, rank)
    after = Pipeline((Simplify(), FuseBatchNorm())).apply(model).model
    before, behind = (onnxruntime_operators(each, tmp_path) for each in (model, after))
    assert {kind: behind[kind] for kind in FUSED} == {kind: before[kind] for kind in FUSED}
    assert behind.total() <= before.total()


@pytest.mark.parametrize(("group", "rank"), CASES)
def test_no_rewrite_makes_openvino_run_more_operators(group, rank) -> None:
    model = build(group, rank)
    before = openvino_operators(model)
    for steps in ((Simplify(), FuseBatchNorm()), (Simplify(), FuseBatchNorm(), ToFloat16())):
        behind = openvino_operators(Pipeline(steps).apply(model).model)
        assert behind.total() <= before.total(), behind - before


@pytest.mark.parametrize(("group", "rank"), CASES)
def test_a_group_is_in_one_precision(group, rank) -> None:
    after = ToFloat16().apply(build(group, rank)).model
    for pattern in fused_patterns(after.ir.graph).values():
        dtypes = {value.dtype for node in pattern.nodes for value in node.outputs}
        assert len(dtypes) == 1


@pytest.mark.parametrize("group", [gelu, gelu_tanh, hard_swish, hard_sigmoid, layer_norm, softplus])
def test_what_is_left_alone_is_named(group) -> None:
    model = build(group, 3 if group is layer_norm else 4)
    members = {node.name for node in fused_patterns(model.ir.graph)}
    assert members
    report = FuseBatchNorm().apply(model).report
    assert not members & {node for node, _ in report.applied}
    if group in (gelu, hard_swish):
        assert any("which runtimes fuse" in reason for _, reason in report.skipped)


def test_a_scale_behind_an_activation_is_no_part_of_it() -> None:
    """SiLU times 1.7 is SiLU, and a scale that goes into the next convolution."""
    model = build(lambda n, x: n("Mul", silu(n, x), 1.7), 4)
    after, report = FuseBatchNorm().apply(model)
    assert [what for _, what in report.applied] == [
        "fused Mul into Conv Conv_4",
        "fused Mul into Conv Conv_8",
    ]
    assert sum(node.op_type == "Mul" for node in after.ir.graph) == 2


@pytest.mark.parametrize("number", [0.25, 0.5])
def test_products_that_are_no_activation_are_fused(number) -> None:
    model = build(lambda n, x: n("Mul", n("Relu", x), number), 4)
    assert len(FuseBatchNorm().apply(model).report.applied) == 2
