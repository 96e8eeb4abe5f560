"""What is fitted in front of an activation function: nearer to the new target is nearer behind it."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgeinfer as ei
from edgeinfer.pruning.reconstruction.activation import Bend, bend_behind

NUMBERS = st.floats(-10, 10, width=32)


def behind(bend: Bend, x: np.ndarray) -> np.ndarray:
    inside = np.clip(x, bend.low, bend.high)
    return inside + np.where(x < bend.low, bend.slope * (x - bend.low), 0.0) if bend.slope else inside


@pytest.mark.parametrize(
    "bend",
    [
        Bend(),
        Bend(slope=0.1),
        Bend(low=0.0, high=6.0),
        Bend(low=-1.0, high=1.0),
        Bend(low=-math.inf, high=6.0),
        Bend(low=-2.0),
    ],
)
@given(wanted=NUMBERS, present=NUMBERS, moved=NUMBERS)
def test_what_lessens_the_distance_to_the_target_lessens_what_is_seen(bend, wanted, present, moved):
    y, z, x = (np.full((), value, np.float32) for value in (wanted, present, moved))
    target = bend.target(y, z)
    assert np.isfinite(target).all()

    def both(at):
        return float((target - at) ** 2), float((behind(bend, y) - behind(bend, at)) ** 2)

    (now, now_seen), (then, then_seen) = both(z), both(x)
    if (wanted < bend.low and present <= bend.low) or (wanted > bend.high and present >= bend.high):
        assert then - now >= then_seen - now_seen - 1e-3
    if bend.slope == 0.0:
        assert then >= then_seen - 1e-3


@pytest.mark.parametrize(
    ("clip", "found"),
    [
        ("Clip (h, zero, six)", Bend(low=0.0, high=6.0)),
        ("Clip (h, , six)", Bend(low=-math.inf, high=6.0)),
        ("Clip (h, zero)", Bend(low=0.0, high=math.inf)),
        ("Clip (h, zero, bound)", None),
        ("Relu (h)", Bend()),
        ("LeakyRelu <alpha = 0.25> (h)", Bend(slope=0.25)),
        ("LeakyRelu <alpha = 2.0> (h)", None),
        ("Tanh (h)", None),
    ],
)
def test_the_function_behind_a_tensor(clip, found):
    text = f"""
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[1, 4] x, float bound) => (float[1, 4] y) <float zero = {{0}}, float six = {{6}}> {{
        h = Identity (x)
        y = {clip}
    }}"""
    graph = ei.Model.load(onnx.parser.parse_model(text)).copy_ir().graph
    value = next(node for node in graph if node.op_type == "Identity").outputs[0]
    assert bend_behind(value) == found
