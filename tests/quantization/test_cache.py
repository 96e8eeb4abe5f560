"""The calibration cache: resuming, refusing what is damaged or foreign."""

from __future__ import annotations

import json
import os

import numpy as np
import onnx
import pytest

from edgeinfer.calibration.cache import CalibrationCache, _digest
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


def entry_of(cache, data=DATA):
    run(data, cache)
    (entry,) = cache.folder.iterdir()
    return entry


def test_every_flipped_bit_is_found(tmp_path):
    """Each field of meta.json, and the states."""
    cache = CalibrationCache(tmp_path)
    entry = entry_of(cache)
    watching = {name: watch if isinstance(watch, list) else [watch] for name, watch in observers().items()}
    rng = np.random.default_rng(0)
    for file, step in ((entry / "meta.json", 1), (entry / "states.npz", 97)):
        clean = file.read_bytes()
        for position in range(0, len(clean), step):
            damaged = bytearray(clean)
            damaged[position] ^= 1 << int(rng.integers(8))
            file.write_bytes(damaged)
            found, reason = cache.load(entry.name, watching)
            if file.name == "meta.json" and same_json(damaged, clean):
                assert found is not None
            else:
                assert found is None
                assert "is damaged and was not used" in reason
        file.write_bytes(clean)
    assert cache.load(entry.name, watching)[1] is None


def same_json(a, b):
    try:
        return json.loads(a) == json.loads(b)
    except ValueError:
        return False


@pytest.mark.parametrize(
    "change",
    [{"samples": -6}, {"samples": True}, {"samples": "6"}, {"samples": 1 << 70}, {"labels": []},
     {"labels": ["i/0"]}, {"labels": None}, {"key": "x"}, {"format": 1}, {"feeds_sha256": None},
     {"feeds_sha256": "0"}],
    ids=str,
)  # fmt: skip
def test_a_strange_entry_with_the_right_hashes_is_not_used(change, tmp_path):
    cache = CalibrationCache(tmp_path)
    path = entry_of(cache) / "meta.json"
    meta = json.loads(path.read_text())
    del meta["meta_sha256"]
    meta |= change
    path.write_text(json.dumps({**meta, "meta_sha256": _digest(meta)}))
    summary, ranges = run(DATA, cache)
    assert summary.runs == 10
    assert any("was not used" in note for note in summary.notes)
    assert ranges == run(DATA)[1]


def test_a_state_that_an_observer_refuses_is_a_typed_error(tmp_path, monkeypatch):
    cache = CalibrationCache(tmp_path)
    entry_of(cache)

    def refuse(self, state):
        raise KeyError("counts")

    monkeypatch.setattr(ChannelMeanObserver, "restore", refuse)
    with pytest.raises(CalibrationError, match="refuses its state") as caught:
        run(DATA, cache)
    assert str(tmp_path) in caught.value.where
    assert caught.value.hint == "Remove that folder."


@pytest.mark.parametrize("kind", ["missing", "symlink", "pipe"])
def test_a_file_that_is_none_is_not_used(kind, tmp_path):
    cache = CalibrationCache(tmp_path / "cache")
    path = entry_of(cache) / "meta.json"
    path.rename(tmp_path / "elsewhere")
    if kind == "symlink":
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "pipe":
        os.mkfifo(path)
    summary, _ = run(DATA, cache)
    assert summary.runs == 10
    assert any("damaged" in note for note in summary.notes)


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
