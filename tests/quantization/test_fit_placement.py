"""Layer gains, and a placement that follows them. Times are made up where a decision hangs on them."""

from __future__ import annotations

import attrs
import numpy as np
import pytest

import edgeinfer as ei
from edgeinfer.measure import LayerLatencies, LayerLatency
from edgeinfer.measure.speedup import Speedup
from edgeinfer.model.model import Model
from edgeinfer.quantization.search import fit_placement as fitting
from edgeinfer.quantization.search import layer_gains as gaining
from edgeinfer.quantization.search.fit_placement import fit_placement
from edgeinfer.quantization.search.layer_gains import (
    LayerGain,
    LayerGains,
    costs_of_float,
    integer_nodes,
    layer_gains,
)
from edgeinfer.quantization.search.quantize_int8 import QuantizeInt8
from edgeinfer.transforms import QuantizeStatic
from tests.quantization.qdq_models import residual_net

LAYERS = {"conv1", "conv2", "conv3", "fc"}
RNG = np.random.default_rng(1)
FEEDS = [{"x": RNG.standard_normal((1, 16, 24, 24)).astype(np.float32)} for _ in range(3)]


@pytest.fixture(scope="module")
def net() -> Model:
    return residual_net()


@pytest.fixture(scope="module")
def quantized(net) -> Model:
    return ei.optimize(net, [QuantizeStatic(calibration=FEEDS, target="openvino")])


def _speed(monkeypatch, judge) -> list[tuple[Model, Model]]:
    """Let `judge(candidate)` say how much faster a candidate is, and return the list of what was compared."""
    compared = []

    def measure(best, candidate, feed, **_):
        compared.append((best, candidate))
        return Speedup(ratio=judge(candidate), reference_ms=1.0, candidate_ms=1.0, where="here")

    monkeypatch.setattr(fitting, "measure_speedup", measure)
    return compared


def _gains(monkeypatch, **gains_us: float) -> None:
    layers = [
        LayerGain(node=name, op_type="Conv", float_us=10.0, int8_us=10.0 - gain)
        for name, gain in gains_us.items()
    ]
    made = LayerGains(where="here", layers=layers, float_us=100.0, int8_us=80.0)
    monkeypatch.setattr(fitting, "layer_gains", lambda *_, **__: made)


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_every_layer_in_int8_has_two_times(net, target):
    model = ei.optimize(net, [QuantizeStatic(calibration=FEEDS, target=target)])
    gains = layer_gains(net, model, FEEDS[0], target=target)
    assert gains is not None
    assert {layer.node for layer in gains.layers} == integer_nodes(model.ir)
    assert all(layer.float_us >= 0 and layer.int8_us >= 0 for layer in gains.layers)
    assert "conv1" in str(gains) or not gains.layers
    assert "gain" in gains._repr_html_()


def test_integer_nodes_are_those_with_integer_weights(net, quantized):
    assert integer_nodes(net.ir) == set()
    assert integer_nodes(quantized.ir) == LAYERS


def test_quantizers_count_for_the_layers_beside_them(net, quantized, monkeypatch):
    def layer(node: str, us: float) -> LayerLatency:
        return LayerLatency(node=node, op_type="", us=us, layer=node, kernel="")

    tables = {
        net.digest: [layer("conv1", 20.0), layer("relu1", 2.0), layer("conv2", 30.0), layer("add", 5.0)],
        quantized.digest: [
            layer("conv1", 5.0),
            layer("x_QuantizeLinear", 3.0),
            layer("relu1_out_QuantizeLinear", 4.0),
            layer("conv2", 10.0),
        ],
    }
    monkeypatch.setattr(
        gaining,
        "measure_layers",
        lambda model, *_, **__: LayerLatencies(where="here", layers=tables[model.digest], runs=1, threads=1),
    )
    gains = layer_gains(net, quantized, FEEDS[0], target="openvino")
    assert gains is not None
    found = {layer.node: (layer.float_us, layer.int8_us) for layer in gains.layers}
    assert found["conv1"] == (22.0, 5.0 + 3.0 + 4.0 / 2)  # conv2 reads what conv1 makes
    assert found["conv2"] == (35.0, 10.0 + 4.0 / 2)


def test_without_the_backend_there_are_no_gains(net, quantized):
    assert layer_gains(net, quantized, FEEDS[0], target="tensorrt") is None
    fit = fit_placement(net, FEEDS, "tensorrt")
    assert fit.gains is None
    assert fit.slower == ()


def test_a_layer_that_is_slower_goes_back_to_float_if_the_whole_is_faster(net, monkeypatch):
    _gains(monkeypatch, conv1=5.0, conv3=-4.0, fc=-0.2)
    compared = _speed(monkeypatch, lambda candidate: 1.5 if "conv3" not in integer_nodes(candidate.ir) else 1)
    fit = fit_placement(net, FEEDS, "openvino")
    assert [slow.node for slow in fit.slower] == ["conv3"]  # fc's difference is within the noise
    assert "1.50x" in fit.slower[0].reason
    assert fit.gains is not None
    assert {layer.node for layer in fit.gains.layers} == {"conv1", "fc"}
    assert all(integer_nodes(best.ir) == LAYERS for best, _ in compared)


def test_it_stays_in_int8_if_the_whole_is_no_faster(net, monkeypatch):
    _gains(monkeypatch, conv1=-5.0, conv3=-4.0)
    compared = _speed(monkeypatch, lambda candidate: 1.0)
    fit = fit_placement(net, FEEDS, "openvino")
    assert fit.slower == ()
    tried = [LAYERS - integer_nodes(candidate.ir) for _, candidate in compared]
    assert tried == [{"conv1", "conv3"}, {"conv1"}]  # all of them, then the worst half


def test_kernel_costs_that_do_not_fit_are_dropped(net, monkeypatch):
    _gains(monkeypatch)
    _speed(monkeypatch, lambda candidate: 2.0)
    everything = fit_placement(net, FEEDS, "onnxruntime")
    _speed(monkeypatch, lambda candidate: 0.5)
    as_given = fit_placement(net, FEEDS, "onnxruntime")
    assert as_given.dialect.costs is not None
    costed = ei.optimize(net, [QuantizeStatic(calibration=FEEDS, target=as_given.dialect)])
    eager = attrs.evolve(as_given.dialect, costs=None)
    same = costed.digest == ei.optimize(net, [QuantizeStatic(calibration=FEEDS, target=eager)]).digest
    assert same or everything.dialect.costs is None


def test_quantize_int8_keeps_slower_layers_in_float_and_says_so(net, monkeypatch):
    _gains(monkeypatch, conv1=5.0, conv2=5.0, conv3=-4.0, fc=1.0)
    _speed(monkeypatch, lambda candidate: 1.5)
    result = QuantizeInt8(calibration=FEEDS, target="openvino", spend=0).apply(net)
    assert any(node == "conv3" and "slower in int8" in why for node, why in result.report.skipped)
    assert result.report.data["gains"].int8_us == 80.0
    if result.report.modified:
        assert "conv3" not in integer_nodes(result.model.ir)


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
