"""Pruning models whose inputs are not one batch of any size."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import edgeinfer as ei
from edgeinfer.transforms import PruneChannels

STATIC = """
<ir_version: 8, opset_import: ["" : 17]>
static (float[4,16] x, float gain) => (float[4,8] y) {
    wide = MatMul(x, w)
    louder = Mul(wide, gain)
    active = Relu(louder)
    y = MatMul(active, v)
}
"""

# The sequence comes first, and the second input has its length on another axis.
SEQUENCE = """
<ir_version: 8, opset_import: ["" : 17]>
sequence (float[T,1,16] x, float[1,T] mask) => (float[a,b,8] y) <int64[1] axes = {2}> {
    wide = MatMul(x, w)
    active = Relu(wide)
    narrow = MatMul(active, v)
    turned = Transpose<perm = [1, 0]>(mask)
    weights = Unsqueeze(turned, axes)
    y = Mul(narrow, weights)
}
"""


@pytest.mark.parametrize(
    ("text", "shapes"), [(STATIC, {"x": (4, 16), "gain": ()}), (SEQUENCE, {"x": (5, 1, 16), "mask": (1, 5)})]
)
def test_channels_are_pruned_whatever_the_first_axes_are(text, shapes):
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(text)
    for name, shape in {"w": (16, 24), "v": (24, 8)}.items():
        weight = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    model = ei.Model.load(proto)
    feeds = [
        {name: np.asarray(rng.standard_normal(shape), np.float32) for name, shape in shapes.items()}
        for _ in range(6)
    ]
    pruned = ei.optimize(model, PruneChannels(keep_macs=0.7, calibration=feeds))
    assert pruned.signature == model.signature
    assert pruned.nbytes < 0.8 * model.nbytes


def test_a_dead_layer_is_pruned_like_any_other():
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        dead (float[1,4,6,6] x) => (float[1,4,6,6] y) {
            nothing = Conv(x, w)
            active = Relu(nothing)
            y = Conv(active, v)
        }
        """
    )
    alive = rng.standard_normal((4, 8, 1, 1)).astype(np.float32)
    for name, weight in {"w": np.zeros((8, 4, 1, 1), np.float32), "v": alive}.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    feeds = [{"x": rng.standard_normal((1, 4, 6, 6)).astype(np.float32)} for _ in range(6)]
    pruned = ei.optimize(proto, PruneChannels(keep_macs=0.7, calibration=feeds))
    with ei.load(ei.compile(pruned, "onnxruntime")) as session:
        np.testing.assert_allclose(session.infer(feeds[0])["y"], 0.0, atol=1e-6)
