"""The calibration cache: resuming, refusing what is damaged or foreign."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from edgeinfer.calibration.cache import CalibrationCache
from edgeinfer.calibration.calibration import as_calibration, observe
from edgeinfer.calibration.channel_observers import ChannelMeanObserver
from edgeinfer.calibration.observers import METHODS, make_observer
from edgeinfer.errors import CalibrationError
from edgeinfer.model.model import Model

MODEL = Model.load(
    onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 17]> net (float[N, 3] x) => (float[N, 3] y)'
        "{ h = Relu(x) y = Neg(h) }"
    )
)
DATA = [np.random.default_rng(i).standard_normal((1, 3)).astype(np.float32) for i in range(10)]


def observers():
    return {"h": [*(make_observer(m) for m in METHODS), ChannelMeanObserver()], "y": make_observer("mse")}


def run(data, cache=None, watching=None):
    watching = watching or observers()
    summary = observe(MODEL, as_calibration(data, MODEL.signature), watching, cache=cache)
    return summary, [o.range() for o in watching["h"][:-1]] + [tuple(watching["h"][-1].mean)]


def interrupted():
    yield from DATA[:6]
    raise KeyboardInterrupt


def test_an_interrupted_pass_goes_on_where_it_stopped(tmp_path):
    cache = CalibrationCache(tmp_path / "cache", every=2)
    with pytest.raises(KeyboardInterrupt):
        run(interrupted, cache)
    summary, ranges = run(DATA, cache)
    assert summary.runs == 4
    assert summary.samples == 10
    assert "6 samples were taken from the calibration cache" in summary.notes
    assert ranges == run(DATA)[1]
    finished, again = run(DATA, cache)
    assert finished.runs == 0
    assert again == ranges


def test_other_data_is_not_taken_for_the_same(tmp_path):
    cache = CalibrationCache(tmp_path)
    run(DATA, cache)
    other = [x + 1 for x in DATA]
    summary, ranges = run(other, cache)
    assert summary.runs == 10
    assert any("of other data" in note for note in summary.notes)
    assert ranges == run(other)[1]


@pytest.mark.parametrize("file", ["states.npz", "meta.json"])
@pytest.mark.parametrize("damage", [b"", b"{}", b"\x80\x04garbage"])
def test_a_damaged_cache_is_ignored_with_a_note(tmp_path, file, damage):
    cache = CalibrationCache(tmp_path)
    run(DATA, cache)
    (entry,) = tmp_path.iterdir()
    (entry / file).write_bytes(damage)
    summary, ranges = run(DATA, cache)
    assert summary.runs == 10
    assert any("damaged" in note for note in summary.notes)
    assert ranges == run(DATA)[1]


def test_other_observers_have_an_entry_of_their_own(tmp_path):
    cache = CalibrationCache(tmp_path)
    watching = {"h": [make_observer("minmax")]}
    assert cache.key(MODEL, watching) != cache.key(MODEL, {"h": [make_observer("mse")]})
    assert cache.key(MODEL, watching) != cache.key(MODEL, {"y": [make_observer("minmax")]})


def test_observers_without_state_are_refused(tmp_path):
    class Forgetful:
        def update(self, array):
            pass

    with pytest.raises(CalibrationError, match="cannot be stored"):
        observe(
            MODEL,
            as_calibration(DATA, MODEL.signature),
            {"h": Forgetful()},
            cache=CalibrationCache(tmp_path),
        )
