"""What a graph asks for: its kernels with their sizes, in float and in integers; made-up variants of it."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

from edgeinfer.estimate.synthetic import FAMILIES, synthetic_net
from edgeinfer.estimate.workload import workload
from edgeinfer.measure.inspection import inspect
from edgeinfer.model.model import Model
from edgeinfer.transforms import PruneChannels, QuantizeStatic, Simplify
from tests.estimate.nets import convolutions, separable


def kinds(model: Model, target: str | None = None) -> list[tuple[str, str, int]]:
    return [(k.kind, k.precision, k.nodes) for k in workload(model, target=target).kernels]


def test_kernels_take_activations_and_residuals_in():
    assert kinds(separable()) == [
        ("conv", "float32", 2),
        ("depthwise", "float32", 2),
        ("pointwise", "float32", 2),
        ("reduce", "float32", 1),
        ("gemm", "float32", 1),
    ]


def test_sizes_are_those_of_the_layers():
    first, second, last = workload(convolutions(24)).kernels
    assert (first.outs, first.ins, first.taps, first.width, first.positions) == (24, 3, 9, 32, 1024)
    assert first.macs == 24 * 3 * 9 * 1024
    assert first.read_bytes == 4 * 3 * 1024
    assert first.written_bytes == second.read_bytes == 4 * 24 * 1024
    assert second.weight_bytes == 4 * (24 * 24 * 9 + 24)
    assert (last.kind, last.groups) == ("pointwise", 1)


def test_products_are_those_that_inspect_counts():
    for number in range(0, len(FAMILIES), 2):
        model = synthetic_net(number)
        assert workload(model).macs == inspect(model).macs


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_integers_stay_between_kernels(target):
    feed = [{"input0": np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)}]
    whole = Simplify().apply(convolutions()).model
    quantized = QuantizeStatic(calibration=feed, target=target, method="minmax").apply(whole).model
    work = workload(quantized, target=target)
    assert work.precision == "int8"
    assert sum(k.kind == "quantize" for k in work.kernels) == 1
    second = next(k for k in work.kernels if k.ins == 64 and k.taps == 9)
    assert second.precision == "int8"
    assert second.read_bytes == 64 * 1024  # a byte each
    assert work.weight_bytes < 0.4 * workload(whole, target=target).weight_bytes
    # What is made up of the float model comes near.
    assumed = workload(whole, target=target).assume("int8")
    assert assumed.weight_bytes == pytest.approx(work.weight_bytes, rel=0.2)
    assert assumed.plan_bytes == pytest.approx(work.plan_bytes, rel=0.5)


def test_a_pruned_workload_is_like_the_pruned_model():
    work = workload(convolutions())
    pruned = workload(PruneChannels(keep_macs=0.5).apply(convolutions()).model)
    made_up = work.pruned(pruned.macs / work.macs)
    assert made_up.file_bytes == pytest.approx(pruned.file_bytes, rel=0.15)
    assert made_up.plan_bytes == pytest.approx(pruned.plan_bytes, rel=0.3)
    assert len(made_up.kernels) == len(pruned.kernels)


def test_recurrent_layers_are_known():
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[4, 1, 8] x, float[1, 32, 8] w, float[1, 32, 8] r) => (float[4, 1, 1, 8] y)
        { y = LSTM <hidden_size = 8> (x, w, r) }"""
    )
    assert workload(model).recurrent
    assert not workload(convolutions(8)).recurrent


def test_synthetic_nets_are_the_same_each_time_and_differ():
    assert synthetic_net(3).digest == synthetic_net(3).digest
    assert synthetic_net(3).digest != synthetic_net(13).digest
