"""What int8 gains layer by layer."""

from __future__ import annotations

import numpy as np
import pytest

import edgeinfer as ei
from edgeinfer.measure.speedup import NotMeasured, TargetStopwatch
from edgeinfer.model.model import Model
from edgeinfer.quantization.placement.dialects import dialect_of
from edgeinfer.quantization.search.layer_gains import (
    LayerGain,
    LayerGains,
    costs_of_float,
    integer_nodes,
    layer_gains,
)
from edgeinfer.transforms import QuantizeStatic
from tests.quantization.made_up_time import MadeUpTime
from tests.quantization.qdq_models import residual_net

LAYERS = {"conv1", "conv2", "conv3", "fc"}
RNG = np.random.default_rng(1)
FEEDS = [{"x": RNG.standard_normal((1, 16, 24, 24)).astype(np.float32)} for _ in range(3)]
OPENVINO = dialect_of("openvino")


@pytest.fixture(scope="module")
def net() -> Model:
    return residual_net()


@pytest.fixture(scope="module")
def quantized(net) -> Model:
    return ei.optimize(net, [QuantizeStatic(calibration=FEEDS, target="openvino")])


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_every_layer_in_int8_has_two_times(net, target):
    model = ei.optimize(net, [QuantizeStatic(calibration=FEEDS, target=target)])
    with TargetStopwatch(target) as stopwatch:
        gains = layer_gains(net, model, FEEDS[0], stopwatch, dialect_of(target))
    assert isinstance(gains, LayerGains)
    assert {layer.node for layer in gains.layers} == integer_nodes(model.ir)
    assert all(layer.float_us >= 0 and layer.int8_us >= 0 for layer in gains.layers)
    assert "conv1" in str(gains) or not gains.layers
    assert "gain" in gains._repr_html_()


def test_integer_nodes_are_those_with_integer_weights(net, quantized):
    assert integer_nodes(net.ir) == set()
    assert integer_nodes(quantized.ir) == LAYERS


def test_quantizers_count_for_the_layers_beside_them(net, quantized):
    in_float = {"conv1": 20.0, "relu1": 2.0, "conv2": 30.0, "add": 5.0}
    in_int8 = {"conv1": 5.0, "x_QuantizeLinear": 3.0, "relu1_out_QuantizeLinear": 4.0, "conv2": 10.0}
    stopwatch = MadeUpTime(layers=(in_float, in_int8))
    gains = layer_gains(net, quantized, FEEDS[0], stopwatch, OPENVINO)
    assert isinstance(gains, LayerGains)
    found = {layer.node: (layer.float_us, layer.int8_us) for layer in gains.layers}
    assert found["conv1"] == (22.0, 5.0 + 3.0 + 4.0 / 2)  # conv2 reads what conv1 makes
    assert found["conv2"] == (35.0, 10.0 + 4.0 / 2)


def test_without_the_backend_there_are_no_gains_and_a_reason(net, quantized):
    with TargetStopwatch("tensorrt") as stopwatch:
        gains = layer_gains(net, quantized, FEEDS[0], stopwatch, OPENVINO)
    assert isinstance(gains, NotMeasured)
    assert "not here" in gains.reason


def test_costs_are_microseconds_where_they_are_known():
    layers = [
        LayerGain(node="a", op_type="Conv", float_us=10.0, int8_us=6.0),
        LayerGain(node="b", op_type="Conv", float_us=1.0, int8_us=9.0),
    ]
    gains = LayerGains(where="here", layers=layers, float_us=11.0, int8_us=15.0)
    macs = {"a": 300.0, "b": 150.0, "c": 90.0, "d": 0.0}
    costs = costs_of_float(macs, gains)
    assert costs["a"] == 4.0
    assert 0 < costs["b"] < 1  # a layer that loses in int8 is nearly free, but not for nothing
    assert costs["c"] == pytest.approx(90 * (costs["a"] + costs["b"]) / 450)
    assert costs["d"] == 0
    assert costs_of_float(macs, None) == macs
