"""`inspect`: against counts worked out by hand, and published ones."""

from __future__ import annotations

import json

import numpy as np
import onnx.parser
import pytest

import edgeinfer as ei
from edgeinfer.errors import InputError


def inspect(text: str, **options):
    head = '<ir_version: 10, opset_import: ["" : 17]>\n'
    return ei.inspect(onnx.parser.parse_model(head + text), **options)


def zeros(*shape: int) -> str:
    return "{" + ", ".join(["0.0"] * int(np.prod(shape))) + "}"


def weights(**shapes: tuple[int, ...]) -> str:
    declared = (f"float[{', '.join(map(str, s))}] {name} = {zeros(*s)}" for name, s in shapes.items())
    return f"<{', '.join(declared)}>"


CONV = f"""g (float[N, 4, 8, 8] x) => (float[N, 6, H, W] y) {weights(w=(6, 2, 3, 3))}
    {{ y = Conv<group = 2>(x, w) }}"""
CONV_TRANSPOSE = f"""g (float[N, 2, 5, 5] x) => (float[N, 3, H, W] y) {weights(w=(2, 3, 2, 2))}
    {{ y = ConvTranspose<strides = [2, 2]>(x, w) }}"""
GEMM = f"""g (float[N, 5] x) => (float[N, 3] y) {weights(w=(3, 5))}
    {{ y = Gemm<transB = 1>(x, w) }}"""
MATMUL = "g (float[N, 7, 4] x, float[4, 6] w) => (float[N, 7, 6] y) { y = MatMul(x, w) }"
LSTM = f"""g (float[9, N, 2] x) => (float[9, 1, N, 3] y) {weights(w=(1, 12, 2), r=(1, 12, 3))}
    {{ y, h, c = LSTM<hidden_size = 3>(x, w, r) }}"""
GRU = f"""g (float[9, N, 2] x) => (float[9, 1, N, 3] y) {weights(w=(1, 9, 2), r=(1, 9, 3))}
    {{ y, h = GRU<hidden_size = 3>(x, w, r) }}"""
EINSUM = """g (float[N, 3, 4] x, float[4, 5] w) => (float[N, 3, 5] y)
    { y = Einsum<equation = "bij,jk->bik">(x, w) }"""
RELU = "g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }"

NODES = {
    "Conv": (CONV, 6 * 6 * 6 * 2 * 9),  # 6 x 6 x 6 outputs of 2 channels x 3 x 3 products each
    "ConvTranspose": (CONV_TRANSPOSE, 2 * 5 * 5 * 3 * 4),  # 2 x 5 x 5 inputs meet 3 x 2 x 2 weights each
    "Gemm": (GEMM, 5 * 3),
    "MatMul": (MATMUL, 7 * 4 * 6),
    "LSTM": (LSTM, 9 * 12 * (2 + 3)),  # 9 steps, 4 gates of 3, input of 2
    "GRU": (GRU, 9 * 9 * (2 + 3)),
    "Einsum": (EINSUM, 3 * 4 * 5),
    "Relu": (RELU, 0),
}


@pytest.mark.parametrize("op_type", NODES)
def test_macs_of_one_node(op_type):
    text, macs = NODES[op_type]
    found = inspect(text)
    assert found.macs == macs
    assert found.operators == {op_type: 1}
    assert inspect(text, shapes={"N": 3}).macs == 3 * macs


def test_attention():
    text = """<ir_version: 10, opset_import: ["" : 23]>
    g (float[N, 2, 5, 8] q, float[N, 2, 7, 8] k, float[N, 2, 7, 8] v) => (float[N, 2, 5, 8] y)
    { y = Attention(q, k, v) }"""
    assert ei.inspect(onnx.parser.parse_model(text)).macs == 2 * (5 * 7 * 8) * 2


def test_weights_by_dtype_and_parameters():
    found = inspect(
        "g (float[N, 4] x) => (float[N, 2] y) <float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}>"
        "{ s = Constant<value = int64[2] {-1, 2}>() m = MatMul(x, w) y = Reshape(m, s) }"
    )
    assert found.weights == {"float32": 32, "int64": 16}
    assert found.parameters == 10
    assert found.weight_bytes == 48


def test_the_memory_plan_knows_when_tensors_die():
    # x (400 B) dies in Tile; a and b (4000 B each) are alive together, then b and d, then d and y (400 B).
    found = inspect(
        """g (float[100] x) => (float[100] y)
        <int64[1] start = {0}, int64[1] stop = {100}, int64[1] ten = {10}, float factor = {10}> {
            a = Tile(x, ten)
            b = Mul(a, factor)
            d = Relu(b)
            y = Slice(d, start, stop)
        }"""
    )
    assert found.memory.peak_bytes == 8000
    assert found.memory.peak_node in {node.node for node in found.nodes if node.op_type in ("Mul", "Relu")}
    assert sum(size for _, size in found.memory.alive) == 8000
    assert found.memory.unknown == 0


def test_a_residual_stays_alive():
    found = inspect(
        "g (float[100] x) => (float[100] y) { a = Relu(x) b = Relu(a) c = Relu(b) y = Add(c, a) }"
    )
    assert found.memory.peak_bytes == 1200  # a, b and c, or a, c and y


QDQ = """g (float[1, 100] x) => (float[1, 10] y)
<float s = {0.1}, uint8 z = {0}, int8[100, 100] w = {W1}, int8[100, 10] v = {W2}, int8 zw = {0}> {
    qx = QuantizeLinear(x, s, z)
    dx = DequantizeLinear(qx, s, z)
    dw = DequantizeLinear(w, s, zw)
    h = MatMul(dx, dw)
    qh = QuantizeLinear(h, s, z)
    dh = DequantizeLinear(qh, s, z)
    TAIL
    dv = DequantizeLinear(v, s, zw)
    y = MatMul(r, dv)
}"""
QDQ = QDQ.replace("W1", ", ".join(["1"] * 10_000)).replace("W2", ", ".join(["1"] * 1_000))


@pytest.mark.parametrize(
    ("tail", "peak", "alive"),
    [
        # x in float and as it is quantized; behind that 100 B in, 100 B out, and in the end 40 B of y.
        ("", 500, {"qx": 100, "x": 400}),
        # Sigmoid computes in float: its input and output are 400 B each.
        ("r = Sigmoid(dh)", 800, {"dh": 400, "r": 400}),
        # Quantized again on both sides, it may stay in integers.
        (
            "a = Sigmoid(dh)\n qa = QuantizeLinear(a, s, z)\n r = DequantizeLinear(qa, s, z)",
            500,
            {"qx": 100, "x": 400},
        ),
    ],
)
def test_a_quantized_tensor_counts_as_what_it_is(tail, peak, alive):
    text = QDQ.replace("TAIL", tail)
    found = inspect(text if tail else text.replace("MatMul(r, dv)", "MatMul(dh, dv)")).memory
    assert found.peak_bytes == peak
    assert dict(found.alive) == alive
    assert found.unknown == 0


def test_dequantized_weights_are_no_activations():
    ones = ", ".join(["1"] * 400)
    found = inspect(
        f"""g (float[1, 4] x) => (float[1, 100] y) <float s = {{1}}, int8[4, 100] w = {{{ones}}}>
        {{ d = DequantizeLinear(w, s) y = MatMul(x, d) }}"""
    )
    assert found.memory.peak_bytes == 16 + 400
    assert {name for name, _ in found.memory.alive} == {"x", "y"}


def test_shapes_that_only_a_run_knows_are_found_and_said():
    # The pads are computed, which ONNX's inference does not follow.
    found = inspect(
        f"""g (float[N, 1, 4, 4] x) => (float[A, B, C, D] y)
        <float[2, 1, 3, 3] w = {zeros(2, 1, 3, 3)}, int64[1] two = {{2}}> {{
            one = Constant<value = int64[1] {{1}}>()
            ones = Expand(one, two)
            zeros = Sub(ones, ones)
            pads = Concat<axis = 0>(zeros, ones, zeros, ones)
            p = Pad(x, pads)
            y = Conv(p, w)
        }}"""
    )
    assert found.macs == 2 * 4 * 4 * 9
    assert next(node for node in found.nodes if node.op_type == "Conv").output_shape == (1, 2, 4, 4)


def test_subgraphs_count_once_and_that_is_said():
    found = inspect(
        """g (bool c, float[2, 3] x, float[3, 4] w) => (float[2, 4] y) {
            y = If(c) <
                then_branch = t () => (float[2, 4] a) { a = MatMul(x, w) },
                else_branch = e () => (float[2, 4] b) { m = MatMul(x, w) b = Neg(m) }
            >
        }"""
    )
    assert any("subgraphs" in note for note in found.notes)
    assert found.operators["MatMul"] == 2


def test_wrong_shapes_are_refused():
    with pytest.raises(InputError, match="neither an input nor a symbolic dimension"):
        inspect(GEMM, shapes={"M": 3})


def test_the_figures_say_which_shapes_they_are_for():
    found = inspect(CONV)
    assert "x float32 (1, 4, 8, 8), N = 1 assumed" in str(found)
    assert "x float32 (3, 4, 8, 8), N = 3 given" in str(inspect(CONV, batch=3))
    assert found.shapes == {"x": (1, 4, 8, 8)}
    assert found.to_dict()["inputs"] == [
        {
            "name": "x",
            "dtype": "float32",
            "shape": [1, 4, 8, 8],
            "origins": ["assumed", "declared", "declared", "declared"],
        }
    ]


def test_no_size_of_an_image_is_made_up():
    text = CONV.replace("N, 4, 8, 8", "N, 4, H, W")
    with pytest.raises(InputError, match="not known"):
        inspect(text)
    assert inspect(text, shapes={"H": 8, "W": 8}).macs == inspect(CONV).macs


def test_the_report_is_for_people_and_programs():
    found = inspect(CONV)
    assert "MACs" in str(found)
    assert "Conv" in found.node_table().to_html()
    assert json.loads(json.dumps(found.to_dict()))["macs"] == found.macs


# Published: MobileNetV2 300 M (Sandler 2018, table 4), SqueezeNet 1.1 about 350 M, ResNet-20 41 M (He 2015,
# table 6 by count), MLPerf Tiny's networks 12.5 M, 7.5 M, 2.7 M.
PUBLISHED = {
    "mobilenet_v2_1.0_224": (300e6, 3.5e6),
    "squeezenet1_1": (350e6, 1.235e6),
    "cifar10_resnet20": (40.6e6, 0.27e6),
    "cifar10_resnet8_mlperf": (12.5e6, 78e3),
    "vww_mobilenetv1_025_96": (7.5e6, 0.21e6),
    "kws_dscnn": (2.66e6, 22.6e3),
}


@pytest.mark.data
@pytest.mark.parametrize("name", PUBLISHED)
def test_macs_and_parameters_agree_with_published_ones(models, name):
    macs, parameters = PUBLISHED[name]
    found = ei.inspect(models(name))
    assert found.macs == pytest.approx(macs, rel=0.01)
    assert found.parameters == pytest.approx(parameters, rel=0.01)
    assert all(node.macs is not None for node in found.nodes)
    assert found.memory.unknown == 0


@pytest.mark.data
@pytest.mark.parametrize(
    "name", ["minilm_l6_fp16w", "silero_vad_16k", "nanodet_m_320", "mnist_cntk", "espcn_x3"]
)
def test_nothing_is_left_uncounted_in_real_models(models, name):
    shapes = {"minilm_l6_fp16w": {"L": 16}, "espcn_x3": {"H": 20, "W": 20}}.get(name)
    found = ei.inspect(models(name), shapes=shapes)
    assert all(node.macs is not None for node in found.nodes)
    assert found.memory.unknown == 0
    assert found.macs > 0
