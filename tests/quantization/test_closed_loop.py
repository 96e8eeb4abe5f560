"""Models whose outputs come back as inputs: which those are, and how they are judged."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from edgeinfer.errors import TransformOptionError
from edgeinfer.model.model import Model
from edgeinfer.quantization.search.closed_loop import find_feedback
from edgeinfer.quantization.search.model_runs import Loop, run_outputs
from edgeinfer.quantization.search.quantize_int8 import QuantizeInt8
from tests.quantization.made_up_time import MadeUpTime

SIZE = 16


def recurrent(state_in: str = "state", state_out: str = "stateN") -> Model:
    """A state that forgets slowly, so that errors in it add up."""
    proto = onnx.parser.parse_model(
        f"""
        <ir_version: 8, opset_import: ["": 17]>
        net (float[1,{SIZE}] x, float[1,{SIZE}] {state_in}) => (float[1,4] y, float[1,{SIZE}] {state_out})
        {{
            [into] a = MatMul(x, w)
            [keep] b = MatMul({state_in}, u)
            c = Add(a, b)
            {state_out} = Tanh(c)
            [out] y = MatMul({state_out}, v)
        }}
        """
    )
    rng = np.random.default_rng(0)
    keep = 0.97 * np.linalg.qr(rng.standard_normal((SIZE, SIZE)))[0]
    weights = {"w": 0.3 * rng.standard_normal((SIZE, SIZE)), "u": keep, "v": rng.standard_normal((SIZE, 4))}
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    return Model.load(proto)


def recording(model: Model, count: int) -> list[dict[str, np.ndarray]]:
    """Feeds as an application would record them: each has the state that the call before gave."""
    rng = np.random.default_rng(1)
    given, state = (spec.name for spec in model.signature.inputs)
    feeds = [
        {given: rng.standard_normal((1, SIZE)).astype(np.float32), state: np.zeros((1, SIZE), np.float32)}
        for _ in range(count)
    ]
    outputs = [spec.name for spec in model.signature.outputs]
    found = run_outputs(model, feeds, loop=Loop(back={state: outputs[1]}))
    return feeds[:1] + [
        {**feed, state: before[1]} for feed, before in zip(feeds[1:], found[:-1], strict=True)
    ]


def test_a_state_is_found_by_feeds_that_follow_each_other_whatever_its_name():
    model = recurrent("left", "right")
    found = find_feedback(model, recording(model, 6))
    assert dict(found.back) == {"left": "right"}
    assert found.in_order


def test_a_state_is_found_by_its_name_where_feeds_are_shuffled():
    model = recurrent()
    shuffled = recording(model, 9)[::-2]
    found = find_feedback(model, shuffled)
    assert dict(found.back) == {"state": "stateN"}
    assert not found.in_order
    other = recurrent("mask", "features")
    feeds = [dict(zip(("x", "mask"), feed.values(), strict=True)) for feed in shuffled]
    assert not find_feedback(other, feeds).back


@pytest.mark.parametrize(
    ("state_in", "state_out"), [("h0", "hn"), ("past_key", "present_key"), ("cache_in", "cache_out")]
)
def test_usual_names_of_states(state_in, state_out):
    assert dict(find_feedback(recurrent(state_in, state_out), []).back) == {state_in: state_out}


def test_what_is_given_counts_and_is_checked():
    model = recurrent("mask", "features")
    assert find_feedback(model, [], {"mask": "features"}).back
    assert not find_feedback(recurrent(), [], {}).back
    with pytest.raises(TransformOptionError, match="cannot come back"):
        find_feedback(model, [], {"mask": "y"})


def test_it_is_judged_with_its_own_states_and_says_so():
    model = recurrent()
    feeds = recording(model, 40)
    options = {
        "calibration": feeds,
        "target": "openvino",
        "min_sqnr_db": 0,
        "stopwatch": MadeUpTime(lambda _: 2),
    }
    closed = QuantizeInt8(**options).apply(model).report
    open_loop = QuantizeInt8(feedback={}, **options).apply(model).report
    assert any("comes back as input 'state'" in note and "closed loop" in note for note in closed.notes)
    assert not any("closed loop" in note for note in open_loop.notes)
    assert closed.data["sqnr_db"] < open_loop.data["sqnr_db"] - 1
