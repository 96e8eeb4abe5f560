"""ONNX infers no shape behind a GroupNormalization of opset 21; what comes after it needs one."""

from __future__ import annotations

import onnx
import pytest

import edgeinfer as ei

NET = """
<ir_version: 10, opset_import: ["" : 21]>
net (float[2, 4, 8, 8] x, float[4] s, float[4] b) => (float[A, B, C, D] y) {
    n = GroupNormalization <num_groups = 2> (x, s, b)
    y = Relu (n)
}
"""


@pytest.fixture(scope="module")
def model():
    return ei.Model.load(onnx.parser.parse_model(NET))


def test_the_shape_behind_it_is_known(model):
    assert not ei.inspect(model).notes  # else it says that shapes are those of a run


def test_the_operator_stays_what_it_was(model):
    again = ei.optimize(model, [ei.transforms.Simplify()])
    assert "GroupNormalization" in {node.op_type for node in again.ir.graph}
