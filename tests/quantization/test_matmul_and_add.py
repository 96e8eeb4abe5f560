"""A MatMul and the Add of a bias behind it run in integers in ONNX Runtime, whatever their shapes.

ONNX Runtime makes a Gemm of them where it knows the shapes. Such a Gemm ran in float, with its weight
dequantized in every call: a transformer of static shapes was five times slower in int8 than in float.
"""

from __future__ import annotations

import attrs
import numpy as np
import onnx
import onnxruntime as ort
import pytest

from edgeinfer.model.model import Model
from edgeinfer.quantization.placement.dialects import dialect_of
from edgeinfer.quantization.search.model_runs import run_outputs
from edgeinfer.quantization.search.output_score import output_sqnr_db
from edgeinfer.transforms import Pipeline, QuantizeStatic, RetargetQDQ

DIALECT = attrs.evolve(dialect_of("onnxruntime"), costs=None)  # these layers are too small to gain
CLOSE_DB = 25.0
SIZE = 64


def _net(shape: str, bias: str) -> Model:
    """Two layers; a GELU is behind the first, so that nothing is quantized right behind it."""
    proto = onnx.parser.parse_model(
        f"""
        <ir_version: 8, opset_import: ["": 17]>
        net (float[{shape}] x) => (float[{shape}] y) {{
            [one] m = MatMul(x, w)
            a = Add({bias})
            e = Erf(a)
            g = Mul(a, e)
            [two] n = MatMul(g, v)
            r = Add(n, c)
            y = Relu(r)
        }}
        """
    )
    rng = np.random.default_rng(0)
    shapes = {"w": (SIZE, SIZE), "v": (SIZE, SIZE), "b": (SIZE,), "c": (1, SIZE)}
    for name, size in shapes.items():
        array = (rng.standard_normal(size) / np.sqrt(SIZE)).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return Model.load(proto)


def _kernels(model: Model, folder) -> list[str]:
    """Return the kernels that ONNX Runtime runs."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]


@pytest.mark.parametrize("bias", ["m, b", "b, m"])
@pytest.mark.parametrize("shape", ["4, 64", "N, 64", "1, 4, 64", "N, 4, 64", "N, T, 64", "2, 3, 4, 64"])
def test_no_weight_is_dequantized_at_run_time(shape, bias, tmp_path):
    net = _net(shape, bias)
    rng = np.random.default_rng(1)
    sizes = [int(dim) if dim.strip().isdigit() else 4 for dim in shape.split(",")]
    feeds = [{"x": rng.standard_normal(sizes).astype(np.float32)} for _ in range(4)]
    quantized = QuantizeStatic(calibration=feeds, target=DIALECT).apply(net).model
    kernels = _kernels(quantized, tmp_path)
    assert "DequantizeLinear" not in kernels
    assert sum(kernel in ("MatMulIntegerToFloat", "QGemm") for kernel in kernels) == 2
    assert output_sqnr_db(run_outputs(net, feeds), run_outputs(quantized, feeds)) > CLOSE_DB


def test_other_runtimes_get_it_from_there():
    net = _net("4, 64", "m, b")
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.standard_normal((4, 64)).astype(np.float32)} for _ in range(4)]
    steps = (QuantizeStatic(calibration=feeds, target=DIALECT), RetargetQDQ("openvino"))
    moved = Pipeline(steps).apply(net).model
    assert output_sqnr_db(run_outputs(net, feeds), run_outputs(moved, feeds, "openvino")) > CLOSE_DB
