"""What versions of a model are compared by."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from edgeinfer.model.model import Model
from edgeinfer.quantization.search.quantize_int8 import QuantizeInt8
from edgeinfer.quantization.search.scored_tensors import scored_tensors

DETECTOR = """
<ir_version: 8, opset_import: ["": 17]>
net (float[1, 8] x) => (float[K, 4] kept, int64[K, 3] picked)
<int64[3] as_boxes = {1, 6, 4}, int64[3] as_scores = {1, 1, 6}, int64 most = {9}, float iou = {0.5},
 float least = {0.1}, int64[1] first = {0}, int64 two = {2}>
{
    [boxes] b = MatMul(x, w)
    b3 = Reshape(b, as_boxes)
    where = Sigmoid(b3)
    [scores] s = MatMul(x, v)
    s3 = Reshape(s, as_scores)
    sure = Sigmoid(s3)
    picked = NonMaxSuppression(where, sure, most, iou, least)
    row = Gather<axis = 1>(picked, two)
    flat = Squeeze(where, first)
    kept = Gather(flat, row)
}
"""


def _net(text: str, **shapes: tuple[int, ...]) -> Model:
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        array = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return Model.load(proto)


def test_outputs_of_a_known_size_are_scored_themselves():
    net = _net('<ir_version: 8, opset_import: ["": 17]> n (float[N,4] x) => (float[N,4] y) { y = Relu(x) }')
    scored = scored_tensors(net)
    assert scored.names == ("y",)
    assert scored.are_outputs
    assert scored.replaced == ()


def test_rows_that_depend_on_the_data_are_scored_in_front():
    net = _net(DETECTOR, w=(8, 24), v=(8, 6))
    scored = scored_tensors(net)
    assert not scored.are_outputs
    assert {"where", "sure"} <= {*scored.names}
    assert not {"kept", "picked"} & {*scored.names}
    assert all("depends on the data" in text for text in scored.replaced)


def test_a_model_with_such_rows_can_be_quantized():
    net = _net(DETECTOR, w=(8, 24), v=(8, 6))
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.standard_normal((1, 8)).astype(np.float32)} for _ in range(8)]
    report = (
        QuantizeInt8(calibration=feeds, target="openvino", measure=False, effort="fast").apply(net).report
    )
    assert report.data["sqnr_db"] > 15
    assert any("depends on the data" in note for note in report.notes)


@pytest.mark.parametrize("last", ["ArgMax <axis = 1, keepdims = 0>", "Cast <to = 7>"])
def test_an_index_is_scored_by_the_numbers_that_it_is_made_of(last):
    net = _net(
        f"""<ir_version: 8, opset_import: ["": 17]> n (float[N, 4] x) => (int64[N] y)
        {{ [a] a = MatMul(x, w) b = Relu(a) y = {last}(b) }}""",
        w=(4, 4),
    )
    scored = scored_tensors(net)
    assert scored.names == ("b",)
    assert "int64" in scored.replaced[0]
