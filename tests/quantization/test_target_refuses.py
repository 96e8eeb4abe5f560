"""The target must load the result; what it refuses goes back to float, and the report says so."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import edgeinfer as ei
from edgeinfer.errors import TransformOptionError
from edgeinfer.model.model import Model
from edgeinfer.quantization.search.layer_gains import integer_nodes
from edgeinfer.quantization.search.quantize_int8 import QuantizeInt8
from edgeinfer.transforms import Simplify
from tests.quantization.made_up_time import MadeUpTime

# OpenVINO takes it in float, and refuses a quantizer behind a sequence.
SEQUENCES = """
<ir_version: 8, opset_import: ["": 17]>
net (float[N, 64] x) => (float[N, 8] y) <int64 first = {0}> {
    [into] h = MatMul(x, w)
    q = SplitToSequence<axis = 1, keepdims = 1>(h)
    s = SequenceAt(q, first)
    r = SequenceInsert(q, s)
    c = ConcatFromSequence<axis = 1>(r)
    [out] y = MatMul(c, v)
}
"""


def _net() -> Model:
    proto = onnx.parser.parse_model(SEQUENCES)
    rng = np.random.default_rng(0)
    for name, shape in {"w": (64, 32), "v": (33, 8)}.items():
        array = (0.1 * rng.standard_normal(shape)).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return Model.load(proto)


def _feeds(count: int = 6) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((4, 64)).astype(np.float32)} for _ in range(count)]


def _fast(count: int = 6, **options: object) -> QuantizeInt8:
    return QuantizeInt8(
        calibration=_feeds(count), effort="fast", stopwatch=MadeUpTime(lambda _: 2.0), **options
    )


@pytest.mark.parametrize("feeds", [1, 2, 6])
def test_what_the_target_refuses_in_int8_goes_back_to_float(feeds):
    result = _fast(feeds, target="openvino").apply(_net())
    assert integer_nodes(result.model.ir) == {"into"}
    assert any("refuses" in reason for node, reason in result.report.skipped if node == "out")
    with ei.load(ei.compile(result.model, "openvino")) as session:
        assert session.infer(_feeds(1)[0])["y"].shape == (4, 8)


def test_a_score_that_was_not_taken_on_the_target_says_so():
    here = _fast(target="openvino").apply(_net()).report
    assert any("(openvino" in note and "dB" in note for note in here.notes)
    assert not any("not the target's own" in note for note in here.notes)
    away = _fast(target="openvino:GPU.7").apply(_net()).report
    (note,) = (note for note in away.notes if "not the target's own" in note)
    assert "openvino:GPU.7 is not here" in note
    assert any("the graph's own arithmetic" in note for note in away.notes)


def test_the_report_says_what_was_not_checked_and_how_to_check_it():
    unchecked = _fast(target="openvino").apply(_net()).report
    assert any("metric was not checked" in note and "evaluate=" in note for note in unchecked.notes)
    checked = _fast(target="openvino", evaluate=lambda _: 1.0, max_drop=0.0).apply(_net()).report
    assert not any("not checked" in note for note in checked.notes)
    assert checked.data["metric"] == checked.data["metric_float"] == 1.0


@pytest.mark.parametrize("named", [False, True])
def test_tolerances_of_optimize_reach_the_guard(named):
    steps = [Simplify(), QuantizeInt8(effort="fast", measure=False)] if named else None
    judged: list[Model] = []

    def refuse_int8(model: Model) -> float:
        judged.append(model)
        return 0.0 if integer_nodes(model.ir) else 1.0

    model = ei.optimize(
        _net(), steps, target="openvino", calibration=_feeds(), evaluate=refuse_int8, max_drop=0.5
    )
    assert len(judged) > 1
    assert not integer_nodes(model.ir)
    model = ei.optimize(_net(), steps, target="openvino", calibration=_feeds(), min_sqnr_db=1e6)
    assert not integer_nodes(model.ir)


def test_a_tolerance_that_nothing_keeps_is_refused():
    with pytest.raises(TransformOptionError, match="keeps a tolerance"):
        ei.optimize(_net(), [Simplify()], min_sqnr_db=20.0)


def test_an_effort_of_optimize_reaches_the_search():
    steps = [
        len(ei.optimize(_net(), target="openvino", calibration=_feeds(), effort=effort).report.data["ledger"])
        for effort in ("fast", "default")
    ]
    assert steps[0] < steps[1]


@pytest.mark.parametrize("given", [{"transforms": [Simplify()], "calibration": [{}]}, {}])
def test_an_effort_that_nothing_takes_is_refused(given):
    with pytest.raises(TransformOptionError, match="effort"):
        ei.optimize(_net(), target="openvino", effort="fast", **given)
    with pytest.raises(TransformOptionError, match="effort"):
        ei.optimize(_net(), target="openvino", calibration=_feeds(), effort="quick")
