"""A layer that is kept in float computes in float, whatever the runtime's optimizer would make of it."""

from __future__ import annotations

import attrs
import numpy as np
import onnx_ir as ir
import pytest

import edgeinfer as ei
from edgeinfer.quantization.methods.quantize_static import QuantizeStatic
from edgeinfer.quantization.placement.dialects import dialect_of
from edgeinfer.transforms import Pipeline, RetargetQDQ


def _net() -> ei.Model:
    """Return three convolutions, the middle one with channels of very unlike weights."""
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((8, 8, 1, 1)).astype(np.float32) * 0.4 for _ in range(3)]
    weights[1] *= np.geomspace(1e-3, 1, 8, dtype=np.float32)[:, None, None, None]
    weights[2] /= np.geomspace(1e-3, 1, 8, dtype=np.float32)[None, :, None, None]
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[1,8,16,16] x, float[8,8,1,1] a, float[8,8,1,1] b, float[8,8,1,1] c) => (float[1,8,16,16] y)
    { p = Conv(x, a)
      q = Relu(p)
      r = Conv(q, b)
      s = Relu(r)
      y = Conv(s, c) }"""
    model = ir.from_onnx_text(text)
    for value, array in zip(list(model.graph.inputs)[1:], weights, strict=True):
        value.const_value = ir.tensor(array, name=value.name)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    return ei.Model.from_ir(model)


DIALECT = attrs.evolve(dialect_of("onnxruntime"), costs=None)  # these layers are too small to gain
FEEDS = [
    {"x": np.random.default_rng(seed).standard_normal((1, 8, 16, 16)).astype(np.float32)} for seed in range(8)
]


def _output(model: ei.Model, **options: object) -> np.ndarray:
    with ei.load(ei.compile(model, "onnxruntime", options=options or None)) as session:
        return session.infer(FEEDS[0])["y"]


def test_onnxruntime_does_not_quantize_a_layer_that_is_kept_in_float() -> None:
    net = _net()
    middle = [node.name for node in net.ir.graph if node.op_type == "Conv"][1]
    mixed = QuantizeStatic(calibration=FEEDS, target=DIALECT, keep_float=(middle,)).apply(net).model
    (kept,) = [node for node in mixed.ir.graph if node.name == middle]
    assert kept.inputs[1].is_initializer()
    assert kept.inputs[0].producer().attributes.get_int("axis") == 1
    plain = _output(mixed, graph_optimization_level="disable")
    assert np.abs(_output(mixed) - plain).max() < 0.05 * np.abs(plain).max()


@pytest.mark.parametrize("target", ["openvino", "tensorrt"])
def test_another_runtime_gets_it_in_its_own_form(target: str) -> None:
    net = _net()
    middle = [node.name for node in net.ir.graph if node.op_type == "Conv"][1]
    steps = (QuantizeStatic(calibration=FEEDS, target=DIALECT, keep_float=(middle,)), RetargetQDQ(target))
    model = Pipeline(steps).apply(net).model
    (kept,) = [node for node in model.ir.graph if node.name == middle]
    source = kept.inputs[0].producer()
    assert source.op_type != "DequantizeLinear" or source.inputs[1].const_value.size == 1
