"""Latency by layer: which ONNX node each kernel stands for. Times are not judged, only their structure."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import edgeinfer as ei
from edgeinfer.backends.protocol import Profiles
from edgeinfer.backends.reports import typical_us
from edgeinfer.errors import InputError
from edgeinfer.measure import measure_layers
from edgeinfer.model.model import Model
from edgeinfer.transforms import QuantizeStatic

NET = """<ir_version: 8, opset_import: ["" : 13]>
net (float[1,3,16,16] x, float[16,3,3,3] w1, float[16] b1, float[16,1,3,3] w2, float[16,10] w3, float[10] b3)
    => (float[1,10] y) {
    [first] c1 = Conv <kernel_shape = [3,3], pads = [1,1,1,1]> (x, w1, b1)
    [first_relu] r1 = Relu(c1)
    [depthwise] c2 = Conv <kernel_shape = [3,3], pads = [1,1,1,1], group = 16> (r1, w2)
    [depthwise_relu] r2 = Relu(c2)
    [pool] p = GlobalAveragePool(r2)
    [flat] f = Flatten(p)
    [last] y = Gemm(f, w3, b3)
}"""
RUNTIMES = ("onnxruntime", "openvino")


@pytest.fixture(scope="module")
def net() -> Model:
    model = ir.from_onnx_text(NET)
    rng = np.random.default_rng(0)
    while len(model.graph.inputs) > 1:  # all but the first are weights
        value = model.graph.inputs.pop()
        array = rng.standard_normal([int(size) for size in value.shape]).astype(np.float32)
        value.const_value = ir.tensor(array, name=value.name)
        model.graph.register_initializer(value)
    return Model.from_ir(model)


@pytest.fixture(scope="module")
def feed() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((1, 3, 16, 16)).astype(np.float32)}


@pytest.mark.parametrize("backend", RUNTIMES)
def test_every_layer_with_a_weight_has_a_time_under_its_onnx_name(net, feed, backend):
    found = measure_layers(net, feed, target=backend, runs=6)
    assert found.where.startswith(backend)
    assert found.runs == 6
    assert {"first", "depthwise", "last"} <= set(found.by_node)
    assert all(layer.us >= 0 for layer in found.layers)
    assert found.total_us == pytest.approx(sum(found.by_node.values()))
    first = next(layer for layer in found.layers if layer.node == "first")
    assert first.op_type == "Conv"
    assert "first_relu" in first.fused
    assert "first" in str(found)
    assert "depthwise" in found._repr_html_()
    assert found.to_dict()["runs"] == 6


@pytest.mark.parametrize("backend", RUNTIMES)
def test_integer_kernels_keep_the_names_of_the_float_model(net, feed, backend):
    quantized = ei.optimize(net, [QuantizeStatic(calibration=[feed, feed], target=backend)])
    found = measure_layers(quantized, feed, target=backend, runs=4)
    names = set(found.by_node)
    assert {"first", "depthwise", "last"} & names == {"first", "depthwise", "last"} & {
        node.name for node in quantized.ir.graph
    }
    assert names - {""} <= {node.name for node in quantized.ir.graph}


def test_feeds_are_made_up_and_runs_chosen(net):
    found = measure_layers(net)
    assert found.runs >= 16
    assert found.threads == 1
    assert found.layers


def test_both_runners_profile_and_check_what_they_are_fed(net, feed):
    for backend in RUNTIMES:
        with ei.load(ei.compile(net, backend)) as session:
            assert isinstance(session._runner, Profiles)
            layers = session.profile(feed, runs=2)
            assert any({"first", "r1"} & {*layer.onnx_names} for layer in layers)
            with pytest.raises(InputError):
                session.profile({"x": np.zeros((2, 2), np.float32)})


def test_a_loop_counts_by_what_runs_in_it():
    model = Model.from_ir(
        ir.from_onnx_text("""<ir_version: 8, opset_import: ["" : 13]>
        looped (float[4] x) => (float[4] y)
        <int64 trip = {3}, bool go = {1}>
        {
            [loop] y = Loop (trip, go, x) <body = step (int64 i, bool c, float[4] a) => (bool d, float[4] b) {
                d = Identity(c)
                [inside] b = Mul(a, a)
            }>
        }""")
    )
    found = measure_layers(model, {"x": np.ones(4, np.float32)}, runs=3)
    assert "loop" not in found.by_node
    assert "inside" in found.by_node


def test_the_mean_of_the_fastest_quarter():
    assert typical_us([9.0, 1.0, 3.0, 100.0, 70.0, 80.0, 60.0, 4.0]) == 2.0
    assert typical_us([5.0]) == 5.0
    assert typical_us([]) == 0.0
