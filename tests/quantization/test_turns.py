"""From the 33rd sample on tensors take turns: what stays exact, what is estimated, and what it saves."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from edgeinfer.calibration.bounds import reachable_bounds
from edgeinfer.calibration.cache import CalibrationCache
from edgeinfer.calibration.calibration import as_calibration, observe
from edgeinfer.calibration.channel_observers import ChannelMeanObserver
from edgeinfer.calibration.observers import MinMaxObserver, MovingAverageObserver, make_observer
from edgeinfer.errors import CalibrationError
from edgeinfer.model.model import Model

MODEL = Model.load(
    onnx.parser.parse_model(
        """
        <ir_version: 9, opset_import: ["" : 17]>
        net (float[N, 4] x) => (float[N, 4] y)
        <float low = {0}, float high = {6}>
        {
            a = Neg(x)
            b = Clip(a, low, high)
            c = Abs(a)
            y = Neg(c)
        }
        """
    )
)
NAMES = ("a", "b", "c", "y")
DATA = [np.random.default_rng(i).standard_normal((1, 4)).astype(np.float32) for i in range(100)]


def run(data, watching, **options):
    return observe(MODEL, as_calibration(data, MODEL.signature), watching, **options)


@pytest.mark.parametrize("batch", [1, 4])
def test_every_sample_weighs_the_same_in_what_is_estimated(batch):
    data = [np.concatenate(DATA[i : i + batch]) for i in range(0, 92, batch)]
    watching = {name: make_observer("mse") for name in ("x", *NAMES)}
    summary = run(data, watching)
    assert summary.turns == 3
    assert (summary.rows, summary.runs) == (92, 92 // batch)
    for observer in watching.values():
        assert observer.histogram.total == 92 * 4
    assert watching["x"].extremes == (min(map(np.min, data)), max(map(np.max, data)))


def test_few_samples_are_shown_to_everyone():
    watching = {name: make_observer("mse") for name in NAMES}
    assert run(DATA[:32], watching).turns == 1
    assert watching["a"].extremes == (-max(map(np.max, DATA[:32])), -min(map(np.min, DATA[:32])))


def test_exact_observers_see_everything_alone_or_beside_one_that_estimates():
    spiked = [*DATA[:-1], np.full((1, 4), 1000, np.float32)]
    mean, beside = ChannelMeanObserver(axis=-1), MinMaxObserver()
    watching = {
        "a": make_observer("mse"),
        "b": make_observer("mse"),
        "c": [make_observer("mse"), beside, mean],
        "y": MinMaxObserver(),
    }
    run(spiked, watching)
    assert beside.range()[1] == 1000
    assert watching["c"][0].extremes[1] == 1000
    assert watching["y"].range()[0] == -1000
    np.testing.assert_allclose(mean.mean, np.abs(np.concatenate(spiked)).mean(axis=0), rtol=1e-5, atol=0)


def test_data_that_repeats_in_step_with_the_turns_reaches_every_tensor():
    data = DATA[:32] + [np.full((1, 4), 50 + i % 3, np.float32) for i in range(63)]
    watching = {name: make_observer("mse") for name in NAMES}
    run(data, watching)
    assert watching["a"].extremes[0] == -52
    assert watching["c"].extremes[1] == 52
    assert watching["y"].extremes[0] == -52


def test_a_tensor_whose_bounds_were_reached_is_not_computed_any_more():
    data = [np.full((1, 4), value, np.float32) for value in (-9, 1, *range(98))]
    watching = {"b": MinMaxObserver()}
    summary = run(data, watching)
    assert watching["b"].range() == (0, 6)
    assert summary.runs == 32
    short = {"b": MinMaxObserver()}
    assert run(data[1:], short).runs == 99  # 6 was never seen
    assert short["b"].range() == (0, 0)


def test_a_sample_that_is_not_finite_is_found_by_its_turn_at_the_latest():
    huge = [np.full((1, 4), 3e38, np.float32)] * 4
    model = Model.load(
        onnx.parser.parse_model(
            '<ir_version: 9, opset_import: ["" : 17]> net (float[N, 4] x) => (float[N, 4] y)'
            "{ a = Neg(x) y = Add(a, a) }"
        )
    )
    watching = {"a": make_observer("mse"), "y": make_observer("mse")}
    with pytest.raises(CalibrationError, match="not finite"):
        observe(model, as_calibration(DATA[:40] + huge, model.signature), watching)


def test_an_interrupted_pass_goes_on_with_the_right_turn(tmp_path):
    def interrupted():
        yield from DATA[:51]
        raise KeyboardInterrupt

    def watching():
        kinds = ("mse", "minmax", "moving_average", "entropy")
        return {name: make_observer(kind) for name, kind in zip(NAMES, kinds, strict=True)}

    cache = CalibrationCache(tmp_path / "cache", every=3)
    with pytest.raises(KeyboardInterrupt):
        run(interrupted, watching(), cache=cache)
    resumed, plain = watching(), watching()
    summary = run(DATA, resumed, cache=cache)
    assert "51 samples were taken from the calibration cache" in summary.notes
    run(DATA, plain)
    assert [o.range() for o in resumed.values()] == [o.range() for o in plain.values()]


def test_weights_that_fill_the_memory_leave_no_room_for_turns():
    watching = {name: make_observer("mse") for name in NAMES}
    summary = run(DATA, watching, max_bytes=16)  # the two constants take 8
    assert summary.turns == 2
    assert all(observer.histogram.total == 400 for observer in watching.values())


def test_a_weighted_update_is_that_many_updates():
    x, y = DATA[0], DATA[1]
    weighted, plain = MovingAverageObserver(0.8), MovingAverageObserver(0.8)
    weighted.update(x)
    weighted.update_weighted(y, 3)
    for part in (x, y, y, y):
        plain.update(part)
    np.testing.assert_allclose(weighted.range(), plain.range(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("text", "bounds"),
    [
        (('<ir_version: 6, opset_import: ["" : 10]> n (float[N] x) => (float[N] y)'
         "{ y = Clip<min = -1.0, max = 6.0>(x) }"), {"y": (-1, 6)}),
        (('<ir_version: 9, opset_import: ["" : 17]> n (float[N] x, float low) => (float[N] y)'
         "<float high = {6}> { y = Clip(x, low, high) }"), {}),
        (('<ir_version: 9, opset_import: ["" : 17]> n (float[N] x) => (float[N] y)'
         "<float low = {0}> { y = Clip(x, low) }"), {}),
        (('<ir_version: 9, opset_import: ["" : 17]> n (float[N] x) => (float[N] y)'
         "{ y = HardSigmoid(x) }"), {"y": (0, 1)}),
    ],
)  # fmt: skip
def test_bounds_are_those_of_constant_clips_and_hard_sigmoid(text, bounds):
    assert reachable_bounds(Model.load(onnx.parser.parse_model(text))) == bounds
