"""Shape inference inside transforms keeps the declared signature, and is quiet where it cannot go on."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import edgeinfer as ei
from edgeinfer.graph.infer_shapes import infer_shapes
from edgeinfer.model.model import Model
from edgeinfer.transforms import PruneChannels, QuantizeStatic, ToFloat16

# The output declares names where the sizes could be inferred, as exporters do.
NAMED = """
<ir_version: 8, opset_import: ["" : 17]>
named (float[2,N] x) => (float[rows,columns] y) <float[1] two = {2.0}> {
    both = Concat<axis = 0>(x, x)
    y = Mul(both, two)
}
"""

# Only one branch fits the input; the other one's shapes contradict each other.
MISFIT = """
<ir_version: 8, opset_import: ["" : 17]>
misfit (float[2,3] x, bool fits) => (float[a,b] y) <float[3,4] w = {1,2,3,4,5,6,7,8,9,10,11,12}> {
    picked = If (fits) <
        then_branch = one () => (float[?,?] p) { p = Identity(x) },
        else_branch = two () => (float[?,?] q) <float[5,5] v> { q = MatMul(x, v) }
    >
    y = MatMul(x, w)
    unused = Shape(picked)
}
"""


def feeds(model: Model) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((2, 3)).astype(np.float32)} for _ in range(2)]


@pytest.mark.parametrize(
    "step", [ToFloat16(), QuantizeStatic(target="openvino"), PruneChannels(keep_macs=0.9)]
)
def test_names_of_sizes_in_the_signature_stay(step):
    model = Model.load(onnx.parser.parse_model(NAMED))
    after = ei.optimize(model, step, calibration=feeds(model))
    assert after.signature == model.signature


def test_what_cannot_be_inferred_does_not_cost_the_rest_its_shapes(caplog):
    graph = Model.load(onnx.parser.parse_model(NAMED)).copy_ir()
    infer_shapes(graph)
    (both,) = (node.outputs[0] for node in graph.graph if node.op_type == "Concat")
    assert both.shape[0] == 4
    assert not caplog.records


def test_a_branch_that_does_not_fit_is_passed_over_quietly(caplog):
    proto = onnx.parser.parse_model(MISFIT)
    del proto.graph.node[-1]
    branch = proto.graph.node[0].attribute[1].g
    branch.initializer.append(onnx.numpy_helper.from_array(np.ones((5, 5), np.float32), "v"))
    graph = Model.load(proto).copy_ir()
    for node in graph.graph:
        for value in node.outputs:
            value.shape = None
    infer_shapes(graph, outputs=True)
    assert list(graph.graph.outputs[0].shape) == [2, 4]
    assert not caplog.records
