"""EqualizeActivations, and the channel scales that it rests on."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx_ir.passes.common as common_passes
import pytest

from edgeinfer.calibration.calibration import as_calibration, observe
from edgeinfer.calibration.channel_observers import ChannelMagnitudeObserver
from edgeinfer.errors import CalibrationError
from edgeinfer.graph.channels.scales import ChannelScales
from edgeinfer.transforms import EqualizeActivations

sys.path.insert(0, str(Path(__file__).parent))
from weight_models import chain, clipped, feeds, make, run

SHUFFLE = """<ir_version: 8, opset_import: ["": 17]>
g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y)
<int64[5] apart = {-1, 2, 4, 8, 8}, int64[4] flat = {-1, 8, 8, 8}, int64[2] halves = {4, 4}>
{
    c1 = Conv(x, w1, b1)
    a1 = Relu(c1)
    g1 = Reshape(a1, apart)
    g2 = Transpose<perm = [0, 2, 1, 3, 4]>(g1)
    g3 = Reshape(g2, flat)
    left, right = Split<axis = 1>(g3, halves)
    c2 = Conv<group = 4>(left, w2, b2)
    sum = Add(c2, right)
    both = Concat<axis = 1>(sum, left)
    y = Conv(both, w3, b3)
}"""


def _numbers(model):
    graph = model.copy_ir()
    common_passes.ShapeInferencePass()(graph)
    scales = ChannelScales(graph.graph)
    return {value.name: scales.numbers(value).reshape(-1).tolist() for value in scales.tensors()}


def _shuffled():
    return make(SHUFFLE, w1=(8, 4, 1, 1), b1=(8,), w2=(4, 1, 1, 1), b2=(4,), w3=(4, 8, 1, 1), b3=(4,))


def test_numbers_follow_a_channel_shuffle_a_sum_and_a_concatenation():
    numbers = _numbers(_shuffled())
    first = numbers["c1"]
    assert len(set(first)) == 8
    assert numbers["g3"] == [first[i] for i in (0, 4, 1, 5, 2, 6, 3, 7)]
    assert numbers["right"] == numbers["c2"] == numbers["sum"] == numbers["g3"][4:]
    assert numbers["both"] == numbers["sum"] + numbers["left"]
    assert "y" not in numbers  # an output is never scaled


@pytest.mark.parametrize(
    "model", [chain(), chain("LeakyRelu"), _shuffled()], ids=["relu", "leaky", "shuffle"]
)
def test_it_is_exact_and_brings_the_channels_together(model):
    given = feeds(model)
    result = EqualizeActivations(calibration=given, alpha=1.0).apply(model)
    assert len(result.report.applied) == 3
    wanted = run(model, given)
    np.testing.assert_allclose(run(result.model, given), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    name = "both" if "both" in _numbers(model) else "a2"

    def unlike(of) -> float:
        observer = ChannelMagnitudeObserver(1)
        observe(of, as_calibration(given, of.signature), {name: observer}, progress=False)
        return float(observer.abs_max.max() / observer.abs_max.mean())

    assert unlike(result.model) < unlike(model)


def test_a_clip_is_not_scaled_through():
    model = clipped()
    report = EqualizeActivations(calibration=feeds(model)).apply(model).report
    assert not report.modified
    assert len(report.skipped) == 2


def test_it_wants_calibration():
    with pytest.raises(CalibrationError, match="calibration"):
        EqualizeActivations().apply(chain())
